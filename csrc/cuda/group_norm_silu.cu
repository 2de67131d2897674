// group_norm_silu and its gradients, three launches each: what each channel's pieces amount to,
// what that makes of each group, and the result. Nothing else is saved for the backward pass than x
// and two floats a group.
#include "../math/group_norm.h"
#include "channels.cuh"
#include "reduce.cuh"

namespace udp {
namespace {

struct Sigmoid {
    float value, rest;  // 1 / (1 + e^-u), and 1 less that without its cancellation
};

// math/group_norm.h's by the special-function unit, whose two instructions are a third of what the
// polynomial takes: within 4 units in the last place. The unit raises 2 to a power within 2^-22,
// but the power, -u log2(e), is rounded, an error that counts |u| times; so what was rounded off
// follows as a factor. No 16-bit type would notice: those do without.
template <class T>
__device__ __forceinline__ Sigmoid quick_sigmoid(float u) {
    constexpr float kLog2E = 0x1.715476p+0f, kLog2ERest = 0x1.4ae0cp-26f, kLn2 = 0x1.62e43p-1f;
    float v = ::fmaxf(u, -87.0f);  // or e^-u would be infinite; a NaN returns with u
    // Of infinity, whose e is 0 as well, what was rounded off would be none.
    if constexpr (sizeof(T) == 4) v = ::fminf(v, 128.0f);
    const float power = v * -kLog2E;
    float e = exp2_approx(power);
    if constexpr (sizeof(T) == 4) {
        e = fma(e * kLn2, fma(v, -kLog2ERest, fma(v, -kLog2E, -power)), e);
    }
    const float s = reciprocal_approx(1.0f + e);
    return {s, e * s};
}

template <class T, bool kSilu>
__device__ __forceinline__ float activated(float u) {
    return kSilu ? u * quick_sigmoid<T>(u).value : u;
}
// The gradient before the activation: grad times SiLU's slope, s (1 + u (1 - s)).
template <class T, bool kSilu>
__device__ __forceinline__ float through(float grad, float u) {
    if constexpr (!kSilu) return grad;
    const Sigmoid s = quick_sigmoid<T>(u);
    return grad * (s.value * fma(u, s.rest, 1.0f));
}

// What the arithmetic of a few neighbouring channels needs; scale = rstd * weight.
struct Normed {
    const float *mean, *rstd;  // [images, groups]
    Vector weight, bias;
    uint32_t channels, group;  // group: channels of one

    template <int N>
    struct Numbers {
        float mean[N], scale[N], bias[N];
    };
    // body(k, index) for the group of each of N channels
    template <int N, class Body>
    __device__ __forceinline__ void for_groups_of(int64_t image, uint32_t channel,
                                                  Body body) const {
        const uint32_t groups = channels / group;
        uint32_t g = channel / group, within = channel - g * group;
        int64_t index = image * groups + g;
#pragma unroll
        for (int k = 0; k < N; ++k) {
            body(k, index);
            if (++within == group && g + 1 < groups) ++g, ++index, within = 0;
        }
    }
    template <int N>
    __device__ __forceinline__ Numbers<N> at(int64_t image, uint32_t channel) const {
        Numbers<N> c;
        load_channels(weight, channel, channels, 1.0f, c.scale);
        load_channels(bias, channel, channels, 0.0f, c.bias);
        for_groups_of<N>(image, channel, [&](int k, int64_t index) {
            c.mean[k] = load_global<Cache::read_only>(mean + index);
            c.scale[k] *= load_global<Cache::read_only>(rstd + index);
        });
        return c;
    }
};

// Mean and sum of squared distances from it, of each channel's pieces. A thread measures from the
// mean of its first few elements. Since these are among those it adds up, the square of their
// distance from the mean of all is at most the variance times the number of its turns, or twice
// that: so much, 64 roundings, may cancel, whatever the data. Pairs are merged by Chan, Golub and
// LeVeque's formula. Their means are told as distances from the group's first element: of a mean
// far from zero a float would leave too little of the distances between pieces.
template <class Element, int kC>
struct Moments {
    using T = Element;
    static constexpr int kChannels = kC, kBlocks = 8, kAccumulators = kC == 1 ? 2 : kC;
    static constexpr bool kSums = true, kCounts = true;
    Tensor x;
    uint32_t channels, group;  // group: channels of one
    float2* partial;

