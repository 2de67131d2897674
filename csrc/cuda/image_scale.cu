// image_scale: one factor per image.
#include "image.cuh"
#include "walk.cuh"

namespace udp {
namespace {

template <class Layout, class T>
struct Scale {
    static constexpr int kBlocks = kBlocksFor<T>;
    static constexpr bool kAnyHead = true;
    Tensor x, out;
    PerImage scale;

    struct Body {
        Row<T> x, out;
        float factor;

        __device__ bool aligned(int64_t first) const {
            return is_aligned<Layout::kGroup>(x, first) && is_aligned<Layout::kGroup>(out, first);
        }
        __device__ void move(int64_t elements) {
            x.move(elements);
            out.move(elements);
        }
        template <class At>
        __device__ __forceinline__ void operator()(At at) const {
            constexpr int N = kElements<Layout, At>;
            float value[N];
            load<Cache::read_only>(x, at, value);
#pragma unroll
            for (int k = 0; k < N; ++k) value[k] *= factor;
            store(out, at, value);
        }
        __device__ void end_group() const {}
        __device__ void end_chunk(int64_t) const {}
        __device__ void end_row(int64_t) const {}
    };

    __device__ Body row(int64_t image, int64_t channel) const {
        Body body;
        body.x = {x, image, channel};
        body.out = {out, image, channel};
        body.factor = number_of(scale, image);
        return body;
    }
};

template <class Layout, class T>
int scaled(const Shape& shape, Order order, const Tensor& x, const Tensor& out,
           const PerImage& scale, void* stream) {
    const Walk walk = walk_over(shape, order, Layout::kGroup);
    return run<Layout>(walk, Scale<Layout, T>{x, out, scale}, stream);
}

}  // namespace
}  // namespace udp

int udp_image_scale(const udp::Shape* shape, const udp::Tensor* x, const udp::PerImage* scale,
                    const udp::Tensor* out, void* stream) {
    using namespace udp;
    const Order order = order_of(*shape, {x, out}, false);
    if (order == Order::strided || !same_type({x, out})) {
        return scaled<Strided, AnyFloat>(*shape, Order::strided, *x, *out, *scale, stream);
    }
    switch (x->type) {
        case DType::float32:
            return scaled<Flat<8>, float>(*shape, order, *x, *out, *scale, stream);
        case DType::float16:
            return scaled<Flat<8>, Float16>(*shape, order, *x, *out, *scale, stream);
        case DType::bfloat16:
            return scaled<Flat<8>, BFloat16>(*shape, order, *x, *out, *scale, stream);
        case DType::uint8:
            break;
    }
    return cudaErrorInvalidValue;
}
