// denoising_loss: loss and gradient in one pass, the target derived in registers.
#include "image.cuh"
#include "noise.cuh"
#include "reduce.cuh"

namespace udp {
namespace {

// What the prediction is compared with.
enum class Source {
    given,     // an operand: the target itself, or x or the noise where that is the target
    noise,     // drawn
    velocity,  // signal * n - level * x with n drawn; a flow's target is the same with both 1
    stored,    // the same with stored noise
};

struct Arguments {
    Tensor prediction, target, x, gradient;  // target: for Source::stored the noise
    Schedule schedule;
    const int64_t* keys;
    int64_t pixels;
    int is_flow;
    PerImage weight;
    double gradient_scale;  // of (prediction - target), before the weight
    double* partial;
};

template <class Layout, class T, Source kSource>
struct Loss : Arguments {
    static constexpr int kBlocks = kBlocksFor<T>;
    static constexpr bool kAnyHead = false;
    static constexpr bool kDraws = kSource == Source::noise || kSource == Source::velocity;
    static constexpr bool kReads = !kDraws;
    static constexpr bool kMixes = kSource == Source::velocity || kSource == Source::stored;

    struct Body {
        Row<T> prediction, target, x, gradient;
        Noise<Layout, Normals> noise;
        float signal, level, scale;
        double* partial;
        Squares squares;

        __device__ bool aligned(int64_t first) const {
            return is_aligned<Layout::kGroup>(prediction, first) &&
                   is_aligned<Layout::kGroup>(gradient, first) &&
                   (!kReads || is_aligned<Layout::kGroup>(target, first)) &&
                   (!kMixes || is_aligned<Layout::kGroup>(x, first));
        }
        __device__ void move(int64_t elements) {
            prediction.move(elements);
            gradient.move(elements);
            if (kReads) target.move(elements);
            if (kMixes) x.move(elements);
            if (kDraws) noise.move(elements);
        }
        template <class At>
        __device__ __forceinline__ void operator()(At at) {
            constexpr int N = kElements<Layout, At>;
            float difference[N], t[N], clean[N];
            load<Cache::read_only>(prediction, at, difference);
            if constexpr (kMixes) load<Cache::read_only>(x, at, clean);
            if constexpr (kReads) load<Cache::read_only>(target, at, t);
            if constexpr (kDraws) noise.draw(at.first, t);
#pragma unroll
            for (int k = 0; k < N; ++k) {
                if constexpr (kMixes) t[k] = velocity(clean[k], t[k], signal, level);
                difference[k] = difference[k] - t[k];
            }
            drop_missing(at, difference);
            squares.add(difference);
            if (gradient) {
#pragma unroll
                for (int k = 0; k < N; ++k) difference[k] *= scale;
                store(gradient, at, difference);
            }
        }
        // Elements past a row's end had noise drawn for them.
        template <int M>
        static __device__ __forceinline__ void drop_missing(Full, float (&)[M]) {}
        template <class At, int M>
        static __device__ __forceinline__ void drop_missing(At at, float (&difference)[M]) {
#pragma unroll
            for (int k = 0; k < M; ++k) difference[k] = k < at.count ? difference[k] : 0.0f;
        }
        __device__ void end_group() { squares.end_group(); }
        __device__ void end_chunk(int64_t chunk) {
            const double sum = block_sum(squares.total);
            if (threadIdx.x == 0) partial[chunk] = sum;
            squares.total = 0.0;
        }
        __device__ void end_row(int64_t) const {}
    };

