// The gradient of q alone where all keys fit one tile, as in cross-attention to a text:
//
//     S = q kᵀ    P = softmax(scale S + bias)    dP = dO vᵀ    dS = P ∘ (dP − Σ_j P dP)    dq =
//     scale dS k
//
// A block keeps k and v of one head in shared memory; after that its warps go their own ways,
// without a barrier, each with 32 rows (16 where there are more than 80 keys) of q and dO at a
// time. All of a row's scores are in the registers of a quad: nothing needs to have been saved in
// the forward, and nothing is written but dq. Three products, no atomics.
//
// q and dO come, and dq goes, by 16 bytes a lane without a detour by shared memory. The order of
// columns within the sum over them is free as long as both factors have the same, and so is the
// order in which dq's columns are computed. So k and v are stored with the columns of each piece
// (32 wide) permuted such that what an mma fragment wants of a lane, columns 2t and 2t + 1 of four
// chunks, are the eight neighbours 8t … 8t + 7 of memory.
#include <algorithm>
#include <cmath>

#include "attention.cuh"

namespace udp {
namespace {

struct OneTile {
    AttentionShape shape;
    Operand grad_out, q, k, v, dq;
    Bias bias;
    float scale;        // what is left of it: k is multiplied by a power of two in shared memory,
    uint32_t k_factor;  // these two float16
    uint32_t all_bits;  // all ones; see `multiply`
};

template <int kDim, int kKeys>
constexpr int kOneTileBytes = 2 * kKeys * Columns<kDim>::kStride * 2 + kKeys * 16;

// Where column d of k and v is kept: in a piece of n chunks a lane has 2n neighbours, two of a
// chunk.
template <int kDim>
__device__ __forceinline__ int place(int d) {
    const int piece = d / 32, n = Columns<kDim>::chunks(piece), rest = d % 32;
    const int t = rest / (2 * n), pair = rest % (2 * n) / 2;
    return 32 * piece + 8 * pair + 2 * t + rest % 2;
}

// All keys' rows, permuted; zeros beyond the last key. kScaled: times `factor`.
template <int kDim, int kKeys, bool kScaled>
__device__ __forceinline__ void fill(uint16_t* tile, Rows from, int keys, uint32_t factor) {
    constexpr int kChunks = Columns<kDim>::kChunks;
    for (int i = static_cast<int>(threadIdx.x); i < kKeys * kChunks; i += kAttentionThreads) {
        const int key = i / kChunks, chunk = i - key * kChunks;
        uint4 words = make_uint4(0, 0, 0, 0);
        if (key < keys) {
            words =
                load_global<Cache::read_only>(reinterpret_cast<const uint4*>(from.at(key)) + chunk);
        }
        uint16_t* row = tile + key * Columns<kDim>::kStride;
        const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int w = 0; w < 4; ++w) {
            store_shared(reinterpret_cast<uint32_t*>(row + place<kDim>(8 * chunk + 2 * w)),
                         kScaled ? multiply_float16(word[w], factor) : word[w]);
        }
    }
}

// A lane's words of one piece of the rows g + 8h of the 16-row tiles r: word i has columns 2t and
// 2t + 1 of chunk i.
template <int kTiles>
struct Piece {
    uint32_t word[kTiles][2][4];
};

// The rows of a tensor as this lane has them: at its neighbours of a whole piece, and of the rest.
template <int kDim>
struct LaneRows {
    Rows whole, rest;

    __device__ __forceinline__ LaneRows(const Rows& rows, int t)
        : whole{kept(rows.data + 16 * t), rows.stride},
          rest{kept(rows.data + 64 * Columns<kDim>::kWhole + 4 * Columns<kDim>::kRest * t),
               rows.stride} {}

    __device__ __forceinline__ unsigned char* at(int row, int piece) const {
        return piece < Columns<kDim>::kWhole ? whole.at(row) + 64 * piece : rest.at(row);
    }
};

template <int kDim, int kTiles>
__device__ __forceinline__ Piece<kTiles> fetch(const LaneRows<kDim>& from,
                                               const int (&rows)[kTiles][2], int piece) {
    Piece<kTiles> found{};
    const int chunks = Columns<kDim>::chunks(piece);
#pragma unroll
    for (int r = 0; r < kTiles; ++r) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            uint32_t (&word)[4] = found.word[r][h];
            const int row = rows[r][h];
            if (chunks == 4) {
                const uint4 four =
                    load_global<Cache::keep>(reinterpret_cast<const uint4*>(from.at(row, piece)));
                word[0] = four.x, word[1] = four.y, word[2] = four.z, word[3] = four.w;
            } else if (chunks == 2) {
                const uint2 two =
                    load_global<Cache::keep>(reinterpret_cast<const uint2*>(from.at(row, piece)));
                word[0] = two.x, word[1] = two.y;
            } else {
                word[0] = load_global<Cache::keep>(
                    reinterpret_cast<const uint32_t*>(from.at(row, piece)));
            }
        }
    }
    return found;
}

