// Attention over more keys than one tile holds: a warp keeps 16 or 32 rows of one side in registers
// and walks over the other side's rows, which the block copies to shared memory 64 at a time, while
// it works on the 64 before. Columns lie as in memory.
#pragma once

#include "attention.cuh"

namespace udp {

constexpr int kTileRows = 64;
// Behind the tiles, also twice: two floats a row.
constexpr int kStatisticsBytes = 2 * kTileRows * 8;

// Two tensors' tiles of 64 rows, twice: one is read while the other arrives.
template <int kDim>
struct Tiles {
    static constexpr int kElements = kTileRows * Columns<kDim>::kStride;
    static constexpr int kBytes = 4 * kElements * 2;

    uint16_t* memory;

    __device__ __forceinline__ uint16_t* first(int tile) const {
        return memory + tile % 2 * 2 * kElements;
    }
    __device__ __forceinline__ uint16_t* second(int tile) const { return first(tile) + kElements; }
};

// What a thread copies of two tensors' tiles, one tile after the other. Eight lanes at a time write
// to all eight groups of four banks: eight chunks of a row where it has them, and of the chunks
// that a row has beyond a multiple of eight (80: two, 160: four) eight rows' same chunk, since rows
// are an odd number of chunks apart. Rows of 40 are without a gap in shared memory.
template <int kDim>
struct Copies {
    static constexpr int kChunks = Columns<kDim>::kChunks, kStride = Columns<kDim>::kStride;
    static constexpr int kLeft = kChunks > 8 ? kChunks % 8 : 0;  // chunks of a row handled apart
    static constexpr int kSide = kLeft > 0 ? 8 : kChunks;        // neighbours handled together,
    static constexpr int kPasses = (kChunks - kLeft) / kSide;    // so often,
    static constexpr int kAtOnce = kAttentionThreads / kSide;    // of so many rows
    static constexpr int kMore = kTileRows % kAtOnce;            // rows beyond whole steps of them
    static constexpr int kLeftAtOnce = kLeft > 0 ? kAttentionThreads / kLeft : kTileRows;
    static_assert(kLeft == 0 || (kMore == 0 && kLeftAtOnce % kAtOnce == 0), "");

    const unsigned char *a, *b, *a_left, *b_left;
    uint32_t a_rows, b_rows, a_more,
        b_more;         // bytes of kAtOnce rows, of what 64 are more than such
    int row, left, to;  // the thread's first row of a tile; rows from there to the end; its place
    int left_row, left_to;  // row and place of what it copies apart

