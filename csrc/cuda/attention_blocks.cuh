// Attention by blocks: all warps of a block work on the same 64 rows. They share out the scores of
// a tile, leave the weights that come of them in shared memory, and share out the columns of the
// sums that they are multiplied with. So neither the rows' nor the other side's columns need fit
// anything: both pass through shared memory a few columns at a time, as in a product of matrices.
// This serves what the kernels of attention_tiles.cuh have no registers for (512 columns), and
// float32.
//
// What arrives in shared memory is one sequence of stages, copied while the two before are worked
// on: for each tile of the other side, for S (and again for dP) a few columns of the rows and of
// the tile; and for the sums a few whole rows of the tile.
//
// The arithmetic is that of a Tile, of which each thread has an object:
//
//     kThreads, kColumns       of a block; of the other side in a tile
//     kRowBytes                of a row of q
//     kSlots, kColumnSlots     rows and columns of the scores that a thread has;
//     row_of, column_of        which they are
//     Scores, of(s, slot, c)   its scores
//     multiply(s, stage)       adds a stage's columns to them
//     kPartials, most, total, put
//                              their maxima and sums over a row, of which a block has kPartials
//     put_weights              writes them to shared memory as factors,
//     kExact, get_weights      as they are, so that it may read them back
//     Sums, accumulate, shrink, store
//                              the sums: of a stage's rows, times a number a row, into memory
#pragma once

#include "attention_delta.cuh"

namespace udp {

// dq_of_one_tile: where all keys fit one tile, so that rows' statistics need not have been saved.
enum class Wanted { out, dq, dq_of_one_tile, dk, dv, dk_and_dv };

constexpr int kBlockRows = 64;
constexpr int kStages = 3;

struct Blocks {
    AttentionShape shape;
    Operand rows[2];    // that a block has 64 of: q and dO, or k and v
    Operand others[2];  // that it walks over: k and v, or q and dO
    Operand results[2];
    Bias bias;
    float* lse;                // of Wanted::out
    const float2* statistics;  // of gradients: see Backward
};

// How a stage lies in shared memory.
template <class Tile>
struct Stage {
    // Bytes of a row's columns; between rows, always an odd number of 16-byte chunks.
    static constexpr int kDepth = Tile::kRowBytes % 80 == 0 ? 80 : 64, kStride = 80;
    static constexpr int kSteps = Tile::kRowBytes / kDepth;
    static constexpr int kValueRows = Tile::kRowBytes > 1024 ? 8 : 16;
    static constexpr int kValueSteps = Tile::kColumns / kValueRows;
    static constexpr int kScores = (kBlockRows + Tile::kColumns) * kStride;
    static constexpr int kValues = kValueRows * Tile::kValueStride;
    static constexpr int kBytes = kScores > kValues ? kScores : kValues;
    // Of rows or columns, whose numbers are needed.
    static constexpr int kMost = kBlockRows > Tile::kColumns ? kBlockRows : Tile::kColumns;
    // All of a block's: stages, weights, rows' partial results, and two numbers a row or column.
    static constexpr int kShared =
        kStages * kBytes + Tile::kWeightBytes + (Tile::kPartials * kBlockRows + 2 * kMost) * 4;
    static_assert(Tile::kColumns % kValueRows == 0 && Tile::kRowBytes % kDepth == 0, "");
    static_assert(kShared <= 99 << 10, "");
};

// Copies stages, in the order in which they are worked on.
template <class Tile, Wanted kWanted>
struct Feed {
    using Layout = Stage<Tile>;
    static constexpr bool kByKeys =
        kWanted == Wanted::dk || kWanted == Wanted::dv || kWanted == Wanted::dk_and_dv;
    // Of a tile. Scores: S, dP. Sums: of the second of the others (out, dv), the first (dq, dk).
    static constexpr int kPhases = kWanted == Wanted::dk_and_dv                      ? 4
                                   : kWanted == Wanted::out || kWanted == Wanted::dv ? 2
                                                                                     : 3;

    const Blocks& p;
    unsigned char* memory;
    int first, rows, others;             // this block's first row; how many there are of each side
    int start = 0, phase = 0, step = 0;  // of the next stage to be copied: its tile's first
    int to = 0;                          // where it goes

    __device__ __forceinline__ Feed(const Blocks& arguments, unsigned char* shared)
        : p(arguments),
          memory(shared),
          first(static_cast<int>(blockIdx.x) * kBlockRows),
          rows(kByKeys ? p.shape.keys : p.shape.queries),
          others(kByKeys ? p.shape.queries : p.shape.keys) {
#pragma unroll 1
        for (int i = 0; i < kStages - 1; ++i) copy();
    }

    // The next stage, which has arrived for all threads.
    __device__ __forceinline__ const unsigned char* advance() {
        cp_async_wait<kStages - 2>();
        __syncthreads();  // and nobody reads the one before this any more
        copy();
        return memory + to * Layout::kBytes;  // the next place to go is that of the oldest
    }

