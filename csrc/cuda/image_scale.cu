// image_scale: one factor per image, into another tensor or in place.
#include "image.cuh"
#include "walk.cuh"

namespace udp {
namespace {

template <class Layout, class T, Cache kCache>
struct ScaleBody {
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
        load<kCache>(x, at, value);
#pragma unroll
        for (int k = 0; k < N; ++k) value[k] *= factor;
        store(out, at, value);
    }
    __device__ void end_group() const {}
    __device__ void end_chunk(int64_t) const {}
    __device__ void end_row(int64_t) const {}
};

template <class Layout, class T>
struct Scale {
    static constexpr int kBlocks = kBlocksFor<T>;
    static constexpr bool kAnyHead = true;
    Tensor x, out;
    PerImage scale;

    __device__ auto row(int64_t image, int64_t channel) const {
        return ScaleBody<Layout, T, Cache::read_only>{
            {x, image, channel}, {out, image, channel}, number_of(scale, image)};
    }
};

// An image whose factor is one stays as it is, and in the second-level cache if it is there.
template <class Layout, class T>
struct ScaleInPlace {
    static constexpr int kBlocks = kBlocksFor<T>;
    static constexpr bool kAnyHead = true;
    Tensor x;
    PerImage scale;

    struct Body : ScaleBody<Layout, T, Cache::keep> {
        __device__ bool leaves() const { return this->factor == 1.0f; }
    };
    __device__ Body row(int64_t image, int64_t channel) const {
        const Row<T> row{x, image, channel};
        return {{row, row, number_of(scale, image)}};
    }
};

// make(layout, element type): the op.
template <class Make>
int scaled(const Shape& shape, const Tensor& x, const Tensor& out, void* stream, Make make) {
    const auto walked = [&](auto layout, auto element, Order order) {
        using Layout = decltype(layout);
        const Walk walk = walk_over(shape, order, Layout::kGroup);
        return run<Layout>(walk, make(layout, element), stream);
    };
    const Order order = order_of(shape, {&x, &out}, false);
    if (order == Order::strided || !same_type({&x, &out})) {
        return walked(Strided{}, AnyFloat{}, Order::strided);
    }
    return with_float_type(x.type, [&](auto element) { return walked(Flat<8>{}, element, order); });
}

}  // namespace
}  // namespace udp

int udp_image_scale(const udp::Shape* shape, const udp::Tensor* x, const udp::PerImage* scale,
                    const udp::Tensor* out, void* stream) {
    using namespace udp;
    return scaled(*shape, *x, *out, stream, [&](auto layout, auto element) {
        return Scale<decltype(layout), decltype(element)>{*x, *out, *scale};
    });
}

int udp_image_scale_in_place(const udp::Shape* shape, const udp::Tensor* x,
                             const udp::PerImage* scale, void* stream) {
    using namespace udp;
    return scaled(*shape, *x, *x, stream, [&](auto layout, auto element) {
        return ScaleInPlace<decltype(layout), decltype(element)>{*x, *scale};
    });
}
