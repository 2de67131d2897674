// How a batch is walked. The grid's y goes over rows (an image, or a channel of one where operands
// do not share one memory order), its x over the chunks of a row, a block's threads over the groups
// of a chunk. Chunks depend on the shape alone, never on the GPU or the batch: sums over them, in
// their order, always come out the same.
//
// A kernel is a Layout and an Op, and Op::row(image, channel) makes the body, with
//   aligned(first)   whether Full groups are possible from that element of the row on
//   move(elements)   moves on by so many, a whole number of groups after the first time
//   operator()(at)   does elements from there: Full, a whole group; Part or Scattered, a few of one
//   end_group()      called after a group's last
//   end_chunk(index), end_row(image)   called by all threads of the block together
// and, if a row may need nothing at all,
//   leaves()         whether that is so
#pragma once

#include "launch.cuh"
#include "rows.cuh"

namespace udp {

constexpr int kThreads = 128;
// How many blocks of a kernel ptxas makes fit on a multiprocessor: half of an A100's threads for
// those of the common types. Asked for more of the others, whose code has a branch for each type,
// it spills.
template <class... Types>
constexpr int kBlocksFor = (is_any<Types> || ...) ? 5 : 8;

// N elements in memory order.
template <int N>
struct Flat {
    static constexpr int kGroup = N, kPart = 4, kChannels = 1;
};
// Channels-last where noise, whose index is logical, has to follow the memory order: a group is
// four pixels with all their channels, and draws one block for each channel.
template <int C>
struct Interleaved {
    static constexpr int kGroup = 4 * C, kPart = 4 * C, kChannels = C;
};
// Four pixels of a channel, wherever they lie.
struct Strided {
    static constexpr int kGroup = 4, kPart = 4, kChannels = 1;
};

// Elements that a body does at once: few where they are moved one by one, since a branch for each
// of many would cost registers in the whole kernel.
template <class Layout, class At>
constexpr int kElements = std::is_same<At, Full>::value ? Layout::kGroup : Layout::kPart;

struct Walk {
    int64_t rows, elements;  // elements: of a row
    int64_t channels;        // rows of an image
    int64_t chunk, chunks;   // elements of a chunk, chunks of a row
};

// Elements between a row's start and the first from which all operands are aligned; all of them
// where there is none. Ops that draw or sum only take 0: their groups start where blocks of noise
// do, and a sum's order must not depend on an address.
template <class Layout, bool kAnyHead, class Body>
__device__ __forceinline__ int64_t head_of(const Body& body, int64_t elements) {
    for (int64_t head = 0; head < (kAnyHead ? Layout::kGroup : 1); ++head) {
        if (body.aligned(head)) return head;
    }
    return elements;
}

// This thread's groups among the n elements, one run of memory, that the body was moved to.
template <class Layout, class Body>
__device__ __forceinline__ void for_groups_of_chunk(Body& body, uint32_t n, bool wide) {
    constexpr uint32_t kGroup = Layout::kGroup, kPart = Layout::kPart, kStep = kThreads * kGroup;
    uint32_t i = threadIdx.x * kGroup;
    if (wide) {
        const uint32_t whole = n - n % kGroup;
        for (; i < whole; i += kStep) {
            body(Full{i});
            body.end_group();
        }
    }
    for (; i < n; i += kStep) {
        const uint32_t end = n - i < kGroup ? n : i + kGroup;
#pragma unroll 1
        for (uint32_t k = i; k < end; k += kPart) {
            body(Part{k, static_cast<int>(end - k < kPart ? end - k : kPart)});
        }
        body.end_group();
    }
}

template <class Body, class = void>
constexpr bool kMayLeave = false;
template <class Body>
constexpr bool kMayLeave<Body, std::void_t<decltype(&Body::leaves)>> = true;

template <class Layout, class Op>
__global__ void __launch_bounds__(kThreads, Op::kBlocks) for_groups(const Walk walk, const Op op) {
    constexpr uint32_t kGroup = Layout::kGroup;
    [[maybe_unused]] constexpr bool kAnyHead = Op::kAnyHead;
    for (int64_t r = blockIdx.y; r < walk.rows; r += gridDim.y) {
        const int64_t image = walk.channels == 1 ? r : r / walk.channels;
        auto body = op.row(image, r - image * walk.channels);
        if constexpr (kMayLeave<decltype(body)>) {
            if (body.leaves()) continue;
        }
        int64_t head = 0, position = 0;
        bool wide = false;
        if constexpr (!std::is_same<Layout, Strided>::value) {
            head = head_of<Layout, kAnyHead>(body, walk.elements);
            wide = head < walk.elements;
            if (!wide) head = 0;
            const int64_t k = threadIdx.x * Layout::kPart;
            if (blockIdx.x == 0 && k < head) {
                body(Part{static_cast<uint32_t>(k),
                          static_cast<int>(head - k < Layout::kPart ? head - k : Layout::kPart)});
            }
        }
        for (int64_t c = blockIdx.x; c < walk.chunks; c += gridDim.x) {
            const int64_t first = head + c * walk.chunk, left = walk.elements - first;
            const uint32_t n = static_cast<uint32_t>(left < 0            ? 0
                                                     : left < walk.chunk ? left
                                                                         : walk.chunk);
            if constexpr (std::is_same<Layout, Strided>::value) {
                for (uint32_t i = threadIdx.x * kGroup; i < n; i += kThreads * kGroup) {
                    body(Scattered{first + i, static_cast<int>(n - i < kGroup ? n - i : kGroup)});
                    body.end_group();
                }
            } else {
                body.move(first - position);
                position = first;
                for_groups_of_chunk<Layout>(body, n, wide);
            }
            body.end_chunk(r * walk.chunks + c);
        }
        body.end_row(image);
    }
}

// --- on the host ---------------------------------------------------------------------------------

inline bool present(const Tensor* t) {
    return t != nullptr && t->data != nullptr;
}
inline Tensor value_of(const Tensor* t) {
    return t == nullptr ? Tensor{} : *t;
}

// Of one op; absent ones agree with everything.
struct Operands {
    static constexpr int kMost = 6;
    const Tensor* tensor[kMost];

