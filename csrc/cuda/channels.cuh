// How a batch is walked by an op that has numbers for each channel, and perhaps sums each channel
// up. Two layouts, one body: where a channel's pixels are neighbours, some threads of a warp serve
// a piece of one channel; where a pixel's channels are, a thread keeps to its few channels and goes
// from pixel to pixel. So what belongs to a channel is in registers in either.
//
// The grid's y goes over images, its x over the units of one: pieces of channels, or of slices of
// some channels. How they are cut depends on an image's shape alone: the bits of a sum do not
// depend on the GPU or the batch.
//
// An Op has a type T of the elements, kChannels (1, or as many as a group has elements) and
// kBlocks, and Op::at(image, channel) makes the body, with
//   aligned(first), move(elements), operator()(at)   as in walk.cuh
// and, where kSums, what the sums are made of:
//   begin(at)      only to look at the first of a thread's elements, before any
//   count          pixels of each channel that the thread has seen, if kCounts
//   Op::pair(body, image, channel, k)   what the thread has to say of its k-th channel
//   Op::merge(...)                      two such pairs to one
#pragma once

#include "walk.cuh"

namespace udp {

// Elements of a 16-byte access.
template <class T>
constexpr int kWide = 16 / sizeof(T);

struct Channels {
    int64_t images, pixels;
    uint32_t channels;
    uint32_t lanes;          // threads side by side: along a channel, or across a slice
    uint32_t chunk, chunks;  // pixels of a piece, pieces of a channel
    uint32_t units;          // of an image
};

// The k-th and following channels' numbers; past the last one, the last one's again.
template <int N>
__device__ __forceinline__ void load_channels(const Vector& from, uint32_t first, uint32_t end,
                                              float absent, float (&out)[N]) {
#pragma unroll
    for (int k = 0; k < N; ++k) out[k] = absent;
    if (from.data == nullptr) return;
    with_type<false>(from.type, [&](auto element) {
        const auto* data = static_cast<const decltype(element)*>(from.data);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            const uint32_t c = first + k < end ? first + k : end - 1;
            out[k] = widened(load_global<Cache::read_only>(data + c));
        }
    });
}

// Whether the k-th element of a group exists.
__device__ __forceinline__ bool exists(Full, int) {
    return true;
}
__device__ __forceinline__ bool exists(Part at, int k) {
    return k < at.count;
}

// Elements that a body does at once.
template <class Op, class At>
constexpr int kAtOnce =
    std::is_same<At, Full>::value || Op::kChannels > 1 ? kWide<typename Op::T> : 4;

// Folds the pairs of the threads whose lanes differ in the bits [from, to) of their number.
template <class Op, class Body>
__device__ __forceinline__ void fold_lanes(float2 (&pairs)[Op::kChannels], Body& body,
                                           uint32_t from, uint32_t to) {
    for (uint32_t offset = to / 2; offset >= from; offset /= 2) {
        float all = 0.0f, share = 0.0f;
        if constexpr (Op::kCounts) {
            const float count = __shfl_xor_sync(0xffffffffu, body.count, offset);
            all = body.count + count;
            share = count > 0.0f ? count / all : 0.0f;
        }
#pragma unroll
        for (int k = 0; k < Op::kChannels; ++k) {
            const float2 other{__shfl_xor_sync(0xffffffffu, pairs[k].x, offset),
                               __shfl_xor_sync(0xffffffffu, pairs[k].y, offset)};
            Op::merge(pairs[k], body.count, other, share);
        }
        body.count = all;
    }
}