    __device__ Body row(int64_t image, int64_t channel) const {
        Body body;
        body.prediction = {prediction, image, channel};
        body.gradient = {gradient, image, channel};
        if (kReads) body.target = {target, image, channel};
        if (kMixes) body.x = {x, image, channel};
        if (kDraws) body.noise = {keys, image, channel, pixels};
        body.signal = body.level = 1.0f;
        if (kMixes && is_flow == 0) {
            const Levels levels = levels_of(schedule, image);
            body.signal = levels.signal;
            body.level = levels.noise;
        }
        // Without a weight the value is 1; a float64 product is worth avoiding on a GeForce card.
        body.scale = static_cast<float>(gradient_scale);
        if (weight.data != nullptr) {
            body.scale = static_cast<float>(gradient_scale * number_of(weight, image));
        }
        body.partial = partial;
        return body;
    }
};

// loss[b] = weight[b] * (sum of image b's partial sums) / elements. A block an image.
__global__ void __launch_bounds__(kThreads)
    loss_of_images(const double* partial, int64_t chunks, int64_t images, PerImage weight,
                   double elements, float* loss) {
    for (int64_t image = blockIdx.y; image < images; image += gridDim.y) {
        const double sum = sum_of_chunks(partial, chunks, image);
        if (threadIdx.x == 0) {
            loss[image] = static_cast<float>(number_of(weight, image) * sum / elements);
        }
    }
}

template <class Layout, class T, Source kSource>
int loss(const Shape& shape, Order order, const Arguments& a, float* losses, void* stream) {
    const Walk walk = walk_over(shape, order, Layout::kGroup);
    const int error = run<Layout>(walk, Loss<Layout, T, kSource>{a}, stream);
    if (error != cudaSuccess) return error;
    return launch_over<loss_of_images>(1, shape.images, kThreads, stream,
                                       static_cast<const double*>(a.partial),
                                       walk.channels * walk.chunks, shape.images, a.weight,
                                       static_cast<double>(shape.channels * shape.pixels), losses);
}

template <class T>
int loss_dense(const Shape& shape, Order order, Source source, const Arguments& a, float* losses,
               void* stream) {
    switch (source) {
        case Source::given:
            return loss<Flat<8>, T, Source::given>(shape, order, a, losses, stream);
        case Source::noise:
            return loss<Flat<16>, T, Source::noise>(shape, order, a, losses, stream);
        case Source::velocity:
            return loss<Flat<16>, T, Source::velocity>(shape, order, a, losses, stream);
        case Source::stored:
            return loss<Flat<8>, T, Source::stored>(shape, order, a, losses, stream);
    }
    return cudaErrorInvalidValue;
}

// Any types, in a layout that is rare enough not to deserve kernels for each.
template <class Layout>
int loss_drawn(const Shape& shape, Order order, Source source, const Arguments& a, float* losses,
               void* stream) {
    return source == Source::noise
               ? loss<Layout, AnyFloat, Source::noise>(shape, order, a, losses, stream)
               : loss<Layout, AnyFloat, Source::velocity>(shape, order, a, losses, stream);
}
template <class Layout>
int loss_read(const Shape& shape, Order order, Source source, const Arguments& a, float* losses,
              void* stream) {
    return source == Source::given
               ? loss<Layout, AnyFloat, Source::given>(shape, order, a, losses, stream)
               : loss<Layout, AnyFloat, Source::stored>(shape, order, a, losses, stream);
}

}  // namespace
}  // namespace udp

int64_t udp_denoising_loss_workspace(const udp::Shape* shape) {
    return udp::partial_sums(*shape, 4) * static_cast<int64_t>(sizeof(double));
}

int udp_denoising_loss(const udp::Shape* shape, const udp::Tensor* prediction,
                       const udp::Tensor* target, const udp::Tensor* x,
                       const udp::Schedule* schedule, const udp::Tensor* noise, const int64_t* keys,
                       const udp::PerImage* weight, int kind, const udp::Tensor* gradient,
                       double gradient_scale, float* loss, void* workspace, void* stream) {
    using namespace udp;
    const Target wanted = static_cast<Target>(kind);
    Source source = Source::given;
    if (wanted == Target::sample) {
        target = x;
    } else if (wanted == Target::epsilon) {
        target = noise;
        if (keys != nullptr) source = Source::noise;
    } else if (wanted != Target::given) {
        target = noise;
        source = keys != nullptr ? Source::velocity : Source::stored;
    }
    if (source == Source::given || source == Source::noise) x = nullptr;
    const bool draws = source == Source::noise || source == Source::velocity;
    if (draws) target = nullptr;

    Arguments a{*prediction, value_of(target), value_of(x), value_of(gradient)};
    if (schedule != nullptr) a.schedule = *schedule;
    a.keys = keys;
    a.pixels = shape->pixels;
    a.is_flow = wanted == Target::flow;
    a.weight = weight == nullptr ? PerImage{nullptr, 0, 1.0f} : *weight;
    a.gradient_scale = gradient_scale * 2.0 / static_cast<double>(shape->channels * shape->pixels);
    a.partial = static_cast<double*>(workspace);

    const Operands operands{prediction, target, x, gradient};
    const Order order = order_of(*shape, operands, draws);
    if (order == Order::interleaved) {
        return shape->channels == 3
                   ? loss_drawn<Interleaved<3>>(*shape, order, source, a, loss, stream)
                   : loss_drawn<Interleaved<4>>(*shape, order, source, a, loss, stream);
    }
    if (order == Order::strided) {
        return draws ? loss_drawn<Strided>(*shape, order, source, a, loss, stream)
                     : loss_read<Strided>(*shape, order, source, a, loss, stream);
    }
    if (!same_type(operands)) {
        return draws ? loss_drawn<Flat<8>>(*shape, order, source, a, loss, stream)
                     : loss_read<Flat<8>>(*shape, order, source, a, loss, stream);
    }
    return with_float_type(prediction->type, [&](auto element) {
        return loss_dense<decltype(element)>(*shape, order, source, a, loss, stream);
    });
}