  private:
    __device__ __forceinline__ void copy() {
        if (start < others) {
            // Seen through, ptxas would keep what follows from it in registers, which are short.
            const int thread = kept(static_cast<int>(threadIdx.x));
            const bool sums = kWanted == Wanted::dk_and_dv ? phase % 2 == 1 : phase == kPhases - 1;
            const bool second = phase == 1 || (kWanted == Wanted::dk_and_dv && phase == 2);
            unsigned char* stage = memory + to * Layout::kBytes;
            Rows source = p.others[0].of_block();
            if (second) source = p.others[1].of_block();
            if (sums) {
                copy_rows(thread, stage, source, start + step * Layout::kValueRows);
            } else {
                Rows fixed = p.rows[0].of_block();
                if (second) fixed = p.rows[1].of_block();
                copy_columns<kBlockRows>(thread, stage, fixed, first, rows);
                copy_columns<Tile::kColumns>(thread, stage + kBlockRows * Layout::kStride, source,
                                             start, others);
            }
            if (++step == (sums ? Layout::kValueSteps : Layout::kSteps)) {
                step = 0;
                if (++phase == kPhases) {
                    phase = 0;
                    start += Tile::kColumns;
                }
            }
        }
        to = to + 1 == kStages ? 0 : to + 1;
        cp_async_commit();
    }

    // Some columns of kRows rows; zeros beyond the last, where nothing is read. Eight lanes write
    // neighbours, or the same chunk of eight rows: no bank conflict either way.
    template <int kRows>
    __device__ __forceinline__ void copy_columns(int thread, unsigned char* stage,
                                                 const Rows& source, int start, int count) const {
        constexpr int kChunks = Layout::kDepth / 16, kAll = kRows * kChunks;
#pragma unroll
        for (int n = 0; n < (kAll + Tile::kThreads - 1) / Tile::kThreads; ++n) {
            const int i = thread + n * Tile::kThreads;
            if (kAll % Tile::kThreads != 0 && i >= kAll) break;
            const bool dense = 16 * kChunks == Layout::kStride;
            const int row = dense ? i / kChunks : i / (8 * kChunks) * 8 + i % 8;
            const int chunk = dense ? i % kChunks : i / 8 % kChunks;
            cp_async<16>(
                stage + row * Layout::kStride + 16 * chunk,
                source.at(min(start + row, count - 1)) + step * Layout::kDepth + 16 * chunk,
                start + row < count ? 16 : 0);
        }
    }