template <int kDim>
__device__ __forceinline__ Piece<1> fetch(const LaneRows<kDim>& from, const int (&rows)[2],
                                          int piece) {
    const int one[1][2] = {{rows[0], rows[1]}};
    return fetch<kDim>(from, one, piece);
}

// sums[r][j] += this piece's share in rows r times key n-tile j. `lane_of` are the addresses that
// this lane gives ldmatrix: of a whole piece (0) or of the rest (1).
template <class Half, int kDim, int kKeys, int kTiles>
__device__ __forceinline__ void multiply(float (&sums)[kTiles][kKeys / 8][4],
                                         const Piece<kTiles>& fetched, uint32_t all_bits,
                                         const uint16_t* whole, const uint16_t* rest, int piece) {
    constexpr int kStride = Columns<kDim>::kStride;
    const int chunks = Columns<kDim>::chunks(piece);
    // The words come in the order of a row; as operands of an mma they lie in that of a chunk. A
    // move that ptxas can see through it would do again for each mma, since a group of registers
    // would stay together: hence a logical operation whose result only the host knows.
    Piece<kTiles> rows;
#pragma unroll
    for (int r = 0; r < kTiles; ++r) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                rows.word[r][h][i] = fetched.word[r][h][i] & all_bits;
            }
        }
    }
    const auto step16 = [&](int j, int chunk, uint32_t low, uint32_t high) {
        const uint32_t b[2] = {low, high};
#pragma unroll
        for (int r = 0; r < kTiles; ++r) {
            const uint32_t a[4] = {rows.word[r][0][chunk], rows.word[r][1][chunk],
                                   rows.word[r][0][chunk + 1], rows.word[r][1][chunk + 1]};
            mma_m16n8k16<Half>(sums[r][j], a, b);
        }
    };
    const auto step8 = [&](int j, uint32_t b) {
#pragma unroll
        for (int r = 0; r < kTiles; ++r) {
            const uint32_t a[2] = {rows.word[r][0][0], rows.word[r][1][0]};
            mma_m16n8k8<Half>(sums[r][j], a, b);
        }
    };
    if (chunks == 4) {
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
            uint32_t b[4];
            ldmatrix(b, whole + 8 * j * kStride + 32 * piece);
            step16(j, 0, b[0], b[1]);
            step16(j, 2, b[2], b[3]);
        }
    } else if (chunks == 2) {
#pragma unroll
        for (int j = 0; j < kKeys / 8; j += 2) {
            uint32_t b[4];
            ldmatrix(b, rest + 8 * j * kStride);
            step16(j, 0, b[0], b[1]);
            step16(j + 1, 0, b[2], b[3]);
        }
    } else {
#pragma unroll
        for (int j = 0; j + 4 <= kKeys / 8; j += 4) {
            uint32_t b[4];
            ldmatrix(b, rest + 8 * j * kStride);
#pragma unroll
            for (int i = 0; i < 4; ++i) step8(j + i, b[i]);
        }
        if constexpr (kKeys / 8 % 4 == 2) {
            uint32_t b[2];
            ldmatrix(b, rest + (kKeys - 16) * kStride);
            step8(kKeys / 8 - 2, b[0]);
            step8(kKeys / 8 - 1, b[1]);
        }
    }
}

// sums[r][j] += the bias of the keys; `columns` is where this lane's key has its own.
template <int kKeys, int kTiles>
__device__ __forceinline__ void add_bias(float (&sums)[kTiles][kKeys / 8][4],
                                         const uint16_t* columns, const uint32_t (&ones)[2]) {
    const auto step = [&](int j, uint32_t b) {
#pragma unroll
        for (int r = 0; r < kTiles; ++r) mma_m16n8k8<__nv_bfloat16>(sums[r][j], ones, b);
    };
#pragma unroll
    for (int j = 0; j + 4 <= kKeys / 8; j += 4) {
        uint32_t b[4];
        ldmatrix(b, columns + 64 * j);
#pragma unroll
        for (int i = 0; i < 4; ++i) step(j + i, b[i]);
    }
    if constexpr (kKeys / 8 % 4 == 2) {
        uint32_t b[2];
        ldmatrix(b, columns + 8 * (kKeys - 16));
        step(kKeys / 8 - 2, b[0]);
        step(kKeys / 8 - 1, b[1]);
    }
}