    __device__ __forceinline__ Copies(const Rows& from_a, const Rows& from_b, int count) {
        const int thread = static_cast<int>(threadIdx.x), chunk = thread % kSide;
        row = thread / kSide;
        // Threads that are too many copy rows that no tile has.
        if (kAttentionThreads % kSide != 0 && row >= kAtOnce) row = kTileRows;
        left = count - row;
        a = from_a.at(row) + 16 * chunk;
        b = from_b.at(row) + 16 * chunk;
        a_rows = static_cast<uint32_t>(kAtOnce * from_a.stride);
        b_rows = static_cast<uint32_t>(kAtOnce * from_b.stride);
        a_more = static_cast<uint32_t>(kMore * from_a.stride);
        b_more = static_cast<uint32_t>(kMore * from_b.stride);
        to = row * kStride + 8 * chunk;
        if constexpr (kLeft > 0) {
            const int column = 8 * (kChunks - kLeft + thread / 8 % kLeft);
            left_row = thread / 8 / kLeft * 8 + thread % 8;
            a_left = from_a.at(left_row) + 2 * column;
            b_left = from_b.at(left_row) + 2 * column;
            left_to = left_row * kStride + column;
            left_row -= row;
        }
    }
    // Starts copying the next tile; zeros beyond the last row, where nothing is read.
    __device__ __forceinline__ void next(uint16_t* to_a, uint16_t* to_b) {
        const auto copy = [&](int offset, const unsigned char* from_a, const unsigned char* from_b,
                              bool inside) {
            const int bytes = inside ? 16 : 0;
            cp_async<16>(to_a + offset, from_a, bytes);
            cp_async<16>(to_b + offset, from_b, bytes);
        };
        if constexpr (kLeft > 0) {
            constexpr int kSteps = kLeftAtOnce / kAtOnce;
#pragma unroll
            for (int i = 0; i < kTileRows / kLeftAtOnce; ++i) {
                copy(left_to + i * kLeftAtOnce * kStride, a_left, b_left,
                     i * kLeftAtOnce + left_row < left);
                a_left += kSteps * a_rows;
                b_left += kSteps * b_rows;
            }
        }
        const unsigned char *from_a = a, *from_b = b;
#pragma unroll
        for (int i = 0; i < (kTileRows + kAtOnce - 1) / kAtOnce; ++i) {
            if (kMore == 0 || row + i * kAtOnce < kTileRows) {
#pragma unroll
                for (int pass = 0; pass < kPasses; ++pass) {
                    copy(to + i * kAtOnce * kStride + 64 * pass, from_a + 128 * pass,
                         from_b + 128 * pass, i * kAtOnce < left);
                }
            }
            from_a += a_rows;
            from_b += b_rows;
        }
        // Where there are no more than whole steps, that was 64 rows.
        a = kMore == 0 ? from_a : a + kTileRows / kAtOnce * a_rows + a_more;
        b = kMore == 0 ? from_b : b + kTileRows / kAtOnce * b_rows + b_more;
        left -= kTileRows;
    }
};

// Rows as the first operand of products over their columns: 16 columns a step, the last 8 of 40
// apart.
template <int kDim, int kTiles>
struct Fixed {
    static constexpr int kSteps = kDim / 16, kNarrow = kDim % 16 / 8;

    uint32_t wide[kTiles][kSteps][4];
    uint32_t narrow[kTiles][2];

    // Row g + 8h of tile r is row first + 16r + 8h + g; past the end, the last once more.
    __device__ __forceinline__ void fetch(const Rows& from, int first, int count, int g, int t) {
#pragma unroll
        for (int i = 0; i < 2 * kTiles; ++i) {
            const unsigned char* row = from.at(min(first + 8 * i + g, count - 1)) + 4 * t;
            const auto word = [&](int column) {
                return load_global<Cache::read_only>(
                    reinterpret_cast<const uint32_t*>(row + 2 * column));
            };
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                wide[i / 2][step][i % 2] = word(16 * step);
                wide[i / 2][step][i % 2 + 2] = word(16 * step + 8);
            }
            if constexpr (kNarrow) narrow[i / 2][i % 2] = word(16 * kSteps);
        }
    }
};

// Where a lane's addresses for ldmatrix are among 16 rows of a tile.
template <int kDim>
struct LaneOf {
    int along, across;  // products over columns, over rows

    __device__ __forceinline__ explicit LaneOf(int lane)
        : along((lane / 16 * 8 + lane % 8) * Columns<kDim>::kStride + lane / 8 % 2 * 8),
          across(lane % 16 * Columns<kDim>::kStride + lane / 16 * 8) {}
};

// s[r][j] += the fixed rows of tile r times rows 8j … 8j + 7 of 16.
template <class Half, int kDim, int kTiles>
__device__ __forceinline__ void along(float (&s)[kTiles][2][4], const Fixed<kDim, kTiles>& fixed,
                                      const uint16_t* rows, const LaneOf<kDim>& lane) {
#pragma unroll
    for (int step = 0; step < fixed.kSteps; ++step) {
        uint32_t b[4];
        ldmatrix(b, rows + lane.along + 16 * step);
#pragma unroll
        for (int r = 0; r < kTiles; ++r) {
            mma_m16n8k16<Half>(s[r][0], fixed.wide[r][step], {b[0], b[1]});
            mma_m16n8k16<Half>(s[r][1], fixed.wide[r][step], {b[2], b[3]});
        }
    }
    if constexpr (Fixed<kDim, kTiles>::kNarrow) {
        uint32_t b[2];
        ldmatrix(b, rows + lane.across + 16 * fixed.kSteps);
#pragma unroll
        for (int r = 0; r < kTiles; ++r) {
            mma_m16n8k8<Half>(s[r][0], fixed.narrow[r], b[0]);
            mma_m16n8k8<Half>(s[r][1], fixed.narrow[r], b[1]);
        }
    }
}

