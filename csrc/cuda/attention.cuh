// What the attention kernels share: how a head's columns lie in shared memory, the fragments of
// mma.sync, and a row's statistics.
//
// A warp has 16 or 32 rows of a matrix that it multiplies with tiles of another, in pieces of eight
// rows (n) and of eight columns (a chunk, 16 bytes). A row of accumulators lies in the four lanes
// of a quad: with g = lane / 4, t = lane % 4 a lane has of each chunk the columns 2t and 2t + 1, of
// rows g and g + 8.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "../math/bias.h"
#include "instructions.cuh"
#include "launch.cuh"
#include "ops.h"

namespace udp {

constexpr float kLog2E = 1.44269504088896340736f, kLn2 = 0.69314718055994530942f;
constexpr int kAttentionThreads = 128;
constexpr int kAttentionWarps = kAttentionThreads / 32;
constexpr float kInfinity = __builtin_huge_valf();
// A row's largest score is at least that, so that it is finite where all are -inf.
constexpr float kLeastMaximum = -1e30f;
// What a row's sum begins with: lost beside a sum of exponentials, whose largest is 1, but it can
// be divided by where there are none.
constexpr float kLeastSum = 1e-30f;

// Head dims of kDim columns. They are handled in pieces of four chunks, two products of k = 16;
// what remains is one piece more of two chunks (80) or of one (40), so nothing is padded.
template <int kDim>
struct Columns {
    static constexpr int kChunks = kDim / 8;
    static constexpr int kWhole = kDim / 32;            // pieces of four chunks
    static constexpr int kRest = kChunks - 4 * kWhole;  // chunks of the last, smaller piece
    static constexpr int kPieces = kWhole + (kRest > 0);
    // Between rows in shared memory: an odd number of chunks, so that the eight rows that ldmatrix
    // reads at once are in eight different groups of four banks.
    static constexpr int kStride = kDim + (kChunks % 2 == 0 ? 8 : 0);
    static_assert(kDim % 8 == 0 && kRest != 3, "");

    __host__ __device__ static constexpr int chunks(int piece) {
        return piece < kWhole ? 4 : kRest;
    }
};

template <class T>
struct Type {
    using type = T;
};
// A kernel as a value whose type says which.
template <auto kKernel>
constexpr std::integral_constant<decltype(kKernel), kKernel> kernel_of{};

// The rows of one head of one batch, a number of bytes apart.
struct Rows {
    unsigned char* data;
    int32_t stride;

    __device__ __forceinline__ unsigned char* at(int row) const {
        return data + int64_t{row} * stride;
    }
};

// As kernels take it: strides in bytes.
struct Operand {
    unsigned char* data;
    int64_t batch, head;
    int32_t row;

    Operand() = default;
    explicit Operand(const Heads& h, int itemsize = 2)
        : data(static_cast<unsigned char*>(h.data)),
          batch(itemsize * h.batch),
          head(itemsize * h.head),
          row(static_cast<int32_t>(itemsize * h.row)) {}

    // Of this block's head: the grid's y and z are heads and batch.
    __device__ __forceinline__ Rows of_block() const {
        return {data + blockIdx.z * batch + blockIdx.y * head, row};
    }
};

// The same number, which ptxas does not know.
__device__ __forceinline__ int kept(int number) {
    return __shfl_sync(0xffffffffu, number, static_cast<int>(threadIdx.x) % 32);
}
// The same pointer, kept in registers: one that ptxas can compute it computes anew at each use.
__device__ __forceinline__ unsigned char* kept(unsigned char* pointer) {
    return reinterpret_cast<unsigned char*>(
        __shfl_sync(0xffffffffu, reinterpret_cast<unsigned long long>(pointer),
                    static_cast<int>(threadIdx.x) % 32));
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Where there is a bias: that of a query of this block's head, one that there is.
__device__ __forceinline__ const float* bias_row(const Bias& bias, int query) {
    return bias.data + (blockIdx.z * bias.batch + blockIdx.y * bias.head + query * bias.query);
}
// Of that a key's; -inf where there is no such key.
__device__ __forceinline__ float bias_at(const float* row, const Bias& bias, int key, int keys) {
    const float value = load_global<Cache::read_only>(row + int64_t{min(key, keys - 1)} * bias.key);
    return key < keys ? limited_bias(value) : -kInfinity;
}

// What a key adds to the accumulators of its scores, which are multiplied by the scale later: its
// bias over the scale, -inf where there is no such key. A tensor core adds it, as the product of a
// row of ones and three bfloat16 whose sum is the float: eight columns more of q and k.
__device__ __forceinline__ uint4 bias_columns(const Bias& bias, int key, int keys, float scale) {
    float value = key < keys ? 0.0f : -kInfinity;
    if (bias.data != nullptr) value = bias_at(bias_row(bias, 0), bias, key, keys) / scale;
    uint32_t part[3] = {pack<__nv_bfloat16>(value, 0.0f), 0, 0};
#pragma unroll
    for (int i = 1; i < 3; ++i) {
        if (value == -kInfinity) break;
        value -= __uint_as_float(part[i - 1] << 16);
        part[i] = pack<__nv_bfloat16>(value, 0.0f);
    }
    return make_uint4(part[0] | part[1] << 16, part[2], 0, 0);
}

// The row of ones, as mma_m16n8k8 wants it: in columns 0, 1 and 2.
__device__ __forceinline__ uint32_t ones_for_bias(int t) {
    return t == 0 ? 0x3f803f80u : t == 1 ? 0x3f80u : 0u;
}

// Calls run(dim) with the head dim as a type, if it is one of kDims.
template <int... kDims, class Run>
cudaError_t for_dim(int dim, const Run& run) {
    cudaError_t error = cudaErrorInvalidValue;
    (void)((dim == kDims && (error = run(std::integral_constant<int, kDims>{}), true)) || ...);
    return error;
}
// Calls run(half) with the type that stands for a dtype of 16 bits.
template <class Run>
cudaError_t for_half(DType type, const Run& run) {
    return type == DType::float16 ? run(Type<__half>{}) : run(Type<__nv_bfloat16>{});
}
// Both, of the head dims whose sums fit a warp's registers.
template <class Run>
cudaError_t for_half_and_dim(const AttentionShape& shape, const Run& run) {
    return for_half(shape.type, [&](auto half) {
        return for_dim<40, 64, 80, 128, 160>(shape.dim, [&](auto dim) { return run(half, dim); });
    });
}

}  // namespace udp
