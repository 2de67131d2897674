// Attention in float32, where a tensor core would round q, k and v to ten bits of mantissa, and
// what is wanted of a gradient is its sign: every product is an fma in float32. A thread has eight
// rows, and four columns of their scores, so that twelve 16-byte reads of shared memory are
// followed by 128 fma. The sums of a head's columns are shared out without padding: a block has as
// many groups of eight threads as divide them, 16 for 64 and 128, 20 for 40, 80 and 160, 32 for
// 512.
#include "attention_blocks.cuh"

namespace udp {
namespace {

constexpr int groups_of(int dim) {
    return dim > 160 ? 32 : dim % 5 == 0 ? 20 : 16;
}

template <int kDim, int kScores = 4>
struct FloatTile {
    static constexpr int kGroups = groups_of(kDim), kThreads = 8 * kGroups;
    static constexpr int kSlots = 8, kColumnSlots = kScores;
    static constexpr int kColumns = kColumnSlots * kGroups, kPartials = kGroups / 4;
    static constexpr int kRowBytes = 4 * kDim, kValueStride = kRowBytes;
    static constexpr bool kExact = true;
    static constexpr int kWeightStride = kColumns + 4;  // an odd number of 16-byte chunks
    static constexpr int kWeightBytes = kBlockRows * kWeightStride * 4;
    // Sums of a row that a thread has, some neighbours at a time.
    static constexpr int kWidth = kDim / kGroups, kSide = kWidth < 4 ? kWidth : 4;
    static_assert(kDim % kGroups == 0 && kWidth % kSide == 0, "");

    struct Scores {
        float at[kSlots][kColumnSlots];
    };
    struct Sums {
        float at[kSlots][kWidth];
    };
    int row, group;  // the rows are row + 8i, the columns group + kGroups j

    __device__ __forceinline__ explicit FloatTile(int thread)
        : row(thread % 8), group(thread / 8) {}

    __device__ __forceinline__ int row_of(int slot) const { return row + 8 * slot; }
    __device__ __forceinline__ int column_of(int c) const { return group + kGroups * c; }
    __device__ __forceinline__ static float& of(Scores& s, int slot, int c) {
        return s.at[slot][c];
    }

    __device__ __forceinline__ void multiply(Scores& s, const unsigned char* stage) const {
        constexpr int kStride = Stage<FloatTile>::kStride;
        const unsigned char* rows = stage + row * kStride;
        const unsigned char* columns = stage + (kBlockRows + group) * kStride;
#pragma unroll
        for (int k = 0; k < Stage<FloatTile>::kDepth; k += 16) {
            float4 b[kColumnSlots];
#pragma unroll
            for (int c = 0; c < kColumnSlots; ++c) b[c] = four(columns + kGroups * c * kStride + k);
#pragma unroll
            for (int slot = 0; slot < kSlots; ++slot) {
                const float4 a = four(rows + 8 * slot * kStride + k);
#pragma unroll
                for (int c = 0; c < kColumnSlots; ++c) {
                    float& sum = s.at[slot][c];
                    sum = fmaf(a.x, b[c].x, sum);
                    sum = fmaf(a.y, b[c].y, sum);
                    sum = fmaf(a.z, b[c].z, sum);
                    sum = fmaf(a.w, b[c].w, sum);
                }
            }
        }
    }