// The same of a bias that differs between queries, which comes from memory: of rows[r][h], and of
// keys from `key` on, this lane's first.
template <int kKeys, int kTiles>
__device__ __forceinline__ void add_bias(float (&sums)[kTiles][kKeys / 8][4], const Bias& bias,
                                         const int (&rows)[kTiles][2], int key, int keys,
                                         float inverse) {
    const float* of_rows[2 * kTiles];
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) of_rows[i] = bias_row(bias, rows[i / 2][i % 2]);
#pragma unroll
    for (int j = 0; j < kKeys / 4; ++j) {
        if (j % 8 == 0) __syncwarp();  // keeps ptxas from loading all at once
#pragma unroll
        for (int i = 0; i < 2 * kTiles; ++i) {
            float& score = sums[i / 2][j / 2][i % 2 * 2 + j % 2];
            const float value = bias_at(of_rows[i], bias, key + j / 2 * 8 + j % 2, keys);
            score = fmaf(value, inverse, score);
        }
    }
}

// s, a quad's scores of two rows in the accumulators' order, becomes exp(S - max); sum, its sums.
template <int kKeys>
__device__ __forceinline__ void exponentials(float (&s)[kKeys / 8][4], float scale,
                                             float (&sum)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float most = kLeastMaximum;
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
            most = fmaxf(most, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
        }
        most = quad_max(most);
        const float shift = -most * scale;
        sum[h] = kLeastSum;
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
            for (int e = 2 * h; e < 2 * h + 2; ++e) {
                s[j][e] = exp2_approx(fmaf(s[j][e], scale, shift));
                sum[h] += s[j][e];
            }
        }
        sum[h] = quad_sum(sum[h]);
    }
}

// scale dS of two rows, in the order of an mma's first operand. e: exp(S - max), sum: its sums. The
// division by the sum and the scale cost nothing: they are part of an fma that is needed anyway.
template <class Half, int kKeys>
__device__ __forceinline__ void gradient_of_scores(uint32_t (&ds)[kKeys / 16][4],
                                                   const float (&e)[kKeys / 8][4],
                                                   const float (&dp)[kKeys / 8][4],
                                                   const float (&sum)[2], float scale) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float delta = 0.0f;
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
            delta = fmaf(e[j][2 * h], dp[j][2 * h], delta);
            delta = fmaf(e[j][2 * h + 1], dp[j][2 * h + 1], delta);
        }
        const float inverse = reciprocal_approx(sum[h]);
        const float factor = inverse * scale;
        const float shift = -(quad_sum(delta) * inverse) * factor;
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
            ds[j / 2][j % 2 * 2 + h] =
                pack<Half>(e[j][2 * h] * fmaf(dp[j][2 * h], factor, shift),
                           e[j][2 * h + 1] * fmaf(dp[j][2 * h + 1], factor, shift));
        }
    }
}