    struct Body {
        Row<T> x;
        float from[kC], sum[kAccumulators], square[kAccumulators], count;

        __device__ bool aligned(int64_t first) const { return is_aligned<kWide<T>>(x, first); }
        __device__ void move(int64_t elements) { x.move(elements); }
        template <class At>
        __device__ __forceinline__ void begin(At at) {
            constexpr int N = kAtOnce<Moments, At>;
            float value[N];
            load<Cache::read_only>(x, at, value);
            float total = 0.0f, n = 0.0f;
#pragma unroll
            for (int k = 0; k < N; ++k) {
                if (kC > 1) {
                    from[k % kC] = value[k];
                } else if (k < 4 && exists(at, k)) {  // as many by either way
                    total += value[k];
                    n += 1.0f;
                }
            }
            if (kC == 1) from[0] = total / n;
        }
        template <class At>
        __device__ __forceinline__ void operator()(At at) {
            constexpr int N = kAtOnce<Moments, At>;
            float value[N];
            load<Cache::read_only>(x, at, value);
#pragma unroll
            for (int k = 0; k < N; ++k) {
                const float d = exists(at, k) ? value[k] - from[k % kC] : 0.0f;
                sum[k % kAccumulators] += d;
                square[k % kAccumulators] = fma(d, d, square[k % kAccumulators]);
            }
            count += counted(at);
        }
        static __device__ __forceinline__ float counted(Full) { return kC == 1 ? kWide<T> : 1; }
        static __device__ __forceinline__ float counted(Part at) { return kC == 1 ? at.count : 1; }
    };

    __device__ __forceinline__ Body at(int64_t image, uint32_t channel) const {
        Body body;
        body.x = {x, image, channel};
#pragma unroll
        for (int k = 0; k < kAccumulators; ++k) {
            body.from[k % kC] = body.sum[k] = body.square[k] = 0.0f;
        }
        body.count = 0.0f;
        return body;
    }
    __device__ __forceinline__ float2 pair(const Body& body, int64_t image, uint32_t channel,
                                           int k) const {
        if (body.count == 0.0f) return {0.0f, 0.0f};
        const uint32_t c = channel + k < channels ? channel + k : channels - 1;
        const float origin = first_of(x, image, c - c % group), from = body.from[k % kC];
        float s = body.sum[k], q = body.square[k];
        if (kC == 1) s += body.sum[kAccumulators - 1], q += body.square[kAccumulators - 1];
        const float mean = s / body.count, rest = fma(-s, mean, q);
        return {from - origin + mean, rest < 0.0f ? 0.0f : rest};  // NaN stays
    }
    static __device__ __forceinline__ float first_of(const Tensor& x, int64_t image, uint32_t c) {
        const T* data = static_cast<const T*>(x.data) + image * x.image + c * x.channel;
        return widened(load_global<Cache::read_only>(data));
    }
    // share: of the other's count in both.
    static __device__ __forceinline__ void merge(float2& mine, float count, float2 other,
                                                 float share) {
        const float apart = other.x - mine.x;
        mine.x = fma(apart, share, mine.x);
        mine.y += fma(apart * apart, count * share, other.y);
    }
};

// y = act(u).
template <class Element, int kC, bool kSilu>
struct Normalise : Normed {
    using T = Element;
    static constexpr int kChannels = kC, kBlocks = kC == 1 ? 8 : 6;
    static constexpr bool kSums = false;
    Tensor x, y;

    struct Body {
        Row<T> x, y;
        Numbers<kC> c;