    // Over the groups of a warp, which are in lanes eight apart.
    __device__ __forceinline__ void most(float (&of_rows)[kSlots]) const {
#pragma unroll
        for (float& x : of_rows) {
            x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 8));
            x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 16));
        }
    }
    __device__ __forceinline__ void total(float (&of_rows)[kSlots]) const {
#pragma unroll
        for (float& x : of_rows) {
            x += __shfl_xor_sync(0xffffffffu, x, 8);
            x += __shfl_xor_sync(0xffffffffu, x, 16);
        }
    }
    __device__ __forceinline__ void put(float* partial, const float (&of_rows)[kSlots]) const {
        if (group % 4 != 0) return;
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot) {
            store_shared(partial + group / 4 * kBlockRows + row_of(slot), of_rows[slot]);
        }
    }

    __device__ __forceinline__ void put_weights(unsigned char* weights, const Scores& s) const {
        for_scores<FloatTile>(
            [&](int slot, int c) { store_shared(weight(weights, slot, c), s.at[slot][c]); });
    }
    __device__ __forceinline__ void get_weights(unsigned char* weights, Scores& s) const {
        for_scores<FloatTile>(
            [&](int slot, int c) { s.at[slot][c] = load_shared(weight(weights, slot, c)); });
    }

    __device__ __forceinline__ void accumulate(Sums& sums, const unsigned char* weights, int step,
                                               const unsigned char* stage) const {
        constexpr int kValueRows = Stage<FloatTile>::kValueRows;
        const unsigned char* from = weights + (row * kWeightStride + step * kValueRows) * 4;
        const unsigned char* values = stage + 4 * kSide * group;
#pragma unroll
        for (int k = 0; k < kValueRows; k += 4) {
            float4 w[kSlots];
#pragma unroll
            for (int slot = 0; slot < kSlots; ++slot) {
                w[slot] = four(from + (8 * slot * kWeightStride + k) * 4);
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float v[kWidth];
#pragma unroll
                for (int c = 0; c < kWidth; c += kSide) {
                    const unsigned char* at = values + (k + i) * kValueStride + 4 * kGroups * c;
                    if constexpr (kSide == 4) {
                        const float4 some = four(at);
                        v[c] = some.x, v[c + 1] = some.y, v[c + 2] = some.z, v[c + 3] = some.w;
                    } else {
                        static_assert(kSide == 2 || kSide == 4, "");
                        const float2 some = load_shared(reinterpret_cast<const float2*>(at));
                        v[c] = some.x, v[c + 1] = some.y;
                    }
                }
#pragma unroll
                for (int slot = 0; slot < kSlots; ++slot) {
                    const float weight = i == 0   ? w[slot].x
                                         : i == 1 ? w[slot].y
                                         : i == 2 ? w[slot].z
                                                  : w[slot].w;
#pragma unroll
                    for (int c = 0; c < kWidth; ++c) {
                        sums.at[slot][c] = fmaf(weight, v[c], sums.at[slot][c]);
                    }
                }
            }
        }
    }

    __device__ __forceinline__ void shrink(Sums& sums, const float* factors) const {
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot) {
            const float factor = load_shared(factors + row_of(slot));
#pragma unroll
            for (float& x : sums.at[slot]) x *= factor;
        }
    }

    __device__ __forceinline__ void store(const Rows& to, const Sums& sums, float factor, int first,
                                          int count) const {
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot) {
            if (first + row_of(slot) >= count) continue;
            unsigned char* at = to.at(first + row_of(slot)) + 4 * kSide * group;
#pragma unroll
            for (int c = 0; c < kWidth; c += kSide) {
                const float* x = sums.at[slot] + c;
                if constexpr (kSide == 4) {
                    store_global(
                        reinterpret_cast<float4*>(at + 4 * kGroups * c),
                        make_float4(x[0] * factor, x[1] * factor, x[2] * factor, x[3] * factor));
                } else {
                    store_global(reinterpret_cast<float2*>(at + 4 * kGroups * c),
                                 make_float2(x[0] * factor, x[1] * factor));
                }
            }
        }
    }

  private:
    __device__ __forceinline__ float* weight(unsigned char* weights, int slot, int c) const {
        return reinterpret_cast<float*>(weights) + row_of(slot) * kWeightStride + column_of(c);
    }
    __device__ __forceinline__ static float4 four(const unsigned char* at) {
        return load_shared(reinterpret_cast<const float4*>(at));
    }
};

// The 1 lets ptxas use all registers, where otherwise it may aim for more blocks, and spill; of
// wide dkdv it is the other way round.
template <int kDim>
__global__ void __launch_bounds__(FloatTile<kDim>::kThreads, 1)
    attention_float_forward(const __grid_constant__ Blocks p) {
    attend<FloatTile<kDim>, Wanted::out>(p);
}
template <int kDim>
__global__ void __launch_bounds__(FloatTile<kDim>::kThreads, 1)
    attention_float_dq(const __grid_constant__ Blocks p) {
    attend<FloatTile<kDim>, Wanted::dq>(p);
}
// Of at most 80 keys, as a text has; at 512, where a block is wider, 96.
template <int kDim>
using OneTile = FloatTile<kDim, groups_of(kDim) == 16   ? 5
                                : groups_of(kDim) == 20 ? 4
                                                        : 3>;
