// q_sample: an image noised to its timestep in one pass, the noise drawn in registers.
#include "image.cuh"
#include "noise.cuh"

namespace udp {
namespace {

struct Arguments {
    Tensor x, noise, noisy, noise_out;  // noise: given, else drawn from keys
    Schedule schedule;
    const int64_t* keys;
    int64_t pixels;
};

// kWritesNoise: 0 no, 1 yes, 2 where noise_out is present.
template <class Layout, class In, class Out, bool kDraws, int kWritesNoise>
struct Sample : Arguments {
    static constexpr int kBlocks = kBlocksFor<In, Out>;
    static constexpr bool kAnyHead = !kDraws;

    struct Body {
        Row<In> x, given;
        Row<Out> noisy, copy;
        Noise<Layout, Normals> noise;
        float signal, level;

        __device__ bool aligned(int64_t first) const {
            return is_aligned<Layout::kGroup>(x, first) &&
                   is_aligned<Layout::kGroup>(noisy, first) &&
                   (kDraws || is_aligned<Layout::kGroup>(given, first)) &&
                   (kWritesNoise == 0 || is_aligned<Layout::kGroup>(copy, first));
        }
        __device__ void move(int64_t elements) {
            x.move(elements);
            noisy.move(elements);
            if (kDraws) noise.move(elements);
            if (!kDraws) given.move(elements);
            if (kWritesNoise) copy.move(elements);
        }
        template <class At>
        __device__ __forceinline__ void operator()(At at) const {
            constexpr int N = kElements<Layout, At>;
            float value[N], n[N];
            load<Cache::read_only>(x, at, value);
            if constexpr (kDraws) {
                noise.draw(at.first, n);
            } else {
                load<Cache::read_only>(given, at, n);
            }
#pragma unroll
            for (int k = 0; k < N; ++k) value[k] = diffuse(value[k], n[k], signal, level);
            store(noisy, at, value);
            if (kWritesNoise == 1 || (kWritesNoise == 2 && copy)) store(copy, at, n);
        }
        __device__ void end_group() const {}
        __device__ void end_chunk(int64_t) const {}
        __device__ void end_row(int64_t) const {}
    };

    __device__ Body row(int64_t image, int64_t channel) const {
        Body body;
        body.x = {x, image, channel};
        body.noisy = {noisy, image, channel};
        if (kDraws) body.noise = {keys, image, channel, pixels};
        if (!kDraws) body.given = {noise, image, channel};
        if (kWritesNoise) body.copy = {noise_out, image, channel};
        const Levels levels = levels_of(schedule, image);
        body.signal = levels.signal;
        body.level = levels.noise;
        return body;
    }
};

template <class Layout, class In, class Out, bool kDraws, int kWritesNoise>
int sample(const Shape& shape, Order order, const Arguments& a, void* stream) {
    using Op = Sample<Layout, In, Out, kDraws, kWritesNoise>;
    return run<Layout>(walk_over(shape, order, Layout::kGroup), Op{a}, stream);
}

// Drawn noise shares a Philox key's schedule over 16 elements; with given noise 8 fill the
// registers.
template <class T>
int sample_dense(const Shape& shape, Order order, const Arguments& a, void* stream) {
    if (a.keys == nullptr) return sample<Flat<8>, T, T, false, 2>(shape, order, a, stream);
    if (a.noise_out.data == nullptr)
        return sample<Flat<16>, T, T, true, 0>(shape, order, a, stream);
    return sample<Flat<16>, T, T, true, 1>(shape, order, a, stream);
}

// Channels-last images, whose noise follows the logical index. bfloat16 has kernels of its own: 34
// instructions an element, where types known only at run time cost 36 or 37.
template <int C>
int sample_interleaved(const Shape& shape, Order order, const Arguments& a, void* stream) {
    if (a.x.type == DType::bfloat16 && a.noisy.type == DType::bfloat16 &&
        a.noise_out.data == nullptr) {
        return sample<Interleaved<C>, BFloat16, BFloat16, true, 0>(shape, order, a, stream);
    }
    return sample<Interleaved<C>, AnyFloat, AnyFloat, true, 2>(shape, order, a, stream);
}

}  // namespace
}  // namespace udp

int udp_q_sample(const udp::Shape* shape, const udp::Tensor* x, const udp::Schedule* schedule,
                 const udp::Tensor* noise, const int64_t* keys, const udp::Tensor* noisy,
                 const udp::Tensor* noise_out, void* stream) {
    using namespace udp;
    const Arguments a{*x,   value_of(noise), *noisy, value_of(noise_out), *schedule,
                      keys, shape->pixels};
    const Order order = order_of(*shape, {x, noise, noisy, noise_out}, keys != nullptr);
    if (order == Order::strided && keys == nullptr) {
        return sample<Strided, AnyFloat, AnyFloat, false, 2>(*shape, order, a, stream);
    }
    if (order == Order::strided) {
        return sample<Strided, AnyFloat, AnyFloat, true, 2>(*shape, order, a, stream);
    }
    if (order == Order::interleaved) {
        return shape->channels == 3 ? sample_interleaved<3>(*shape, order, a, stream)
                                    : sample_interleaved<4>(*shape, order, a, stream);
    }
    if (same_type({x, noise, noisy, noise_out})) {
        switch (x->type) {
            case DType::float32:
                return sample_dense<float>(*shape, order, a, stream);
            case DType::float16:
                return sample_dense<Float16>(*shape, order, a, stream);
            case DType::bfloat16:
                return sample_dense<BFloat16>(*shape, order, a, stream);
            case DType::uint8:
                break;
        }
    }
    if (keys == nullptr) {
        return sample<Flat<8>, AnyFloat, AnyFloat, false, 2>(*shape, order, a, stream);
    }
    return sample<Flat<8>, AnyFloat, AnyFloat, true, 2>(*shape, order, a, stream);
}
