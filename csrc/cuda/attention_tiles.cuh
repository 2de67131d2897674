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

// What a thread copies of two tensors' tiles: the same chunk of every few rows, one tile after the
// other.
template <int kDim>
struct Copies {
    static constexpr int kChunks = Columns<kDim>::kChunks, kAtOnce = kAttentionThreads / kChunks;

    const unsigned char *a, *b;
    uint32_t a_rows, b_rows, a_more,
        b_more;         // bytes of kAtOnce rows, of what 64 are more than such
    int row, left, to;  // the thread's first row of a tile; rows from there to the end; its place

    __device__ __forceinline__ Copies(const Rows& from_a, const Rows& from_b, int count) {
        const int thread = static_cast<int>(threadIdx.x), chunk = thread % kChunks;
        row = thread / kChunks;
        // Threads that are too many copy rows that no tile has.
        if (kAttentionThreads % kChunks != 0 && row >= kAtOnce) row = kTileRows;
        left = count - row;
        a = from_a.at(row) + 16 * chunk;
        b = from_b.at(row) + 16 * chunk;
        a_rows = static_cast<uint32_t>(kAtOnce * from_a.stride);
        b_rows = static_cast<uint32_t>(kAtOnce * from_b.stride);
        a_more = static_cast<uint32_t>(kTileRows % kAtOnce * from_a.stride);
        b_more = static_cast<uint32_t>(kTileRows % kAtOnce * from_b.stride);
        to = row * Columns<kDim>::kStride + 8 * chunk;
    }
    // Starts copying the next tile; zeros beyond the last row, where nothing is read.
    __device__ __forceinline__ void next(uint16_t* to_a, uint16_t* to_b) {
        const unsigned char *from_a = a, *from_b = b;
#pragma unroll
        for (int i = 0; i < (kTileRows + kAtOnce - 1) / kAtOnce; ++i) {
            if (kTileRows % kAtOnce == 0 || row + i * kAtOnce < kTileRows) {
                const int bytes = i * kAtOnce < left ? 16 : 0;
                cp_async<16>(to_a + to + i * kAtOnce * Columns<kDim>::kStride, from_a, bytes);
                cp_async<16>(to_b + to + i * kAtOnce * Columns<kDim>::kStride, from_b, bytes);
            }
            from_a += a_rows;
            from_b += b_rows;
        }
        constexpr int kMore = kTileRows % kAtOnce;  // than whole steps; none: that was 64 rows
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

// A key's bias times the scale's inverse, -inf where there is no such key.
__device__ __forceinline__ float bias_before(const KeyBias& bias, int key, int keys,
                                             float inverse) {
    if (key >= keys) return -kInfinity;
    if (bias.data == nullptr) return 0.0f;
    const float value = load_global<Cache::read_only>(bias.data + blockIdx.z * bias.batch +
                                                      blockIdx.y * bias.head + key * bias.key);
    return value == -kInfinity ? value : fminf(fmaxf(value, -kMostBias), kMostBias) * inverse;
}

// Calls body(tile, masked) for all tiles, as each has arrived, with what copy_too(tile) copies.
// Whole tiles without bias have a loop of their own, which knows nothing of masks.
template <int kDim, class Copy, class Body>
__device__ __forceinline__ void for_tiles(const Tiles<kDim>& tiles, const Rows& a, const Rows& b,
                                          int count, bool masked, const Copy& copy_too,
                                          const Body& body) {
    const int all = (count + kTileRows - 1) / kTileRows, plain = masked ? 0 : count / kTileRows;
    Copies<kDim> copies(a, b, count);
    const auto copy = [&](int tile) {
        if (tile < all) {
            copies.next(tiles.first(tile), tiles.second(tile));
            copy_too(tile);
        }
        cp_async_commit();
    };
    copy(0);
    const auto arrive = [&](int tile) {
        cp_async_wait<0>();
        __syncthreads();  // for all threads, and nobody reads the tile before this one any more
        copy(tile + 1);
    };
    int tile = 0;
#pragma unroll 1
    for (; tile < plain; ++tile) {
        arrive(tile);
        body(tile, std::false_type{});
    }
#pragma unroll 1
    for (; tile < all; ++tile) {
        arrive(tile);
        body(tile, std::true_type{});
    }
}
template <int kDim, class Body>
__device__ __forceinline__ void for_tiles(const Tiles<kDim>& tiles, const Rows& a, const Rows& b,
                                          int count, bool masked, const Body& body) {
    for_tiles(tiles, a, b, count, masked, [](int) {}, body);
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

// Calls run(half, dim) with the types that stand for a dtype and a head dim.
template <class T>
struct Type {
    using type = T;
};
template <class Run>
cudaError_t for_dim(const AttentionShape& shape, const Run& run) {
    const auto of = [&](auto half) {
        switch (shape.dim) {
            case 40:
                return run(half, std::integral_constant<int, 40>{});
            case 64:
                return run(half, std::integral_constant<int, 64>{});
            case 80:
                return run(half, std::integral_constant<int, 80>{});
            case 128:
                return run(half, std::integral_constant<int, 128>{});
            case 160:
                return run(half, std::integral_constant<int, 160>{});
            default:
                return cudaErrorInvalidValue;
        }
    };
    return shape.type == DType::float16 ? of(Type<__half>{}) : of(Type<__nv_bfloat16>{});
}

}  // namespace udp