template <int kDim>
__global__ void __launch_bounds__(OneTile<kDim>::kThreads, 1)
    attention_float_dq_one_tile(const __grid_constant__ Blocks p) {
    attend<OneTile<kDim>, Wanted::dq_of_one_tile>(p);
}
template <int kDim>
__global__ void __launch_bounds__(FloatTile<kDim>::kThreads, kDim <= 80 ? 1 : 0)
    attention_float_dkdv(const __grid_constant__ Blocks p) {
    attend<FloatTile<kDim>, Wanted::dk_and_dv>(p);
}
// Where the sums of both are more than a thread's registers.
template <int kDim>
__global__ void __launch_bounds__(FloatTile<kDim>::kThreads, 1)
    attention_float_dk(const __grid_constant__ Blocks p) {
    attend<FloatTile<kDim>, Wanted::dk>(p);
}
template <int kDim>
__global__ void __launch_bounds__(FloatTile<kDim>::kThreads, 1)
    attention_float_dv(const __grid_constant__ Blocks p) {
    attend<FloatTile<kDim>, Wanted::dv>(p);
}

template <int kDim>
cudaError_t run(const Backward& b, cudaStream_t stream) {
    using Tile = FloatTile<kDim>;
    const bool dk = b.dk.data != nullptr, dv = b.dv.data != nullptr;
    const int queries = b.shape.queries, keys = b.shape.keys;
    cudaError_t error = launch_delta<float>(b, stream);
    if (error == cudaSuccess && b.dq.data != nullptr) {
        error = launch_blocks<attention_float_dq<kDim>, Tile>(dq_blocks(b), queries, stream);
    }
    // As in attention_backward.cu, a kernel of both serves either alone, forming both sums.
    if constexpr (kDim <= 160) {
        if (error == cudaSuccess && (dk || dv)) {
            error = launch_blocks<attention_float_dkdv<kDim>, Tile>(dkdv_blocks(b, b.dk, b.dv),
                                                                    keys, stream);
        }
    } else {
        if (error == cudaSuccess && dk) {
            error = launch_blocks<attention_float_dk<kDim>, Tile>(dkdv_blocks(b, b.dk, {}), keys,
                                                                  stream);
        }
        if (error == cudaSuccess && dv) {
            error = launch_blocks<attention_float_dv<kDim>, Tile>(dkdv_blocks(b, b.dv, {}), keys,
                                                                  stream);
        }
    }
    return error;
}

template <class Run>
cudaError_t for_any_dim(int dim, const Run& run) {
    return for_dim<40, 64, 80, 128, 160, 512>(dim, run);
}

}  // namespace
}  // namespace udp

int udp_attention_float(const udp::AttentionShape* shape, const udp::Heads* q, const udp::Heads* k,
                        const udp::Heads* v, const udp::Bias* bias, const udp::Heads* out,
                        float* lse, void* stream) {
    const udp::Blocks p = udp::forward_blocks(*shape, 4, *q, *k, *v, *bias, *out, lse);
    return udp::for_any_dim(shape->dim, [&](auto dim) {
        return udp::launch_blocks<udp::attention_float_forward<dim>, udp::FloatTile<dim>>(
            p, shape->queries, static_cast<cudaStream_t>(stream));
    });
}

int udp_attention_float_backward(const udp::AttentionShape* shape, const udp::Heads* grad_out,
                                 const udp::Heads* q, const udp::Heads* k, const udp::Heads* v,
                                 const udp::Bias* bias, const udp::Heads* out, const float* lse,
                                 const udp::Heads* dq, const udp::Heads* dk, const udp::Heads* dv,
                                 void* workspace, void* stream) {
    const udp::Backward b = udp::backward_of(*shape, 4, *grad_out, *q, *k, *v, *bias, *out, lse,
                                             *dq, *dk, *dv, workspace);
    return udp::for_any_dim(
        shape->dim, [&](auto dim) { return udp::run<dim>(b, static_cast<cudaStream_t>(stream)); });
}

int udp_attention_float_one_tile(const udp::AttentionShape* shape, const udp::Heads* grad_out,
                                 const udp::Heads* q, const udp::Heads* k, const udp::Heads* v,
                                 const udp::Bias* bias, const udp::Heads* dq, void* stream) {
    const udp::Blocks p = udp::one_tile_blocks(*shape, 4, *grad_out, *q, *k, *v, *bias, *dq);
    return udp::for_any_dim(shape->dim, [&](auto dim) -> cudaError_t {
        using Tile = udp::OneTile<dim>;
        if (shape->keys > Tile::kColumns) return cudaErrorInvalidValue;
        return udp::launch_blocks<udp::attention_float_dq_one_tile<dim>, Tile>(
            p, shape->queries, static_cast<cudaStream_t>(stream));
    });
}