// sums[r][c] += weights of 16 rows times their columns 8c … 8c + 7.
template <class Half, int kDim, int kTiles>
__device__ __forceinline__ void across(float (&sums)[kTiles][kDim / 8][4],
                                       const uint32_t (&weights)[kTiles][4], const uint16_t* rows,
                                       const LaneOf<kDim>& lane) {
#pragma unroll
    for (int c = 0; c + 2 <= kDim / 8; c += 2) {
        uint32_t b[4];
        ldmatrix<true>(b, rows + lane.across + 8 * c);
#pragma unroll
        for (int r = 0; r < kTiles; ++r) {
            mma_m16n8k16<Half>(sums[r][c], weights[r], {b[0], b[1]});
            mma_m16n8k16<Half>(sums[r][c + 1], weights[r], {b[2], b[3]});
        }
    }
    if constexpr (kDim / 8 % 2 == 1) {
        uint32_t b[2];
        ldmatrix<true>(b, rows + lane.across + kDim - 8);
#pragma unroll
        for (int r = 0; r < kTiles; ++r) {
            mma_m16n8k16<Half>(sums[r][kDim / 8 - 1], weights[r], b);
        }
    }
}

// Two accumulators of eight columns each as the first operand of a product over these columns.
template <class Half>
__device__ __forceinline__ void as_weights(uint32_t (&weights)[4], const float (&s)[2][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        weights[i] = pack<Half>(s[i / 2][i % 2 * 2], s[i / 2][i % 2 * 2 + 1]);
    }
}

// Writes sums times factor to the rows that there are; once a kernel, so without a detour by shared
// memory to make the accesses wide.
template <class Half, int kDim, int kTiles>
__device__ __forceinline__ void store_rows(const Rows& to, const float (&sums)[kTiles][kDim / 8][4],
                                           const float (&factor)[kTiles][2], int first, int count,
                                           int g, int t) {
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
        const int row = first + 8 * i + g;
        if (row >= count) continue;
        uint32_t* words = reinterpret_cast<uint32_t*>(to.at(row) + 4 * t);
#pragma unroll
        for (int c = 0; c < kDim / 8; ++c) {
            const float* pair = &sums[i / 2][c][i % 2 * 2];
            store_global(words + 4 * c, pack<Half>(pair[0] * factor[i / 2][i % 2],
                                                   pair[1] * factor[i / 2][i % 2]));
        }
    }
}

// -inf in place of the scores of keys that there are not, of 16; `key` is this lane's first.
template <int kTiles>
__device__ __forceinline__ void mask(float (&s)[kTiles][2][4], int key, int keys) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        if (key + j / 2 * 8 + j % 2 < keys) continue;
#pragma unroll
        for (int r = 0; r < kTiles; ++r) {
            s[r][j / 2][j % 2] = s[r][j / 2][j % 2 + 2] = -kInfinity;
        }
    }
}

// Adds the bias over the scale to the scores of rows g and g + 8 of each 16 queries, `first` the
// first of them, and of 16 keys, of which `key` is this lane's first; -inf where there is no key.
// What is of keys alone is loaded once for all rows.
template <int kTiles>
__device__ __forceinline__ void add_bias(float (&s)[kTiles][2][4], const Bias& bias,
                                         const AttentionShape& shape, int first, int key,
                                         float inverse) {
    const auto add = [&](int i, const float* row) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float& score = s[i / 2][j / 2][j % 2 + i % 2 * 2];
            const float value = bias_at(row, bias, key + j / 2 * 8 + j % 2, shape.keys);
            score = fmaf(value, inverse, score);
        }
    };
    if (bias.query == 0) {
        const float* row = bias_row(bias, 0);
#pragma unroll
        for (int i = 0; i < 2 * kTiles; ++i) add(i, row);
    } else {
#pragma unroll
        for (int i = 0; i < 2 * kTiles; ++i) {
            add(i, bias_row(bias, min(first + 8 * i, shape.queries - 1)));
        }
    }
}