        __device__ bool aligned(int64_t first) const {
            return is_aligned<kWide<T>>(x, first) && is_aligned<kWide<T>>(y, first);
        }
        __device__ void move(int64_t elements) {
            x.move(elements);
            y.move(elements);
        }
        template <class At>
        __device__ __forceinline__ void operator()(At at) const {
            constexpr int N = kAtOnce<Normalise, At>;
            float value[N];
            load<Cache::read_only>(x, at, value);
#pragma unroll
            for (int k = 0; k < N; ++k) {
                const float d = value[k] - c.mean[k % kC];
                value[k] = activated<T, kSilu>(normalised(d, c.scale[k % kC], c.bias[k % kC]));
            }
            store(y, at, value);
        }
    };
    __device__ __forceinline__ Body at(int64_t image, uint32_t channel) const {
        return {{x, image, channel}, {y, image, channel}, Normed::at<kC>(image, channel)};
    }
};

// Of each channel's pieces: the sums of h and of h * (x - mean), where h is the gradient before the
// activation.
template <class Element, int kC, bool kSilu>
struct GradientSums : Normed {
    using T = Element;
    static constexpr int kChannels = kC, kBlocks = kC == 1 ? 8 : 5;
    static constexpr int kAccumulators = kC == 1 ? 2 : kC;
    static constexpr bool kSums = true, kCounts = false;
    Tensor grad, x;
    float2* partial;

    struct Body {
        Row<T> grad, x;
        Numbers<kC> c;
        float sum[kAccumulators], along[kAccumulators];
        float count = 0.0f;  // which does not matter to sums

        __device__ bool aligned(int64_t first) const {
            return is_aligned<kWide<T>>(grad, first) && is_aligned<kWide<T>>(x, first);
        }
        __device__ void move(int64_t elements) {
            grad.move(elements);
            x.move(elements);
        }
        template <class At>
        __device__ __forceinline__ void begin(At) const {}
        template <class At>
        __device__ __forceinline__ void operator()(At at) {
            constexpr int N = kAtOnce<GradientSums, At>;
            float g[N], value[N];
            load<Cache::read_only>(grad, at, g);
            load<Cache::read_only>(x, at, value);
#pragma unroll
            for (int k = 0; k < N; ++k) {
                const float d = value[k] - c.mean[k % kC];
                const float h =
                    through<T, kSilu>(g[k], normalised(d, c.scale[k % kC], c.bias[k % kC]));
                if (!exists(at, k)) continue;
                sum[k % kAccumulators] += h;
                along[k % kAccumulators] = fma(h, d, along[k % kAccumulators]);
            }
        }
    };
    __device__ __forceinline__ Body at(int64_t image, uint32_t channel) const {
        Body body;
        body.grad = {grad, image, channel};
        body.x = {x, image, channel};
        body.c = Normed::at<kC>(image, channel);
#pragma unroll
        for (int k = 0; k < kAccumulators; ++k) body.sum[k] = body.along[k] = 0.0f;
        return body;
    }
    __device__ __forceinline__ float2 pair(const Body& body, int64_t, uint32_t, int k) const {
        if (kC > 1) return {body.sum[k], body.along[k]};
        return {body.sum[0] + body.sum[kAccumulators - 1],
                body.along[0] + body.along[kAccumulators - 1]};
    }
    static __device__ __forceinline__ void merge(float2& mine, float, float2 other, float) {
        mine.x += other.x;
        mine.y += other.y;
    }
};

// dx, from h and what its sums over the group are.
template <class Element, int kC, bool kSilu>
struct Gradient : Normed {
    using T = Element;
    static constexpr int kChannels = kC, kBlocks = kC == 1 ? 8 : 5;
    static constexpr bool kSums = false;
    Tensor grad, x, dx;
    const float2* terms;  // (pull, tilt) of each group

    struct Body {
        Row<T> grad, x, dx;
        Numbers<kC> c;
        float pull[kC], tilt[kC];

