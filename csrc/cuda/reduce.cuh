// Sums over an image: each thread in its order of groups, then the warp, the block, and, in a
// second kernel, the image's chunks, always in the same order. No atomics on floats.
#pragma once

#include "walk.cuh"

namespace udp {

// The total over the block, the same in every thread; all of them take part.
__device__ inline double block_sum(double value) {
    constexpr int kWarps = kThreads / 32;
    __shared__ double warps[kWarps];
    for (int offset = 16; offset > 0; offset /= 2) {
        value += __shfl_down_sync(0xffffffffu, value, offset);
    }
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
    __syncthreads();
    value = 0.0;
    for (int w = 0; w < kWarps; ++w) value += warps[w];
    __syncthreads();  // `warps` may be written again
    return value;
}

// The sum of one image's partial sums, formed by a block.
__device__ inline double sum_of_chunks(const double* partial, int64_t chunks, int64_t image) {
    double sum = 0.0;
    for (int64_t c = threadIdx.x; c < chunks; c += kThreads) sum += partial[image * chunks + c];
    return block_sum(sum);
}

// A sum of squares in float64, good to 15 digits.
struct ExactSquares {
    double total = 0.0;
    __device__ __forceinline__ void add(float a) { total += static_cast<double>(a) * a; }
};

// One good to 6 digits: a group's squares are added in float32 first, because a GeForce card has
// one float64 unit for 64 float32 ones. Residuals above 1e18 make it infinite.
struct Squares {
    double total = 0.0;
    float even = 0.0f, odd = 0.0f;  // of the group

    template <int N>
    __device__ __forceinline__ void add(const float (&a)[N]) {
#pragma unroll
        for (int k = 0; k < N; k += 2) {
            even = fma(a[k], a[k], even);
            odd = fma(a[k + 1], a[k + 1], odd);
        }
    }
    __device__ __forceinline__ void end_group() {
        total += static_cast<double>(even + odd);
        even = odd = 0.0f;
    }
};

// Doubles that the partial sums of a batch take, in whichever order it is walked.
inline int64_t partial_sums(const Shape& s, int group) {
    const Walk whole = walk_over(s, Order::whole, group);
    const Walk by_channel = walk_over(s, Order::by_channel, group);
    return std::max(whole.rows * whole.chunks, by_channel.rows * by_channel.chunks);
}

}  // namespace udp
