// quantize: the 8-bit image within the budget, rounded to nearest or stochastically.
#include "../math/quantize.h"

#include "image.cuh"
#include "noise.cuh"

namespace udp {
namespace {

struct Arguments {
    Tensor value, original, out;
    PerImage eps;
    const int64_t* keys;
    int64_t pixels;
    int is_image;         // value is the protected image, not the perturbation
    float lo, to_levels;  // 255 / (hi - lo)
};

template <class Layout, class Value, bool kStochastic>
struct Quantize : Arguments {
    static constexpr int kBlocks = kBlocksFor<Value>;
    static constexpr bool kAnyHead = !kStochastic;

    struct Body {
        Row<Value> value;
        Row<uint8_t> original, out;
        Noise<Layout, Uniforms> noise;
        float lo, to_levels, levels;
        bool is_image;

        __device__ bool aligned(int64_t first) const {
            return is_aligned<Layout::kGroup>(value, first) &&
                   is_aligned<Layout::kGroup>(original, first) &&
                   is_aligned<Layout::kGroup>(out, first);
        }
        __device__ void move(int64_t elements) {
            value.move(elements);
            original.move(elements);
            out.move(elements);
            if (kStochastic) noise.move(elements);
        }
        template <class At>
        __device__ __forceinline__ void operator()(At at) const {
            constexpr int N = kElements<Layout, At>;
            float change[N], byte[N], u[N];
            load<Cache::read_only>(value, at, change);
            load<Cache::read_only>(original, at, byte);
            if constexpr (kStochastic) noise.draw(at.first, u);
#pragma unroll
            for (int k = 0; k < N; ++k) {
                float d = (change[k] - lo) * to_levels;
                if (is_image) d = d - byte[k];
                d = select(d <= d, d, 0.0f);  // a NaN changes nothing
                if constexpr (kStochastic) {
                    d = floor(d + u[k]);
                } else {
                    d = round_half_even(d);
                }
                byte[k] = bounded_byte(byte[k], d, levels);
            }
            store(out, at, byte);
        }
        __device__ void end_group() const {}
        __device__ void end_chunk(int64_t) const {}
        __device__ void end_row(int64_t) const {}
    };

    __device__ Body row(int64_t image, int64_t channel) const {
        Body body;
        body.value = {value, image, channel};
        body.original = {original, image, channel};
        body.out = {out, image, channel};
        if (kStochastic) body.noise = {keys, image, channel, pixels};
        body.is_image = is_image != 0;
        body.lo = body.is_image ? lo : 0.0f;
        body.to_levels = to_levels;
        body.levels = levels_in(number_of(eps, image));
        return body;
    }
};

template <class Layout, class Value, bool kStochastic>
int quantized(const Shape& shape, Order order, const Arguments& a, void* stream) {
    const Walk walk = walk_over(shape, order, Layout::kGroup);
    return run<Layout>(walk, Quantize<Layout, Value, kStochastic>{a}, stream);
}

template <class Value>
int quantized_dense(const Shape& shape, Order order, const Arguments& a, void* stream) {
    if (a.keys != nullptr) return quantized<Flat<16>, Value, true>(shape, order, a, stream);
    return quantized<Flat<16>, Value, false>(shape, order, a, stream);
}

}  // namespace
}  // namespace udp

int udp_quantize(const udp::Shape* shape, const udp::Tensor* value, const udp::Tensor* original,
                 const udp::PerImage* eps, const int64_t* keys, int is_image, double lo, double hi,
                 const udp::Tensor* out, void* stream) {
    using namespace udp;
    const Arguments a{*value,
                      *original,
                      *out,
                      *eps,
                      keys,
                      shape->pixels,
                      is_image,
                      static_cast<float>(lo),
                      static_cast<float>(255.0 / (hi - lo))};
    const Order order = order_of(*shape, {value, original, out}, keys != nullptr);
    if (order == Order::strided) {
        return keys != nullptr ? quantized<Strided, AnyFloat, true>(*shape, order, a, stream)
                               : quantized<Strided, AnyFloat, false>(*shape, order, a, stream);
    }
    if (order == Order::interleaved) {
        return shape->channels == 3
                   ? quantized<Interleaved<3>, AnyFloat, true>(*shape, order, a, stream)
                   : quantized<Interleaved<4>, AnyFloat, true>(*shape, order, a, stream);
    }
    return with_float_type(value->type, [&](auto element) {
        return quantized_dense<decltype(element)>(*shape, order, a, stream);
    });
}