    // Some rows of the others, likewise.
    __device__ __forceinline__ void copy_rows(int thread, unsigned char* stage, const Rows& source,
                                              int start) const {
        constexpr int kChunks = Tile::kRowBytes / 16, kAtOnce = Tile::kThreads / kChunks;
        static_assert(Tile::kThreads % kChunks == 0 && Layout::kValueRows % kAtOnce == 0, "");
        const int chunk = thread % kChunks;
#pragma unroll
        for (int n = 0; n < Layout::kValueRows / kAtOnce; ++n) {
            const int row = thread / kChunks + n * kAtOnce;
            cp_async<16>(stage + row * Tile::kValueStride + 16 * chunk,
                         source.at(min(start + row, others - 1)) + 16 * chunk,
                         start + row < others ? 16 : 0);
        }
    }
};

template <class Tile, class Each>
__device__ __forceinline__ void for_scores(const Each& each) {
#pragma unroll
    for (int slot = 0; slot < Tile::kSlots; ++slot) {
#pragma unroll
        for (int c = 0; c < Tile::kColumnSlots; ++c) each(slot, c);
    }
}

// A kernel.
template <class Tile, Wanted kWanted>
__device__ __forceinline__ void attend(const Blocks& p) {
    using Layout = Stage<Tile>;
    constexpr bool kOneTile = kWanted == Wanted::dq_of_one_tile;
    constexpr bool kOut = kWanted == Wanted::out, kByKeys = Feed<Tile, kWanted>::kByKeys;
    constexpr bool kNeedsP = kOut || kWanted == Wanted::dv;  // as weights, and alone
    UDP_DYNAMIC_SHARED(unsigned char, shared);
    unsigned char* const weights = shared + kStages * Layout::kBytes;
    float* const partial = reinterpret_cast<float*>(weights + Tile::kWeightBytes);
    float* const numbers = partial + Tile::kPartials * kBlockRows;
    const int thread = static_cast<int>(threadIdx.x);
    // Scores and their logarithms of sums are natural where every rounding counts, binary
    // otherwise.
    constexpr float kUnit = Tile::kExact ? 1.0f : kLog2E;
    const float scale = p.shape.scale * kUnit;
    const auto exponential = [](float x) { return exp2_approx(Tile::kExact ? x * kLog2E : x); };
    const int64_t head = int64_t{blockIdx.z} * p.shape.heads + blockIdx.y;
    const float2* const statistics = p.statistics + head * p.shape.queries;
    const Tile own(thread);
    Feed<Tile, kWanted> feed(p, shared);

    // Of so many queries in order: logarithms of sums, and delta. The stages of the scores bring
    // the barrier before these are read, those of the sums the one before they are written again.
    const auto put_statistics = [&](int query, int count) {
        if (thread >= count) return;
        const float2 both = load_global(statistics + min(query + thread, p.shape.queries - 1));
        store_shared(numbers + thread, both.x);
        store_shared(numbers + Layout::kMost + thread, both.y);
    };
    if constexpr (kWanted == Wanted::dq) put_statistics(feed.first, kBlockRows);
    // The sum over row `thread` of what threads have of each; for all of them to call.
    const auto sum_of_row = [&](float (&parts)[Tile::kSlots]) {
        own.total(parts);
        __syncthreads();  // nobody reads what was there
        own.put(partial, parts);
        __syncthreads();
        float all = 0.0f;
        if (thread < kBlockRows) {
#pragma unroll
            for (int i = 0; i < Tile::kPartials; ++i) {
                all += load_shared(partial + i * kBlockRows + thread);
            }
        }
        return all;
    };
    typename Tile::Sums sums{}, of_values{};
    float most = kLeastMaximum, sum[Tile::kSlots] = {};  // most: of row `thread`
#pragma unroll 1
    for (int start = 0; start < feed.others; start += Tile::kColumns) {
        if constexpr (kByKeys) put_statistics(start, Tile::kColumns);
        typename Tile::Scores s{};
#pragma unroll 1
        for (int step = 0; step < Layout::kSteps; ++step) own.multiply(s, feed.advance());
        for_scores<Tile>([&](int slot, int c) { Tile::of(s, slot, c) *= scale; });
        if (p.bias.data != nullptr || start + Tile::kColumns > feed.others) {
            for_scores<Tile>([&](int slot, int c) {
                const int row = min(feed.first + own.row_of(slot), feed.rows - 1);
                const int other = start + own.column_of(c);
                float& score = Tile::of(s, slot, c);
                if (p.bias.data != nullptr) {
                    score =
                        fmaf(kUnit,
                             bias_at(bias_row(p.bias, kByKeys ? min(other, feed.others - 1) : row),
                                     p.bias, kByKeys ? row : other, p.shape.keys),
                             score);
                }
                if (other >= feed.others) score = -kInfinity;
            });
        }

        // Of the columns where they are queries, of the rows otherwise.
        const auto number_of = [&](int i, int which) {
            return load_shared(numbers + which * Layout::kMost +
                               (kByKeys ? own.column_of(i) : own.row_of(i)));
        };
        constexpr int kNumbers = kByKeys ? Tile::kColumnSlots : Tile::kSlots;
        float number[kNumbers];
        if constexpr (kOut || kOneTile) {
            float top[Tile::kSlots];
#pragma unroll
            for (int slot = 0; slot < Tile::kSlots; ++slot) top[slot] = kLeastMaximum;
            for_scores<Tile>(
                [&](int slot, int c) { top[slot] = fmaxf(top[slot], Tile::of(s, slot, c)); });
            own.most(top);
            own.put(partial, top);
            __syncthreads();
            if (thread < kBlockRows) {
                float now = most;
#pragma unroll
                for (int i = 0; i < Tile::kPartials; ++i) {
                    now = fmaxf(now, load_shared(partial + i * kBlockRows + thread));
                }
                store_shared(numbers + thread, now);
                store_shared(numbers + Layout::kMost + thread, exponential(most - now));
                most = now;
            }
            __syncthreads();
            if constexpr (kOut) {
                own.shrink(sums, numbers + Layout::kMost);
#pragma unroll
                for (int slot = 0; slot < Tile::kSlots; ++slot) sum[slot] *= number_of(slot, 1);
            }
        }
#pragma unroll
        for (int i = 0; i < kNumbers; ++i) number[i] = number_of(i, 0);
        for_scores<Tile>([&](int slot, int c) {
            float& score = Tile::of(s, slot, c);
            score = exponential(score - number[kByKeys ? c : slot]);
            if constexpr (kOut || kOneTile) sum[slot] += score;
        });

        // The barrier between writing weights and reading them comes with the stage.
        const auto accumulate = [&](typename Tile::Sums& to) {
#pragma unroll 1
            for (int step = 0; step < Layout::kValueSteps; ++step) {
                own.accumulate(to, weights, step, feed.advance());
            }
        };
        constexpr bool kWeighs = kNeedsP || kWanted == Wanted::dk_and_dv;
        if constexpr (kWeighs || Tile::kExact) own.put_weights(weights, s);
        if constexpr (kWeighs) accumulate(kNeedsP ? sums : of_values);
        if constexpr (!kNeedsP) {
            typename Tile::Scores ds{};
#pragma unroll 1
            for (int step = 0; step < Layout::kSteps; ++step) own.multiply(ds, feed.advance());
            // P was there meanwhile: its registers are wanted for dP.
            if constexpr (Tile::kExact) own.get_weights(weights, s);
            float factor[Tile::kSlots];  // what P, here exp(S - max), is a multiple of
            if constexpr (kOneTile) {
                float delta[Tile::kSlots] = {};
                for_scores<Tile>([&](int slot, int c) {
                    delta[slot] = fmaf(Tile::of(s, slot, c), Tile::of(ds, slot, c), delta[slot]);
                });
                const float all = sum_of_row(sum), together = sum_of_row(delta);
                if (thread < kBlockRows) {
                    const float inverse = 1.0f / (all == 0.0f ? 1.0f : all);
                    store_shared(numbers + thread, inverse);
                    store_shared(numbers + Layout::kMost + thread, together * inverse);
                }
                __syncthreads();
#pragma unroll
                for (int slot = 0; slot < Tile::kSlots; ++slot) factor[slot] = number_of(slot, 0);
            }
#pragma unroll
            for (int i = 0; i < kNumbers; ++i) number[i] = number_of(i, 1);
            for_scores<Tile>([&](int slot, int c) {
                float& gradient = Tile::of(ds, slot, c);
                gradient = Tile::of(s, slot, c) * (gradient - number[kByKeys ? c : slot]);
                if constexpr (kOneTile) gradient *= factor[slot];
            });
            own.put_weights(weights, ds);
            accumulate(sums);
        }
    }

    if constexpr (kOut) {
        const float all = sum_of_row(sum);
        if (thread < kBlockRows) {
            store_shared(numbers + thread, 1.0f / (all == 0.0f ? 1.0f : all));
            const int row = feed.first + thread;
            if (p.lse != nullptr && row < feed.rows) {
                const float lse = Tile::kExact ? most + logf(all) : (most + log2f(all)) * kLn2;
                store_global(p.lse + head * p.shape.queries + row, all == 0.0f ? -kInfinity : lse);
            }
        }
        __syncthreads();
        own.shrink(sums, numbers);
    }
    const auto store = [&](const Operand& result, const typename Tile::Sums& from, float factor) {
        if (result.data != nullptr) {
            own.store(result.of_block(), from, factor, feed.first, feed.rows);
        }
    };
    store(p.results[0], sums, kNeedsP ? 1.0f : p.shape.scale);
    if constexpr (kWanted == Wanted::dk_and_dv) store(p.results[1], of_values, 1.0f);
}

template <auto kKernel, class Tile>
cudaError_t launch_blocks(const Blocks& p, int rows, cudaStream_t stream) {
    const cudaError_t error = allow_shared<kKernel>(Stage<Tile>::kShared);
    if (error != cudaSuccess) return error;
    const dim3 grid(static_cast<unsigned>((rows + kBlockRows - 1) / kBlockRows),
                    static_cast<unsigned>(p.shape.heads), static_cast<unsigned>(p.shape.batch));
    return launch(kKernel, grid, dim3(Tile::kThreads), Stage<Tile>::kShared, stream, p);
}

inline Blocks forward_blocks(const AttentionShape& shape, int itemsize, const Heads& q,
                             const Heads& k, const Heads& v, const Bias& bias, const Heads& out,
                             float* lse) {
    Blocks p{};
    p.shape = shape;
    p.rows[0] = Operand(q, itemsize);
    p.others[0] = Operand(k, itemsize);
    p.others[1] = Operand(v, itemsize);
    p.results[0] = Operand(out, itemsize);
    p.bias = bias;
    p.lse = lse;
    return p;
}

inline Blocks one_tile_blocks(const AttentionShape& shape, int itemsize, const Heads& grad_out,
                              const Heads& q, const Heads& k, const Heads& v, const Bias& bias,
                              const Heads& dq) {
    Blocks p = forward_blocks(shape, itemsize, q, k, v, bias, dq, nullptr);
    p.rows[1] = Operand(grad_out, itemsize);
    return p;
}

// For dq; for dk and dv, either alone where `first` is that.
inline Blocks dq_blocks(const Backward& b) {
    return {b.shape, {b.q, b.grad_out}, {b.k, b.v}, {b.dq, {}}, b.bias, nullptr, b.statistics};
}
inline Blocks dkdv_blocks(const Backward& b, const Operand& first, const Operand& second) {
    return {b.shape, {b.k, b.v}, {b.q, b.grad_out}, {first, second}, b.bias, nullptr, b.statistics};
}

}  // namespace udp
