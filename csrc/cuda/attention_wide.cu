// Attention with one head of 512 columns, as in the middle of a VAE, in float16 and bfloat16. The
// sums of 64 rows are 128 KB, which is half of a multiprocessor's registers: eight warps have 64
// columns each of all 64 rows. For the scores they share out the rows and the 128 columns of a tile
// instead, 32 by 32, so that what each reads of shared memory serves two products, or four.
#include "attention_blocks.cuh"

namespace udp {
namespace {

template <class Half>
struct WideTile {
    static constexpr int kDim = 512, kWarps = 8, kThreads = 32 * kWarps;
    static constexpr int kSlots = 4, kColumnSlots = 8, kColumns = 128, kPartials = 4;
    // An odd number of 16-byte chunks between rows, so that ldmatrix meets no bank conflict.
    static constexpr int kRowBytes = 2 * kDim, kValueStride = kRowBytes + 16;
    static constexpr bool kExact = false;
    static constexpr int kWeightStride = kColumns + 8;
    static constexpr int kWeightBytes = kBlockRows * kWeightStride * 2;

    struct Scores {
        float at[2][4][4];  // 16 rows, eight columns, an mma's
    };
    struct Sums {
        float at[kBlockRows / 16][kDim / kWarps / 8][4];
    };
    int lane, warp, g, t;

    __device__ __forceinline__ explicit WideTile(int thread)
        : lane(thread % 32), warp(thread / 32), g(lane / 4), t(lane % 4) {}

    __device__ __forceinline__ int row_of(int slot) const {
        return warp / 4 * 32 + slot / 2 * 16 + slot % 2 * 8 + g;
    }
    __device__ __forceinline__ int column_of(int c) const {
        return warp % 4 * 32 + c / 2 * 8 + 2 * t + c % 2;
    }
    __device__ __forceinline__ static float& of(Scores& s, int slot, int c) {
        return s.at[slot / 2][c / 2][slot % 2 * 2 + c % 2];
    }

    __device__ __forceinline__ void multiply(Scores& s, const unsigned char* stage) const {
        constexpr int kStride = Stage<WideTile>::kStride;
        const unsigned char* rows = stage + (warp / 4 * 32 + lane % 16) * kStride + lane / 16 * 16;
        const unsigned char* columns =
            stage + (kBlockRows + warp % 4 * 32 + lane / 16 * 8 + lane % 8) * kStride +
            lane / 8 % 2 * 16;
#pragma unroll
        for (int k = 0; k < Stage<WideTile>::kDepth; k += 32) {
            uint32_t a[2][4];
#pragma unroll
            for (int r = 0; r < 2; ++r) ldmatrix(a[r], rows + 16 * r * kStride + k);
#pragma unroll
            for (int j = 0; j < 4; j += 2) {
                uint32_t b[4];
                ldmatrix(b, columns + 8 * j * kStride + k);
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    mma_m16n8k16<Half>(s.at[r][j], a[r], {b[0], b[1]});
                    mma_m16n8k16<Half>(s.at[r][j + 1], a[r], {b[2], b[3]});
                }
            }
        }
    }

    // Over the lanes of a quad.
    __device__ __forceinline__ void most(float (&of_rows)[kSlots]) const {
#pragma unroll
        for (float& x : of_rows) x = quad_max(x);
    }
    __device__ __forceinline__ void total(float (&of_rows)[kSlots]) const {
#pragma unroll
        for (float& x : of_rows) x = quad_sum(x);
    }
    __device__ __forceinline__ void put(float* partial, const float (&of_rows)[kSlots]) const {
        if (t != 0) return;
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot) {
            store_shared(partial + warp % 4 * kBlockRows + row_of(slot), of_rows[slot]);
        }
    }

    __device__ __forceinline__ void put_weights(unsigned char* weights, const Scores& s) const {
        uint16_t* to = reinterpret_cast<uint16_t*>(weights) + column_of(0);
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float* pair = s.at[slot / 2][j] + slot % 2 * 2;
                store_shared(reinterpret_cast<uint32_t*>(to + row_of(slot) * kWeightStride + 8 * j),
                             pack<Half>(pair[0], pair[1]));
            }
        }
    }

    __device__ __forceinline__ void accumulate(Sums& sums, const unsigned char* weights, int step,
                                               const unsigned char* stage) const {
        const uint16_t* from = reinterpret_cast<const uint16_t*>(weights) +
                               lane % 16 * kWeightStride + lane / 16 * 8 + 16 * step;
        const unsigned char* values =
            stage + lane % 16 * kValueStride + lane / 16 * 16 + warp * (kRowBytes / kWarps);
        uint32_t a[kBlockRows / 16][4];
#pragma unroll
        for (int r = 0; r < kBlockRows / 16; ++r) ldmatrix(a[r], from + 16 * r * kWeightStride);
#pragma unroll
        for (int c = 0; c < kDim / kWarps / 8; c += 2) {
            uint32_t b[4];
            ldmatrix<true>(b, values + 16 * c);
#pragma unroll
            for (int r = 0; r < kBlockRows / 16; ++r) {
                mma_m16n8k16<Half>(sums.at[r][c], a[r], {b[0], b[1]});
                mma_m16n8k16<Half>(sums.at[r][c + 1], a[r], {b[2], b[3]});
            }
        }
    }

    __device__ __forceinline__ void shrink(Sums& sums, const float* factors) const {
#pragma unroll
        for (int i = 0; i < kBlockRows / 8; ++i) {
            const float factor = load_shared(factors + 8 * i + g);
#pragma unroll
            for (float (&x)[4] : sums.at[i / 2]) {
                x[i % 2 * 2] *= factor;
                x[i % 2 * 2 + 1] *= factor;
            }
        }
    }

    __device__ __forceinline__ void store(const Rows& to, const Sums& sums, float factor, int first,
                                          int count) const {
#pragma unroll
        for (int i = 0; i < kBlockRows / 8; ++i) {
            const int row = first + 8 * i + g;
            if (row >= count) continue;
            uint32_t* words =
                reinterpret_cast<uint32_t*>(to.at(row) + warp * (kRowBytes / kWarps) + 4 * t);
#pragma unroll
            for (int c = 0; c < kDim / kWarps / 8; ++c) {
                const float* pair = sums.at[i / 2][c] + i % 2 * 2;
                store_global(words + 4 * c, pack<Half>(pair[0] * factor, pair[1] * factor));
            }
        }
    }
};

