// pgd_step: one pass over memory for a sign or raw step onto the linf ball. An l2 step reads the
// gradient once before, for its norm; the l2 ball reads delta and gradient once before.
#include "pgd.cuh"

namespace udp {
namespace {

struct Arguments {
    Tensor delta, gradient, original, mask, adversarial;
    PerImage alpha, eps;
    uint32_t mask_channels;
    Step step;
    Norm norm;
    bool maximize, maps;
    Range range;
    double* partial;      // sums of squares, one a chunk
    float *size, *scale;  // [images]; null where the step or the norm is not l2
    int64_t* skipped;

    __device__ Mask mask_of(int64_t image, int64_t channel) const {
        return {{mask, image, channel}, mask_channels, 0};
    }
    __device__ float size_of_step(int64_t image) const {
        if (step == Step::l2) return size[image];
        const float a = number_of(alpha, image);
        return maximize ? a : -a;
    }
};

template <class Layout, class D, class X, class G, bool kMasked>
struct PgdStep : Arguments {
    static constexpr int kBlocks = kMasked ? 4 : kBlocksFor<D, X, G>;  // one type more to branch on
    static constexpr bool kAnyHead = true;

    __device__ auto row(int64_t image, int64_t channel) const {
        StepBody<Layout, D, X, G, kMasked> body;
        body.delta = {delta, image, channel};
        body.original = {original, image, channel};
        body.gradient = {gradient, image, channel};
        body.adversarial = {adversarial, image, channel};
        if (kMasked) body.mask = mask_of(image, channel);
        body.step.size = size_of_step(image);
        body.step.bound =
            norm == Norm::linf ? at_most_in(delta.type, number_of(eps, image)) : kLargest;
        body.step.scale = norm == Norm::linf ? 1.0f : scale[image];
        body.range = range;
        body.direction = step == Step::sign ? kSign : kGradient;
        body.maps = maps;
        body.skipped = 0;
        body.skipped_total = skipped;
        return body;
    }
};

// Sums of squares of the gradient, or of the delta that the step would make.
template <class Layout, bool kOfStepped>
struct SquareSums : Arguments {
    static constexpr int kBlocks = kBlocksFor<AnyFloat>;
    static constexpr bool kAnyHead = false;

    struct Body {
        Row<AnyFloat> delta, gradient;
        Mask mask;
        bool masked;
        Direction direction;
        float size;
        double* partial;
        ExactSquares squares;

        __device__ bool aligned(int64_t first) const {
            return is_aligned<Layout::kGroup>(gradient, first) &&
                   (!kOfStepped || (is_aligned<Layout::kGroup>(delta, first) &&
                                    (!masked || mask.template aligned<Layout::kGroup>(first))));
        }
        __device__ void move(int64_t elements) {
            gradient.move(elements);
            if (kOfStepped) delta.move(elements);
            if (masked) mask.move(elements);
        }
        template <class At>
        __device__ __forceinline__ void operator()(At at) {
            constexpr int N = kElements<Layout, At>;
            float g[N], d[N];
            load<Cache::read_only>(gradient, at, g);
            if constexpr (kOfStepped) {
                load<Cache::read_only>(delta, at, d);
                if (masked) {
                    step_group<true>(d, g, mask, at, direction, size);
                } else {
                    step_group<false>(d, g, mask, at, direction, size);
                }
            }
#pragma unroll
            for (int k = 0; k < N; ++k) {
                squares.add(kOfStepped ? at_most(abs(d[k]), kLargest) : finite_or_zero(g[k]));
            }
        }
        __device__ void end_group() {}
        __device__ void end_chunk(int64_t chunk) {
            const double sum = block_sum(squares.total);
            if (threadIdx.x == 0) partial[chunk] = sum;
            squares.total = 0.0;
        }
        __device__ void end_row(int64_t) const {}
    };