// kByQuery: the bias differs between queries.
template <class Half, int kDim, int kKeys, int kTiles, bool kByQuery>
__device__ __forceinline__ void dq_of_one_tile(const OneTile& p) {
    using Layout = Columns<kDim>;
    constexpr int kStride = Layout::kStride;
    UDP_DYNAMIC_SHARED(uint16_t, k);
    uint16_t* v = k + kKeys * kStride;
    uint16_t* biases = v + kKeys * kStride;

    const int keys = p.shape.keys;
    // dS in float16 must keep away from its smallest numbers, and 1 / sqrt(d) brings it nearer; k
    // can take most of that.
    constexpr bool kScaled = std::is_same<Half, __half>::value;
    fill<kDim, kKeys, kScaled>(k, p.k.of_block(), keys, p.k_factor);
    fill<kDim, kKeys, false>(v, p.v.of_block(), keys, 0);
    if constexpr (!kByQuery) {
        for (int j = static_cast<int>(threadIdx.x); j < kKeys; j += kAttentionThreads) {
            store_shared(reinterpret_cast<uint4*>(biases + 8 * j),
                         bias_columns(p.bias, j, keys, p.scale));
        }
    }
    __syncthreads();

    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int g = lane / 4, t = lane % 4;
    const float exponent_scale = p.scale * kLog2E;
    // What this lane contributes to ldmatrix: row and chunk of its matrix.
    const int whole = lane % 8 * kStride + 8 * (lane / 8);
    const int rest = (Layout::kRest == 2 ? (lane / 16 * 8 + lane % 8) * kStride + 8 * (lane / 8 % 2)
                                         : lane * kStride) +
                     32 * Layout::kWhole;
    const int across = lane % 16 * kStride + 8 * (lane / 16);

    const LaneRows<kDim> q(p.q.of_block(), t);
    const LaneRows<kDim> grad_out(p.grad_out.of_block(), t);
    const LaneRows<kDim> dq(p.dq.of_block(), t);
    const int step = kAttentionWarps * static_cast<int>(gridDim.x);
    const int tiles = (p.shape.queries + 16 * kTiles - 1) / (16 * kTiles);
    const uint32_t ones[2] = {ones_for_bias(t), ones_for_bias(t)};
    int rows[kTiles][2];
    const auto go_to = [&](int tile) {
#pragma unroll
        for (int r = 0; r < kTiles; ++r) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {  // past the end: the last row once more, not stored
                rows[r][h] = min((tile * kTiles + r) * 16 + 8 * h + g, p.shape.queries - 1);
            }
        }
    };

    int tile = kAttentionWarps * static_cast<int>(blockIdx.x) + warp;
    if (tile >= tiles) return;
    go_to(tile);
    Piece<kTiles> current = fetch<kDim>(q, rows, 0);
    for (;;) {
        // S = q kᵀ, on top of the bias.
        float s[kTiles][kKeys / 8][4] = {};
        if constexpr (kByQuery) {
            // Seen through, ptxas would keep the offsets of all keys in registers.
            const int key = kept(2 * t);
            add_bias<kKeys>(s, p.bias, rows, key, keys, 1.0f / p.scale);
        } else {
            add_bias<kKeys>(s, biases + 8 * lane, ones);
        }
        // A piece is asked for while the one before is multiplied, dO's first while q's last is.
        Piece<1> gradient;
#pragma unroll
        for (int piece = 0; piece < Layout::kPieces; ++piece) {
            Piece<kTiles> next{};
            if (piece + 1 < Layout::kPieces) {
                next = fetch<kDim>(q, rows, piece + 1);
            } else {
                gradient = fetch<kDim>(grad_out, rows[0], 0);
            }
            multiply<Half, kDim, kKeys>(s, current, p.all_bits, k + whole, k + rest, piece);
            current = next;
        }

        // dP = dO vᵀ and dS, 16 rows after the other: for both at once there are no registers.
        uint32_t ds[kTiles][kKeys / 16][4];
#pragma unroll
        for (int r = 0; r < kTiles; ++r) {
            __syncwarp();  // keeps ptxas from mixing them
            float sum[2];
            exponentials<kKeys>(s[r], exponent_scale, sum);
            float dp[1][kKeys / 8][4] = {};
#pragma unroll
            for (int piece = 0; piece < Layout::kPieces; ++piece) {
                Piece<1> next{};
                if (piece + 1 < Layout::kPieces) {
                    next = fetch<kDim>(grad_out, rows[r], piece + 1);
                } else if (r + 1 < kTiles) {
                    next = fetch<kDim>(grad_out, rows[r + 1], 0);
                }
                multiply<Half, kDim, kKeys>(dp, gradient, p.all_bits, v + whole, v + rest, piece);
                gradient = next;
            }
            gradient_of_scores<Half, kKeys>(ds[r], s[r], dp[0], sum, p.scale);
        }

        __syncwarp();

        // dq = dS k, a piece of columns at a time.
        const int first = tile * 16 * kTiles + g;
        tile += step;
        go_to(tile);
        current = fetch<kDim>(q, rows, 0);
#pragma unroll
        for (int piece = 0; piece < Layout::kPieces; ++piece) {
            constexpr int kMost = 4;
            const int chunks = Layout::chunks(piece);
            float sums[kTiles][kMost][4] = {};
#pragma unroll
            for (int i = 0; i < kKeys / 16; ++i) {
#pragma unroll
                for (int c = 0; c < kMost; c += 2) {
                    if (c >= chunks) continue;
                    const uint16_t* from = k + across + 16 * i * kStride + 32 * piece + 8 * c;
                    uint32_t b[4];
                    if (chunks == 1) {
                        uint32_t one[2];
                        ldmatrix<true>(one, from);
                        b[0] = one[0], b[1] = one[1];
                    } else {
                        ldmatrix<true>(b, from);
                    }
#pragma unroll
                    for (int r = 0; r < kTiles; ++r) {
                        mma_m16n8k16<Half>(sums[r][c], ds[r][i], {b[0], b[1]});
                        if (chunks > 1) mma_m16n8k16<Half>(sums[r][c + 1], ds[r][i], {b[2], b[3]});
                    }
                }
            }
#pragma unroll
            for (int r = 0; r < kTiles; ++r) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    uint32_t word[kMost];
#pragma unroll
                    for (int c = 0; c < kMost; ++c) {
                        word[c] = pack<Half>(sums[r][c][2 * h], sums[r][c][2 * h + 1]);
                    }
                    const int row = first + 16 * r + 8 * h;
                    const bool wanted = row < p.shape.queries;
                    if (chunks == 4) {
                        store_global_if(wanted, reinterpret_cast<uint4*>(dq.at(row, piece)),
                                        make_uint4(word[0], word[1], word[2], word[3]));
                    } else if (chunks == 2) {
                        store_global_if(wanted, reinterpret_cast<uint2*>(dq.at(row, piece)),
                                        make_uint2(word[0], word[1]));
                    } else {
                        store_global_if(wanted, reinterpret_cast<uint32_t*>(dq.at(row, piece)),
                                        word[0]);
                    }
                }
            }
        }
        if (tile >= tiles) return;
    }
}