template <class Half>
__global__ void __launch_bounds__(WideTile<Half>::kThreads)
    attention_wide_forward(const __grid_constant__ Blocks p) {
    attend<WideTile<Half>, Wanted::out>(p);
}
template <class Half>
__global__ void __launch_bounds__(WideTile<Half>::kThreads)
    attention_wide_dq(const __grid_constant__ Blocks p) {
    attend<WideTile<Half>, Wanted::dq>(p);
}
template <class Half>
__global__ void __launch_bounds__(WideTile<Half>::kThreads)
    attention_wide_dq_one_tile(const __grid_constant__ Blocks p) {
    attend<WideTile<Half>, Wanted::dq_of_one_tile>(p);
}
template <class Half>
__global__ void __launch_bounds__(WideTile<Half>::kThreads)
    attention_wide_dk(const __grid_constant__ Blocks p) {
    attend<WideTile<Half>, Wanted::dk>(p);
}
template <class Half>
__global__ void __launch_bounds__(WideTile<Half>::kThreads)
    attention_wide_dv(const __grid_constant__ Blocks p) {
    attend<WideTile<Half>, Wanted::dv>(p);
}

template <class Half>
cudaError_t run(const Backward& b, cudaStream_t stream) {
    using Tile = WideTile<Half>;
    const int queries = b.shape.queries, keys = b.shape.keys;
    cudaError_t error = launch_delta<Half>(b, stream);
    if (error == cudaSuccess && b.dq.data != nullptr) {
        error = launch_blocks<attention_wide_dq<Half>, Tile>(dq_blocks(b), queries, stream);
    }
    if (error == cudaSuccess && b.dk.data != nullptr) {
        error =
            launch_blocks<attention_wide_dk<Half>, Tile>(dkdv_blocks(b, b.dk, {}), keys, stream);
    }
    if (error == cudaSuccess && b.dv.data != nullptr) {
        error =
            launch_blocks<attention_wide_dv<Half>, Tile>(dkdv_blocks(b, b.dv, {}), keys, stream);
    }
    return error;
}

}  // namespace
}  // namespace udp

int udp_attention_wide(const udp::AttentionShape* shape, const udp::Heads* q, const udp::Heads* k,
                       const udp::Heads* v, const udp::Bias* bias, const udp::Heads* out,
                       float* lse, void* stream) {
    if (shape->dim != 512) return cudaErrorInvalidValue;
    const udp::Blocks p = udp::forward_blocks(*shape, 2, *q, *k, *v, *bias, *out, lse);
    return udp::for_half(shape->type, [&](auto half) {
        using Half = typename decltype(half)::type;
        return udp::launch_blocks<udp::attention_wide_forward<Half>, udp::WideTile<Half>>(
            p, shape->queries, static_cast<cudaStream_t>(stream));
    });
}

int udp_attention_wide_backward(const udp::AttentionShape* shape, const udp::Heads* grad_out,
                                const udp::Heads* q, const udp::Heads* k, const udp::Heads* v,
                                const udp::Bias* bias, const udp::Heads* out, const float* lse,
                                const udp::Heads* dq, const udp::Heads* dk, const udp::Heads* dv,
                                void* workspace, void* stream) {
    if (shape->dim != 512) return cudaErrorInvalidValue;
    const udp::Backward b = udp::backward_of(*shape, 2, *grad_out, *q, *k, *v, *bias, *out, lse,
                                             *dq, *dk, *dv, workspace);
    return udp::for_half(shape->type, [&](auto half) {
        return udp::run<typename decltype(half)::type>(b, static_cast<cudaStream_t>(stream));
    });
}

int udp_attention_wide_one_tile(const udp::AttentionShape* shape, const udp::Heads* grad_out,
                                const udp::Heads* q, const udp::Heads* k, const udp::Heads* v,
                                const udp::Bias* bias, const udp::Heads* dq, void* stream) {
    if (shape->dim != 512 || shape->keys > 128) return cudaErrorInvalidValue;
    const udp::Blocks p = udp::one_tile_blocks(*shape, 2, *grad_out, *q, *k, *v, *bias, *dq);
    return udp::for_half(shape->type, [&](auto half) {
        using Half = typename decltype(half)::type;
        return udp::launch_blocks<udp::attention_wide_dq_one_tile<Half>, udp::WideTile<Half>>(
            p, shape->queries, static_cast<cudaStream_t>(stream));
    });
}
