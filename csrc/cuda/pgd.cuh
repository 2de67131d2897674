// One pgd_step over a group of elements: what udp_pgd_step and its multi-tensor form share.
#pragma once

#include "../math/half.h"
#include "../math/pgd.h"
#include "image.cuh"
#include "reduce.cuh"

namespace udp {

inline Range range_of(const Bounds& b) {
    const auto narrow = [](double a) { return static_cast<float>(a); };
    return {narrow(b.lo),     narrow(b.hi),     narrow(b.hi - b.lo),
            narrow(b.out_lo), narrow(b.out_hi), narrow((b.out_hi - b.out_lo) / (b.hi - b.lo))};
}
inline bool maps_range(const Bounds& b) {
    return b.lo != b.out_lo || b.hi != b.out_hi;
}

// The largest value that an operand of that type can hold and that is <= bound.
__device__ __forceinline__ float at_most_in(DType type, float bound) {
    bound += 0.0f;  // -0 is a budget too
    if (type == DType::float16) return float16_at_most(bound);
    if (type == DType::bfloat16) return bfloat16_at_most(bound);
    return bound;
}

// What holds for a whole row.
struct StepSize {
    float size;   // +-alpha, divided by the gradient's norm for an l2 step
    float bound;  // of |delta|: eps, or the largest float for the l2 ball
    float scale;  // 1, or what brings the stepped delta into the l2 ball
};

// A mask of delta's memory order (channels = 1), or one number for a pixel's interleaved channels.
struct Mask {
    Row<AnyPixel> row;
    uint32_t channels;
    uint32_t channel;  // of the element that groups count from

    __device__ void move(int64_t elements) {
        const int64_t pixels = (channel + elements) / channels;
        channel = static_cast<uint32_t>(channel + elements - pixels * channels);
        row.move(pixels);
    }
    template <int N>
    __device__ bool aligned(int64_t first) const {
        return channels > 1 || is_aligned<N>(row, first);
    }
    template <class At, int N>
    __device__ __forceinline__ void load(At at, float (&out)[N]) const {
        if constexpr (!std::is_same<At, Scattered>::value) {
            if (channels > 1) return gather(at, out);
        }
        udp::load<Cache::read_only>(row, at, out);
    }

  private:
    static __device__ int count(Full, int all) { return all; }
    static __device__ int count(Part at, int) { return at.count; }

    template <class At, int N>
    __device__ __forceinline__ void gather(At at, float (&out)[N]) const {
        uint32_t pixel = (channel + at.first) / channels;
        uint32_t c = channel + at.first - pixel * channels;
        const int n = count(at, N);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            float one[1];
            udp::load<Cache::read_only>(row, Part{pixel, k < n ? 1 : 0}, one);
            out[k] = one[0];
            if (++c == channels) {
                c = 0;
                ++pixel;
            }
        }
    }
};

// delta after the step and before any projection.
template <bool kMasked, class At, int N>
__device__ __forceinline__ void step_group(float (&delta)[N], const float (&gradient)[N],
                                           const Mask& mask, At at, Direction direction,
                                           float size) {
    float sizes[N];
    if constexpr (kMasked) mask.load(at, sizes);
#pragma unroll
    for (int k = 0; k < N; ++k) {
        const float towards = finite_direction(gradient[k], direction);
        delta[k] = step(delta[k], towards, kMasked ? size * sizes[k] : size);
    }
}

// D, X, G: element types of delta, of the original, of gradient and adversarial.
template <class Layout, class D, class X, class G, bool kMasked>
struct StepBody {
    Row<D> delta;
    Row<X> original;
    Row<G> gradient, adversarial;
    Mask mask;
    StepSize step;
    Range range;
    Direction direction;
    bool maps;
    int skipped;
    int64_t* skipped_total;

    __device__ bool aligned(int64_t first) const {
        return is_aligned<Layout::kGroup>(delta, first) &&
               is_aligned<Layout::kGroup>(original, first) &&
               is_aligned<Layout::kGroup>(gradient, first) &&
               is_aligned<Layout::kGroup>(adversarial, first) &&
               (!kMasked || mask.template aligned<Layout::kGroup>(first));
    }
    __device__ void move(int64_t elements) {
        delta.move(elements);
        original.move(elements);
        gradient.move(elements);
        adversarial.move(elements);
        if (kMasked) mask.move(elements);
    }

    template <class At>
    __device__ __forceinline__ void operator()(At at) {
        constexpr int N = kElements<Layout, At>;
        constexpr bool kBytes = std::is_same<X, uint8_t>::value;
        float d[N], g[N], x[N];
        load<Cache::read_only>(gradient, at, g);
        load<Cache::read_only>(original, at, x);
        load<Cache::keep>(delta, at, d);
        const bool bytes = holds_bytes(original);
#pragma unroll
        for (int k = 0; k < N; ++k) x[k] = bytes ? from_byte(x[k], range) : from_float(x[k]);
        step_group<kMasked>(d, g, mask, at, direction, step.size);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            skipped += is_finite(g[k]) ? 0 : 1;  // those that do not exist are 0
            const float nothing = kBytes ? 0.0f : nothing_or_nan(x[k]);
            d[k] = project(within(d[k], step.bound) * step.scale, x[k], nothing, range);
        }
        round_as_stored(delta, d);
        store(delta, at, d);
#pragma unroll
        for (int k = 0; k < N; ++k) x[k] = udp::adversarial(x[k], d[k], maps, range);
        store(adversarial, at, x);
    }
    static __device__ __forceinline__ bool holds_bytes(const Row<AnyPixel>& row) {
        return row.type == DType::uint8;
    }
    template <class T>
    static __device__ __forceinline__ bool holds_bytes(const Row<T>&) {
        return sizeof(T) == 1;
    }

    __device__ void end_group() const {}
    __device__ void end_chunk(int64_t) const {}
    // Integers may be added in any order; hardly ever is there one to add.
    __device__ void end_row(int64_t image) {
        if (!__any_sync(0xffffffffu, skipped != 0)) return;
        for (int offset = 16; offset > 0; offset /= 2) {
            skipped += __shfl_down_sync(0xffffffffu, skipped, offset);
        }
        if (threadIdx.x % 32 == 0) {
            atomicAdd(reinterpret_cast<unsigned long long*>(skipped_total + image),
                      static_cast<unsigned long long>(skipped));
        }
        skipped = 0;
    }
};

}  // namespace udp