// A channel's pixels are neighbours. `lanes` threads, a power of two up to a warp, serve a piece.
template <class Op>
__global__ void __launch_bounds__(kThreads, Op::kBlocks)
    over_planes(const Channels walk, const Op op) {
    using T = typename Op::T;
    constexpr uint32_t kGroup = kWide<T>;
    const uint32_t lane = threadIdx.x % walk.lanes, each = kThreads / walk.lanes;
    const uint32_t step = walk.lanes * kGroup;
    for (int64_t image = blockIdx.y; image < walk.images; image += gridDim.y) {
        for (uint32_t first = blockIdx.x * each; first < walk.units; first += gridDim.x * each) {
            const uint32_t wanted = first + threadIdx.x / walk.lanes;
            const bool idle = wanted >= walk.units;  // but takes part in the shuffles
            const uint32_t unit = idle ? walk.units - 1 : wanted;
            const uint32_t channel = unit / walk.chunks, chunk = unit - channel * walk.chunks;
            auto body = op.at(image, channel);
            // Elements before the first aligned one. A sum's order must not depend on an address:
            // there it is all or nothing.
            int64_t head = head_of<Flat<static_cast<int>(kGroup)>, !Op::kSums>(body, walk.pixels);
            const bool wide = head < walk.pixels;
            if (!wide) head = 0;
            const uint32_t before = chunk == 0 && !idle ? static_cast<uint32_t>(head) : 0;
            for (uint32_t k = 4 * lane; k < before; k += 4 * walk.lanes) {
                body(Part{k, static_cast<int>(before - k < 4 ? before - k : 4)});
            }
            const int64_t start = head + int64_t{chunk} * walk.chunk, left = walk.pixels - start;
            const uint32_t n =
                left <= 0 || idle
                    ? 0
                    : static_cast<uint32_t>(left < walk.chunk ? left : int64_t{walk.chunk});
            body.move(start);
            uint32_t i = lane * kGroup;
            if constexpr (Op::kSums) {
                if (wide && i + kGroup <= n) {
                    body.begin(Full{i});
                } else if (i < n) {
                    body.begin(Part{i, static_cast<int>(n - i < 4 ? n - i : 4)});
                }
            }
            if (wide) {
                for (; i + kGroup <= n; i += step) body(Full{i});
            }
            for (; i < n; i += step) {
                const uint32_t end = n - i < kGroup ? n : i + kGroup;
#pragma unroll 1
                for (uint32_t k = i; k < end; k += 4) {
                    body(Part{k, static_cast<int>(end - k < 4 ? end - k : 4)});
                }
            }
            if constexpr (Op::kSums) {
                float2 pairs[1] = {op.pair(body, image, channel, 0)};
                fold_lanes<Op>(pairs, body, 1, walk.lanes);
                if (lane == 0 && !idle) {
                    store_global(op.partial + image * walk.units + unit, pairs[0]);
                }
            }
        }
    }
}

// A pixel's channels are neighbours. A slice is `lanes` threads wide, a power of two up to eight,
// and a block serves a piece of one.
template <class Op>
__global__ void __launch_bounds__(kThreads, Op::kBlocks)
    over_pixels(const Channels walk, const Op op) {
    using T = typename Op::T;
    constexpr uint32_t kGroup = kWide<T>, kWarps = kThreads / 32, kMost = 8 * kGroup;
    const uint32_t lane = threadIdx.x % walk.lanes, row = threadIdx.x / walk.lanes;
    const uint32_t rows = kThreads / walk.lanes, step = rows * walk.channels;
    for (int64_t image = blockIdx.y; image < walk.images; image += gridDim.y) {
        for (uint32_t unit = blockIdx.x; unit < walk.units; unit += gridDim.x) {
            const uint32_t slice = unit / walk.chunks, chunk = unit - slice * walk.chunks;
            const uint32_t channel = (slice * walk.lanes + lane) * kGroup;
            const uint32_t there = walk.channels - channel;
            const int64_t start = int64_t{chunk} * walk.chunk, left = walk.pixels - start;
            const uint32_t n = static_cast<uint32_t>(left < walk.chunk ? left : walk.chunk);
            auto body = op.at(image, channel);
            body.move(start * walk.channels);
            const bool wide = walk.channels % kGroup == 0 && body.aligned(0);
            uint32_t i = row * walk.channels;
            const uint32_t end = n * walk.channels;
            const int few = static_cast<int>(there < kGroup ? there : kGroup);
            if constexpr (Op::kSums) {
                if (i < end && wide) body.begin(Full{i});
                if (i < end && !wide) body.begin(Part{i, few});
            }
            if (wide) {
                for (; i < end; i += step) body(Full{i});
            }
#pragma unroll 1
            for (; i < end; i += step) body(Part{i, few});
            if constexpr (Op::kSums) {
                __shared__ float2 of_warps[kWarps][kMost];
                __shared__ float counts[kWarps];
                float2 pairs[kGroup];
#pragma unroll
                for (uint32_t k = 0; k < kGroup; ++k) {
                    pairs[k] = op.pair(body, image, channel, k);
                }
                fold_lanes<Op>(pairs, body, walk.lanes, 32);
                if (threadIdx.x % 32 < walk.lanes) {
#pragma unroll
                    for (uint32_t k = 0; k < kGroup; ++k) {
                        store_shared(&of_warps[threadIdx.x / 32][k * walk.lanes + lane], pairs[k]);
                    }
                }
                if (threadIdx.x % 32 == 0) counts[threadIdx.x / 32] = body.count;
                __syncthreads();
                const uint32_t k = threadIdx.x / walk.lanes;  // now of this many-th channel
                if (k < static_cast<uint32_t>(few)) {
                    float2 pair = load_shared(&of_warps[0][threadIdx.x]);
                    float count = counts[0];
#pragma unroll
                    for (uint32_t w = 1; w < kWarps; ++w) {
                        const float more = counts[w], all = count + more;
                        Op::merge(pair, count, load_shared(&of_warps[w][threadIdx.x]),
                                  more > 0.0f ? more / all : 0.0f);
                        count = all;
                    }
                    const int64_t c = image * walk.channels + channel + k;
                    store_global(op.partial + c * walk.chunks + chunk, pair);
                }
                __syncthreads();  // `of_warps` may be written again
            }
        }
    }
}