        __device__ bool aligned(int64_t first) const {
            return is_aligned<kWide<T>>(grad, first) && is_aligned<kWide<T>>(x, first) &&
                   is_aligned<kWide<T>>(dx, first);
        }
        __device__ void move(int64_t elements) {
            grad.move(elements);
            x.move(elements);
            dx.move(elements);
        }
        template <class At>
        __device__ __forceinline__ void operator()(At at) const {
            constexpr int N = kAtOnce<Gradient, At>;
            float g[N], value[N];
            load<Cache::read_only>(grad, at, g);
            load<Cache::read_only>(x, at, value);
#pragma unroll
            for (int k = 0; k < N; ++k) {
                const float d = value[k] - c.mean[k % kC];
                const float h =
                    through<T, kSilu>(g[k], normalised(d, c.scale[k % kC], c.bias[k % kC]));
                value[k] = group_norm_dx(h, d, c.scale[k % kC], pull[k % kC], tilt[k % kC]);
            }
            store(dx, at, value);
        }
    };
    __device__ __forceinline__ Body at(int64_t image, uint32_t channel) const {
        Body body;
        body.grad = {grad, image, channel};
        body.x = {x, image, channel};
        body.dx = {dx, image, channel};
        body.c = Normed::at<kC>(image, channel);
        for_groups_of<kC>(image, channel, [&](int k, int64_t index) {
            const float2 term = load_global<Cache::read_only>(terms + index);
            body.pull[k] = term.x;
            body.tilt[k] = term.y;
        });
        return body;
    }
};

// --- second stages: a block a group, or a channel ------------------------------------------------

// The partial results of a group are neighbours: [images, channels, chunks].
struct Groups {
    Channels walk;
    uint32_t group;  // channels of one