    __device__ Body row(int64_t image, int64_t channel) const {
        Body body;
        body.gradient = {gradient, image, channel};
        body.masked = mask.data != nullptr;
        if (kOfStepped) {
            body.delta = {delta, image, channel};
            body.mask = mask_of(image, channel);
            body.size = size_of_step(image);
        }
        body.direction = step == Step::sign ? kSign : kGradient;
        body.partial = partial;
        return body;
    }
};

// From the partial sums to the step's size (kOfStepped: to delta's scale). A block an image.
template <bool kOfStepped>
__global__ void __launch_bounds__(kThreads)
    finish_norms(const Arguments a, int64_t chunks, int64_t images) {
    for (int64_t image = blockIdx.y; image < images; image += gridDim.y) {
        const double length = ::sqrt(sum_of_chunks(a.partial, chunks, image));
        if (threadIdx.x != 0) continue;
        if (kOfStepped) {
            const double limit = number_of(a.eps, image);
            a.scale[image] = length > limit ? static_cast<float>(limit / length) : 1.0f;
        } else {
            const float alpha = number_of(a.alpha, image);
            // Below the smallest normal float there is no direction to speak of.
            a.size[image] = length >= 0x1p-126
                                ? static_cast<float>((a.maximize ? alpha : -alpha) / length)
                                : 0.0f;
        }
    }
}

template <bool kOfStepped>
int norms(const Shape& shape, Order order, const Arguments& a, void* stream) {
    const bool strided = order == Order::strided;
    const Walk walk = walk_over(shape, order, strided ? Strided::kGroup : 8);
    const int error = strided ? run<Strided>(walk, SquareSums<Strided, kOfStepped>{a}, stream)
                              : run<Flat<8>>(walk, SquareSums<Flat<8>, kOfStepped>{a}, stream);
    if (error != cudaSuccess) return error;
    return launch_over<finish_norms<kOfStepped>>(1, shape.images, kThreads, stream, a,
                                                 walk.channels * walk.chunks, shape.images);
}

template <class Layout, class D, class X, class G, bool kMasked>
int stepped(const Shape& shape, Order order, const Arguments& a, void* stream) {
    const Walk walk = walk_over(shape, order, Layout::kGroup);
    return run<Layout>(walk, PgdStep<Layout, D, X, G, kMasked>{a}, stream);
}

// Calls use(D{}, X{}, G{}) for the combinations of types worth a kernel of their own; false: none
// is.
template <class Use>
bool with_common_types(DType delta, DType original, DType gradient, DType adversarial, Use use) {
    if (gradient != adversarial) return false;
    const auto with_model_type = [&](auto d, auto x) {
        switch (gradient) {
            case DType::float32:
                use(d, x, float{});
                return true;
            case DType::float16:
                use(d, x, Float16{});
                return true;
            case DType::bfloat16:
                use(d, x, BFloat16{});
                return true;
            case DType::uint8:
                break;
        }
        return false;
    };
    if (delta == DType::float32 && original == DType::float32) {
        return with_model_type(float{}, float{});
    }
    if (delta == DType::float32 && original == DType::uint8) {
        return with_model_type(float{}, uint8_t{});
    }
    if (delta == DType::float16 && original == DType::uint8) {
        return with_model_type(Float16{}, uint8_t{});
    }
    if (delta != original || delta != gradient) return false;
    if (delta == DType::bfloat16) use(BFloat16{}, BFloat16{}, BFloat16{});
    if (delta == DType::float16) use(Float16{}, Float16{}, Float16{});
    return true;
}

// Interleaved operands whose mask has one number a pixel are still a single run.
bool masks_interleaved_pixels(const Shape& shape, const Operands& rest, const Tensor* mask) {
    return present(mask) && shape.channels > 1 && mask->channel == 0 &&
           (mask->pixel == 1 || shape.pixels == 1) && rest.interleaved(shape) &&
           !rest.planar(shape);
}

}  // namespace
}  // namespace udp

int64_t udp_pgd_step_workspace(const udp::Shape* shape, int step, int norm) {
    using namespace udp;
    if (static_cast<Step>(step) != Step::l2 && static_cast<Norm>(norm) != Norm::l2) return 0;
    return partial_sums(*shape, 4) * static_cast<int64_t>(sizeof(double)) +
           2 * shape->images * static_cast<int64_t>(sizeof(float));
}

int udp_pgd_step(const udp::Shape* shape, const udp::Tensor* delta, const udp::Tensor* gradient,
                 const udp::Tensor* original, const udp::Tensor* mask,
                 const udp::Tensor* adversarial, const udp::PerImage* alpha,
                 const udp::PerImage* eps, int step, int norm, int maximize,
                 const udp::Bounds* bounds, int64_t* skipped, void* workspace, void* stream) {
    using namespace udp;
    Arguments a{*delta, *gradient, *original, value_of(mask), *adversarial, *alpha, *eps};
    a.step = static_cast<Step>(step);
    a.norm = static_cast<Norm>(norm);
    a.maximize = maximize != 0;
    a.maps = maps_range(*bounds);
    a.range = range_of(*bounds);
    a.skipped = skipped;
    if (workspace != nullptr) {
        a.partial = static_cast<double*>(workspace);
        a.size = reinterpret_cast<float*>(a.partial + partial_sums(*shape, 4));
        a.scale = a.size + shape->images;
    }

    const Operands rest{delta, gradient, original, adversarial};
    const bool gathers = masks_interleaved_pixels(*shape, rest, mask);
    a.mask_channels = gathers ? static_cast<uint32_t>(shape->channels) : 1;
    const Order order =
        gathers ? Order::whole
                : order_of(*shape, {delta, gradient, original, adversarial, mask}, false);

    int error = cudaSuccess;
    if (a.step == Step::l2) error = norms<false>(*shape, order, a, stream);
    if (error == cudaSuccess && a.norm == Norm::l2) error = norms<true>(*shape, order, a, stream);
    if (error != cudaSuccess) return error;

    if (order == Order::strided) {
        return present(mask)
                   ? stepped<Strided, AnyFloat, AnyPixel, AnyFloat, true>(*shape, order, a, stream)
                   : stepped<Strided, AnyFloat, AnyPixel, AnyFloat, false>(*shape, order, a,
                                                                           stream);
    }
    if (present(mask)) {
        return stepped<Flat<8>, AnyFloat, AnyPixel, AnyFloat, true>(*shape, order, a, stream);
    }
    const auto common = [&](auto d, auto x, auto g) {
        error = stepped<Flat<8>, decltype(d), decltype(x), decltype(g), false>(*shape, order, a,
                                                                               stream);
    };
    if (with_common_types(delta->type, original->type, gradient->type, adversarial->type, common)) {
        return error;
    }
    return stepped<Flat<8>, AnyFloat, AnyPixel, AnyFloat, false>(*shape, order, a, stream);
}