// --- on the host ---------------------------------------------------------------------------------

// The most turns that a thread makes: what bounds the cancellation in its sums.
constexpr uint32_t kTurns = 32;

inline bool by_pixels(const Shape& s, const Tensor& t) {
    return t.channel == 1 && (t.pixel == s.channels || s.pixels == 1) && s.channels > 1;
}
inline bool by_planes(const Shape& s, const Tensor& t) {
    return (t.pixel == 1 || s.pixels == 1) && (t.channel == s.pixels || s.channels == 1);
}

// Pieces as long as leave one image enough of them to fill a GPU: some thousand warps.
inline Channels walk_channels(const Shape& s, bool planes, int group) {
    Channels walk{};
    walk.images = s.images;
    walk.pixels = s.pixels;
    walk.channels = static_cast<uint32_t>(s.channels);
    int64_t slices = s.channels, tile = 0, enough = 0;
    if (planes) {
        walk.lanes = 1;
        while (walk.lanes < 32 && walk.lanes * group < s.pixels) walk.lanes *= 2;
        tile = walk.lanes * group;
        enough = 1024 * 32 / walk.lanes;
    } else {
        const int64_t across = (s.channels + group - 1) / group;
        walk.lanes = 1;
        while (walk.lanes < 8 && across % (2 * walk.lanes) == 0) walk.lanes *= 2;
        slices = across / walk.lanes;
        tile = kThreads / walk.lanes;
        enough = 256;
    }
    const auto pieces = [&](int64_t chunk) { return (s.pixels + chunk - 1) / chunk; };
    int64_t chunk = tile;
    while (chunk < kTurns * tile && chunk < s.pixels && slices * pieces(2 * chunk) >= enough &&
           2 * chunk * s.channels < int64_t{1} << 31) {
        chunk *= 2;
    }
    walk.chunk = static_cast<uint32_t>(chunk);
    walk.chunks = static_cast<uint32_t>(pieces(chunk));
    walk.units = static_cast<uint32_t>(slices * walk.chunks);
    return walk;
}

// Beyond it the number of a unit, or an offset within one, might not fit 32 bits.
inline bool is_walkable(const Shape& s) {
    return s.channels < int64_t{1} << 24 && s.pixels < (int64_t{1} << 40) / s.channels;
}

template <class Op>
int run_channels(const Channels& walk, const Op& op, void* stream) {
    if constexpr (Op::kChannels == 1) {
        const int64_t each = kThreads / walk.lanes;
        return launch_over<over_planes<Op>>((walk.units + each - 1) / each, walk.images, kThreads,
                                            stream, walk, op);
    } else {
        return launch_over<over_pixels<Op>>(walk.units, walk.images, kThreads, stream, walk, op);
    }
}

}  // namespace udp