template <class Half, int kDim, int kKeys, int kTiles>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_dq_one_tile(const __grid_constant__ OneTile p) {
    dq_of_one_tile<Half, kDim, kKeys, kTiles, false>(p);
}
// One size for any number of keys: a mask for each query is rare where there are so few.
template <class Half, int kDim>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_dq_one_tile_by_query(const __grid_constant__ OneTile p) {
    dq_of_one_tile<Half, kDim, 128, 1, true>(p);
}

template <auto kKernel, int kDim, int kKeys, int kTiles>
cudaError_t run(const OneTile& p, cudaStream_t stream) {
    constexpr int kBytes = kOneTileBytes<kDim, kKeys>;
    static_assert(kBytes <= 99 << 10, "");
    int64_t resident = 0;
    const cudaError_t error = resident_blocks<kKernel>(kAttentionThreads, kBytes, resident);
    if (error != cudaSuccess) return error;
    // As many blocks a head as find room at once, and all with equally many tiles.
    const int64_t heads = int64_t{p.shape.batch} * p.shape.heads;
    const int64_t rows = 16 * kTiles * kAttentionWarps;
    const int64_t rounds = (p.shape.queries + rows - 1) / rows;
    const int64_t most = std::max(resident / heads, int64_t{1});
    const int64_t each = (rounds + most - 1) / most;
    const dim3 grid(static_cast<unsigned>((rounds + each - 1) / each),
                    static_cast<unsigned>(p.shape.heads), static_cast<unsigned>(p.shape.batch));
    return launch(kKernel, grid, dim3(kAttentionThreads), kBytes, stream, p);
}

template <class Half, int kDim>
cudaError_t run(const OneTile& p, cudaStream_t stream) {
    // With 32 rows a warp k and v are read half as often; but for more keys there are no registers,
    // and with a head dim of 80 ptxas spills for sm_90.
    constexpr int kTiles = kDim == 80 ? 1 : 2;
    if (p.bias.query != 0) {
        return run<attention_dq_one_tile_by_query<Half, kDim>, kDim, 128, 1>(p, stream);
    }
    if (p.shape.keys > 80) {
        return run<attention_dq_one_tile<Half, kDim, 128, 1>, kDim, 128, 1>(p, stream);
    }
    return run<attention_dq_one_tile<Half, kDim, 80, kTiles>, kDim, 80, kTiles>(p, stream);
}

}  // namespace
}  // namespace udp

int udp_attention_one_tile(const udp::AttentionShape* shape, const udp::Heads* grad_out,
                           const udp::Heads* q, const udp::Heads* k, const udp::Heads* v,
                           const udp::Bias* bias, const udp::Heads* dq, void* stream) {
    if (shape->keys < 1 || shape->keys > 128 || shape->queries < 1) return cudaErrorInvalidValue;
    using udp::Operand;
    const bool is_float16 = shape->type == udp::DType::float16;
    const int exponent = is_float16 ? std::min(std::max(std::ilogb(shape->scale), -14), 0) : 0;
    const uint32_t factor = static_cast<uint32_t>(exponent + 15) << 10;
    const udp::OneTile p{*shape,
                         Operand(*grad_out),
                         Operand(*q),
                         Operand(*k),
                         Operand(*v),
                         Operand(*dq),
                         *bias,
                         std::ldexp(shape->scale, -exponent),
                         factor | factor << 16,
                         ~0u};
    return udp::for_half_and_dim(*shape, [&](auto half, auto dim) {
        return udp::run<typename decltype(half)::type, dim>(p, static_cast<cudaStream_t>(stream));
    });
}
