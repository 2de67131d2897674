// What threads do together, in every form.
#include <cuda_runtime.h>

#include <cstdint>

template <class... Parameters, class... Arguments>
static int start(void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments... arguments) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

__device__ __forceinline__ float warp_sum(float v) {
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

// One block a row.
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    row_sums(float* __restrict__ sums, const float* __restrict__ rows, int columns) {
    __shared__ float partial[kThreads / 32];
    float sum = 0.0f;
    for (int j = threadIdx.x; j < columns; j += kThreads) sum += rows[blockIdx.x * columns + j];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = warp_sum(threadIdx.x < kThreads / 32 ? partial[threadIdx.x] : 0.0f);
        if (threadIdx.x == 0) sums[blockIdx.x] = sum;
    }
}
extern "C" int launch_row_sums(float* sums, const float* rows, int n, int columns) {
    return start(row_sums<128>, n, 128, sums, rows, columns);
}

// out[4][32]: idx, up, down, xor.
__global__ void shuffles(long long* out, const long long* in, int by, int width) {
    const int lane = threadIdx.x;
    out[lane] = __shfl_sync(0xffffffffu, in[lane], by, width);
    out[32 + lane] = __shfl_up_sync(0xffffffffu, in[lane], by, width);
    out[64 + lane] = __shfl_down_sync(0xffffffffu, in[lane], by, width);
    out[96 + lane] = __shfl_xor_sync(0xffffffffu, in[lane], by, width);
}
extern "C" int launch_shuffles(long long* out, const long long* in, int by, int width) {
    return start(shuffles, 1, 32, out, in, by, width);
}

// out[8][threads], the last warp incomplete.
__global__ void votes(unsigned* out, const unsigned* in) {
    const int i = threadIdx.x, n = blockDim.x;
    const unsigned odd = in[i] & 1u;
    const unsigned here = __ballot_sync(0xffffffffu, 1);
    out[i] = __ballot_sync(0xffffffffu, odd);
    out[n + i] = __any_sync(0xffffffffu, odd);
    out[2 * n + i] = __all_sync(0xffffffffu, odd);
    out[3 * n + i] = __reduce_add_sync(0xffffffffu, in[i]);
    out[4 * n + i] = __reduce_max_sync(0xffffffffu, in[i]);
    out[5 * n + i] = __match_any_sync(0xffffffffu, in[i] % 3u);
    unsigned active;
    if (odd) {
        active = __activemask();
    } else {
        active = __activemask();
    }
    out[6 * n + i] = active;
    out[7 * n + i] = here;
}
extern "C" int launch_votes(unsigned* out, const unsigned* in, int threads) {
    return start(votes, 1, threads, out, in);
}

// out[3]: how many, whether all, whether any of the block's numbers are odd.
__global__ void block_votes(int* out, const int* in) {
    const int odd = in[threadIdx.x] & 1;
    const int count = __syncthreads_count(odd);
    const int all = __syncthreads_and(odd);
    const int any = __syncthreads_or(odd);
    if (threadIdx.x == blockDim.x - 1) {
        out[0] = count;
        out[1] = all;
        out[2] = any;
    }
}
extern "C" int launch_block_votes(int* out, const int* in, int threads) {
    return start(block_votes, 1, threads, out, in);
}

// Every index once, in three dimensions.
__global__ void indices(int* out) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y,
              z = blockIdx.z * blockDim.z + threadIdx.z;
    out[(z * gridDim.y * blockDim.y + y) * gridDim.x * blockDim.x + x] = x + 100 * y + 10000 * z;
}
extern "C" int launch_indices(int* out) {
    return start(indices, dim3(2, 3, 4), dim3(8, 4, 2), out);
}

__global__ void atomics(int* histogram, double* sum, float* largest, unsigned long long* mask,
                        const float* in, int n) {
    __shared__ int bins[16];
    if (threadIdx.x < 16) bins[threadIdx.x] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const float v = in[i];  // whole numbers: sums of them are exact in any order
        atomicAdd(&bins[static_cast<unsigned>(v) % 16u], 1);
        atomicAdd(sum, static_cast<double>(v));
        atomicOr(mask, 1ull << (static_cast<unsigned>(v) % 64u));
        int* bits = reinterpret_cast<int*>(largest);
        for (int old = atomicOr(bits, 0); v > __int_as_float(old);) {
            const int seen = atomicCAS(bits, old, __float_as_int(v));
            if (seen == old) break;
            old = seen;
        }
    }
    __syncthreads();
    if (threadIdx.x < 16) atomicAdd(&histogram[threadIdx.x], bins[threadIdx.x]);
}
extern "C" int launch_atomics(int* histogram, double* sum, float* largest, unsigned long long* mask,
                              const float* in, int n) {
    return start(atomics, 3, 64, histogram, sum, largest, mask, in, n);
}

// The last block to finish adds what the others left, in a fixed order.
__global__ void last_block(float* total, float* partial, unsigned* done, const float* in) {
    __shared__ bool last;
    const float sum = warp_sum(in[blockIdx.x * 32 + threadIdx.x]);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
        __threadfence();
        last = atomicInc(done, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        float t = 0.0f;
        for (unsigned b = 0; b < gridDim.x; ++b) t += partial[b];
        *total = t;
    }
}
extern "C" int launch_last_block(float* total, float* partial, unsigned* done, const float* in,
                                 int blocks) {
    return start(last_block, blocks, 32, total, partial, done, in);
}

// Columns of a 32x32 tile, with and without the extra column that spreads them over the banks.
template <int kPitch>
__global__ void transpose(float* out, const float* in) {
    __shared__ float tile[32 * kPitch];
    tile[threadIdx.y * kPitch + threadIdx.x] = in[threadIdx.y * 32 + threadIdx.x];
    __syncthreads();
    out[threadIdx.y * 32 + threadIdx.x] = tile[threadIdx.x * kPitch + threadIdx.y];
}
extern "C" int launch_transpose(float* out, const float* in, int padded) {
    const dim3 block(32, 32);
    return padded ? start(transpose<33>, 1, block, out, in)
                  : start(transpose<32>, 1, block, out, in);
}

// every: read one element of so many.
__global__ void strided_copy(float* out, const float* in, int every) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = in[i * every];
}
extern "C" int launch_strided_copy(float* out, const float* in, int every) {
    return start(strided_copy, 2, 128, out, in, every);
}

extern "C" int launch_too_many_threads(float* out) {
    const int error = start(strided_copy, 1, 1025, out, (const float*)out, 1);
    return error == cudaErrorInvalidConfiguration && cudaGetLastError() == error &&
                   cudaGetLastError() == cudaSuccess
               ? 0
               : 1;
}

__global__ void uses_shared(float*) {}
extern "C" int launch_opt_in_shared(float* out) {
    cudaLaunchConfig_t config = {};
    config.gridDim = 1;
    config.blockDim = 32;
    config.dynamicSmemBytes = 64 * 1024;
    if (cudaLaunchKernelEx(&config, uses_shared, out) != cudaErrorInvalidValue) return 1;
    const auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (cudaFuncSetAttribute(uses_shared, limit, 164 * 1024) == cudaSuccess) return 2;
    if (cudaFuncSetAttribute(uses_shared, limit, 64 * 1024) != cudaSuccess) return 3;
    return cudaLaunchKernelEx(&config, uses_shared, out);
}