// The same where rows g and g + 8 are keys, `first` the first of them, and `query` is this lane's
// first of 16 queries; -inf where there is no such query either, since exp of a bias might be more
// than a float.
__device__ __forceinline__ void add_bias_of_keys(float (&s)[1][2][4], const Bias& bias,
                                                 const AttentionShape& shape, int first, int query,
                                                 float inverse) {
    const auto add = [&](int j, const float* row) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float& score = s[0][j / 2][j % 2 + 2 * h];
            score = fmaf(bias_at(row, bias, first + 8 * h, shape.keys), inverse, score);
            if (query + j / 2 * 8 + j % 2 >= shape.queries) score = -kInfinity;
        }
    };
    if (bias.query == 0) {
        const float* row = bias_row(bias, 0);
#pragma unroll
        for (int j = 0; j < 4; ++j) add(j, row);
    } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            add(j, bias_row(bias, min(query + j / 2 * 8 + j % 2, shape.queries - 1)));
        }
    }
}

// Which tiles get a mask: none; the last one, if it is not whole; or all, for a bias.
enum class Masks { none, last, all };

// Calls body(tile, masked) for all tiles, as each has arrived, with what copy_too(tile) copies.
// Tiles with a mask and tiles without have a loop each.
template <Masks kMasks, int kDim, class Copy, class Body>
__device__ __forceinline__ void for_tiles(const Tiles<kDim>& tiles, const Rows& a, const Rows& b,
                                          int count, const Copy& copy_too, const Body& body) {
    const int all = (count + kTileRows - 1) / kTileRows;
    Copies<kDim> copies(a, b, count);
    const auto copy = [&](int tile) {
        if (tile < all) {
            copies.next(tiles.first(tile), tiles.second(tile));
            copy_too(tile);
        }
        cp_async_commit();
    };
    copy(0);
    // Waits for a tile and starts copying the one after it.
    const auto arrive = [&](int tile) {
        cp_async_wait<0>();
        __syncthreads();  // for all threads, and nobody reads the tile before this one any more
        copy(tile + 1);
    };
    int tile = 0;
    if constexpr (kMasks == Masks::none) {
#pragma unroll 1
        do {
            arrive(tile);
            body(tile, std::false_type{});
        } while (++tile < all);
    } else {
        if constexpr (kMasks == Masks::last) {
#pragma unroll 1
            for (; tile < count / kTileRows; ++tile) {
                arrive(tile);
                body(tile, std::false_type{});
            }
        }
#pragma unroll 1
        for (; tile < all; ++tile) {
            arrive(tile);
            body(tile, std::true_type{});
        }
    }
}
template <Masks kMasks, int kDim, class Body>
__device__ __forceinline__ void for_tiles(const Tiles<kDim>& tiles, const Rows& a, const Rows& b,
                                          int count, const Body& body) {
    for_tiles<kMasks>(tiles, a, b, count, [](int) {}, body);
}

// `rows` rows, 16 kTiles a warp, for each head.
template <auto kKernel, int kDim, int kTiles, class Arguments>
cudaError_t launch_tiles(const AttentionShape& shape, int rows, cudaStream_t stream,
                         const Arguments& arguments) {
    static_assert(Tiles<kDim>::kBytes + kStatisticsBytes <= 99 << 10, "");
    constexpr int kBytes = Tiles<kDim>::kBytes + kStatisticsBytes;
    const cudaError_t error = allow_shared<kKernel>(kBytes);
    if (error != cudaSuccess) return error;
    constexpr int kRows = 16 * kTiles * kAttentionWarps;
    const dim3 grid(static_cast<unsigned>((rows + kRows - 1) / kRows),
                    static_cast<unsigned>(shape.heads), static_cast<unsigned>(shape.batch));
    return launch(kKernel, grid, dim3(kAttentionThreads), kBytes, stream, arguments);
}

}  // namespace udp