    template <class Test>
    bool all(Test test) const {
        for (const Tensor* t : tensor) {
            if (present(t) && !test(*t)) return false;
        }
        return true;
    }
    bool planar(const Shape& s) const {
        return all([&](const Tensor& t) {
            return (t.pixel == 1 || s.pixels == 1) && (t.channel == s.pixels || s.channels == 1);
        });
    }
    bool interleaved(const Shape& s) const {
        return all([&](const Tensor& t) {
            return (t.channel == 1 || s.channels == 1) && (t.pixel == s.channels || s.pixels == 1);
        });
    }
    bool dense_pixels(const Shape& s) const {
        return all([&](const Tensor& t) { return t.pixel == 1 || s.pixels == 1; });
    }
};

// Whether all have the element type of the first.
inline bool same_type(const Operands& o) {
    return o.all([&](const Tensor& t) { return t.type == o.tensor[0]->type; });
}

enum class Order {
    whole,        // an image is one run, the same for all operands
    by_channel,   // each channel is
    interleaved,  // an image is one run, and noise has to follow it channels-last
    strided,      // none of these
};

inline Order order_of(const Shape& s, const Operands& operands, bool draws) {
    if (operands.planar(s)) return Order::whole;
    if (operands.interleaved(s)) {
        if (!draws) return Order::whole;
        // Blocks of four must not straddle channels.
        const bool fits = s.pixels % 4 == 0 && (s.channels == 3 || s.channels == 4);
        return fits ? Order::interleaved : Order::strided;
    }
    const bool runs = operands.dense_pixels(s) && (!draws || s.pixels % 4 == 0);
    return runs ? Order::by_channel : Order::strided;
}

// The more elements a row has, the longer its chunks, so that what a thread does once for each is
// spread, up to eight groups; a short row still makes enough of them to fill a GPU.
inline Walk walk_over(const Shape& s, Order order, int group) {
    Walk walk{};
    const bool by_channel = order == Order::by_channel || order == Order::strided;
    walk.channels = by_channel ? s.channels : 1;
    walk.rows = s.images * walk.channels;
    walk.elements = s.channels * s.pixels / walk.channels;
    walk.chunk = int64_t{kThreads} * group;
    for (int groups = 1; groups < 8 && walk.elements >= 64 * walk.chunk; groups *= 2) {
        walk.chunk *= 2;
    }
    walk.chunks = (walk.elements + walk.chunk - 1) / walk.chunk;
    return walk;
}

template <class Layout, class Op>
int run(const Walk& walk, const Op& op, void* stream) {
    return launch_over<for_groups<Layout, Op>>(walk.chunks, walk.rows, kThreads, stream, walk, op);
}

}  // namespace udp