    __device__ int64_t count() const { return walk.images * (walk.channels / group); }
    __device__ uint32_t entries() const { return group * walk.chunks; }
    __device__ double elements() const { return static_cast<double>(group) * walk.pixels; }
    // pixels of a channel's piece
    __device__ double pixels(uint32_t chunk) const {
        const int64_t left = walk.pixels - int64_t{chunk} * walk.chunk;
        return static_cast<double>(left < walk.chunk ? left : int64_t{walk.chunk});
    }
};

// mean and 1 / sqrt(var + eps) of each group, in float64 from its pieces'.
__global__ void __launch_bounds__(kThreads)
    group_moments(const Groups groups, const Tensor x, const float2* partial, double eps,
                  float* mean, float* rstd) {
    const uint32_t entries = groups.entries(), in_image = groups.walk.channels / groups.group;
    for (int64_t g = blockIdx.x; g < groups.count(); g += gridDim.x) {
        const float2* of_group = partial + g * entries;
        double sum = 0.0;
        for (uint32_t e = threadIdx.x; e < entries; e += kThreads) {
            sum += groups.pixels(e % groups.walk.chunks) * of_group[e].x;
        }
        const double middle = block_sum(sum) / groups.elements();
        double squares = 0.0;
        for (uint32_t e = threadIdx.x; e < entries; e += kThreads) {
            const double apart = of_group[e].x - middle;
            squares += of_group[e].y + groups.pixels(e % groups.walk.chunks) * apart * apart;
        }
        const double variance = block_sum(squares) / groups.elements();
        if (threadIdx.x == 0) {
            const int64_t image = g / in_image;
            const uint32_t c = static_cast<uint32_t>(g - image * in_image) * groups.group;
            double origin = 0.0;
            with_type<false>(x.type, [&](auto element) {
                origin = Moments<decltype(element), 1>::first_of(x, image, c);
            });
            mean[g] = static_cast<float>(origin + middle);
            rstd[g] = static_cast<float>(1.0 / ::sqrt(variance + eps));
        }
    }
}

// Of one group, (pull, tilt) from the pieces' sums. Weighted as a single element is, so that one
// alone in its group has no gradient at all.
__device__ inline void terms_of_group(const Groups& groups, const float2* partial,
                                      const Normed& normed, int64_t g, float2* terms) {
    const uint32_t entries = groups.entries();
    const uint32_t in_image = groups.walk.channels / groups.group;
    const int64_t image = g / in_image;
    const uint32_t channel = static_cast<uint32_t>(g - image * in_image) * groups.group;
    double sum = 0.0, along = 0.0;
    for (uint32_t e = threadIdx.x; e < entries; e += kThreads) {
        const uint32_t c = channel + e / groups.walk.chunks;
        const double scale = normed.at<1>(image, c).scale[0];
        const float2 pair = partial[g * entries + e];
        sum += scale * pair.x;
        along += scale * pair.y;
    }
    sum = block_sum(sum);
    along = block_sum(along);
    if (threadIdx.x == 0) {
        const double r = normed.rstd[g];
        terms[g] = {static_cast<float>(sum / groups.elements()),
                    static_cast<float>(r * r * along / groups.elements())};
    }
}

__device__ inline void store_channel(const Vector& to, uint32_t channel, double value) {
    if (to.data == nullptr) return;
    with_type<false>(to.type, [&](auto element) {
        using T = decltype(element);
        static_cast<T*>(to.data)[channel] = narrowed<T>(static_cast<float>(value));
    });
}

// Of one channel, the gradients of its weight and bias: the pieces' sums over all images.
__device__ inline void gradients_of_channel(const Groups& groups, const float2* partial,
                                            const float* rstd, uint32_t c, const Vector& dweight,
                                            const Vector& dbias) {
    const uint32_t channels = groups.walk.channels, chunks = groups.walk.chunks;
    double sum = 0.0, along = 0.0;
    for (int64_t image = threadIdx.x / 4; image < groups.walk.images; image += kThreads / 4) {
        const double r = rstd[image * (channels / groups.group) + c / groups.group];
        const float2* pairs = partial + (image * channels + c) * chunks;
        for (uint32_t chunk = threadIdx.x % 4; chunk < chunks; chunk += 4) {
            sum += pairs[chunk].x;
            along += r * pairs[chunk].y;
        }
    }
    sum = block_sum(sum);
    along = block_sum(along);
    if (threadIdx.x == 0) {
        store_channel(dweight, c, along);
        store_channel(dbias, c, sum);
    }
}

// A block a group, of which there are `of_groups` (0: dx is not wanted), then a block a channel.
__global__ void __launch_bounds__(kThreads)
    gradient_terms(const Groups groups, const float2* partial, const Normed normed,
                   int64_t of_groups, int64_t blocks, float2* terms, Vector dweight, Vector dbias) {
    for (int64_t b = blockIdx.x; b < blocks; b += gridDim.x) {
        if (b < of_groups) {
            terms_of_group(groups, partial, normed, b, terms);
        } else {
            gradients_of_channel(groups, partial, normed.rstd, static_cast<uint32_t>(b - of_groups),
                                 dweight, dbias);
        }
    }
}

// --- on the host ---------------------------------------------------------------------------------

Vector value_of(const Vector* v) {
    return v == nullptr ? Vector{} : *v;
}

// Runs call(T{}, kC{}) for the element type and the layout, which all operands share.
template <class Call>
int in_form(const Shape& shape, std::initializer_list<const Tensor*> operands, Call call) {
    bool planes = true, pixels = true;
    const DType type = (*operands.begin())->type;
    for (const Tensor* t : operands) {
        planes = planes && by_planes(shape, *t);
        pixels = pixels && by_pixels(shape, *t);
        if (t->type != type) return cudaErrorInvalidValue;
    }
    if (!is_walkable(shape) || (!planes && !pixels)) return cudaErrorInvalidValue;
    const auto typed = [&](auto element) {
        using T = decltype(element);
        if (pixels) return call(element, std::integral_constant<int, kWide<T>>{});
        return call(element, std::integral_constant<int, 1>{});
    };
    return with_float_type(type, typed);
}

// The most partial results that any form of the op writes.
int64_t partials(const Shape& s) {
    int64_t most = 0;
    for (const int group : {4, 8}) {
        for (const bool planes : {false, true}) {
            most = std::max(most, int64_t{walk_channels(s, planes, group).chunks});
        }
    }
    return s.images * s.channels * most;
}

}  // namespace
}  // namespace udp

int64_t udp_group_norm_silu_workspace(const udp::Shape* shape, int64_t groups) {
    return (udp::partials(*shape) + shape->images * groups) * static_cast<int64_t>(sizeof(float2));
}

int udp_group_norm_silu(const udp::Shape* shape, int64_t groups, const udp::Tensor* x,
                        const udp::Vector* weight, const udp::Vector* bias, double eps, int silu,
                        const udp::Tensor* y, float* mean, float* rstd, void* workspace,
                        void* stream) {
    using namespace udp;
    return in_form(*shape, {x, y}, [&](auto element, auto per_thread) -> int {
        using T = decltype(element);
        constexpr int kC = decltype(per_thread)::value;
        const Channels walk = walk_channels(*shape, kC == 1, kWide<T>);
        const Groups finish{walk, static_cast<uint32_t>(shape->channels / groups)};
        float2* partial = static_cast<float2*>(workspace);
        int error =
            run_channels(walk, Moments<T, kC>{*x, walk.channels, finish.group, partial}, stream);
        if (error != cudaSuccess) return error;
        error = launch_over<group_moments>(shape->images * groups, 1, kThreads, stream, finish, *x,
                                           partial, eps, mean, rstd);
        if (error != cudaSuccess) return error;
        const Normed norm{mean,           rstd,          value_of(weight),
                          value_of(bias), walk.channels, finish.group};
        return silu != 0 ? run_channels(walk, Normalise<T, kC, true>{norm, *x, *y}, stream)
                         : run_channels(walk, Normalise<T, kC, false>{norm, *x, *y}, stream);
    });
}

int udp_group_norm_silu_backward(const udp::Shape* shape, int64_t groups,
                                 const udp::Tensor* gradient, const udp::Tensor* x,
                                 const float* mean, const float* rstd, const udp::Vector* weight,
                                 const udp::Vector* bias, int silu, const udp::Tensor* dx,
                                 const udp::Vector* dweight, const udp::Vector* dbias,
                                 void* workspace, void* stream) {
    using namespace udp;
    const Tensor* last = present(dx) ? dx : x;
    return in_form(*shape, {gradient, x, last}, [&](auto element, auto per_thread) -> int {
        using T = decltype(element);
        constexpr int kC = decltype(per_thread)::value;
        const Channels walk = walk_channels(*shape, kC == 1, kWide<T>);
        const Groups finish{walk, static_cast<uint32_t>(shape->channels / groups)};
        float2* terms = static_cast<float2*>(workspace);
        float2* partial = terms + shape->images * groups;
        const Normed norm{mean,           rstd,          value_of(weight),
                          value_of(bias), walk.channels, finish.group};
        int error =
            silu != 0 ? run_channels(walk, GradientSums<T, kC, true>{norm, *gradient, *x, partial},
                                     stream)
                      : run_channels(walk, GradientSums<T, kC, false>{norm, *gradient, *x, partial},
                                     stream);
        if (error != cudaSuccess) return error;
        const Vector of_weight = value_of(dweight), of_bias = value_of(dbias);
        const bool parameters = of_weight.data != nullptr || of_bias.data != nullptr;
        const int64_t of_groups = present(dx) ? shape->images * groups : 0;
        const int64_t blocks = of_groups + (parameters ? shape->channels : 0);
        error = launch_over<gradient_terms>(blocks, 1, kThreads, stream, finish, partial, norm,
                                            of_groups, blocks, terms, of_weight, of_bias);
        if (error != cudaSuccess || !present(dx)) return error;
        return silu != 0
                   ? run_channels(walk, Gradient<T, kC, true>{norm, *gradient, *x, *dx, terms},
                                  stream)
                   : run_channels(walk, Gradient<T, kC, false>{norm, *gradient, *x, *dx, terms},
                                  stream);
    });
}
