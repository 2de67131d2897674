// Kernels with planted faults, and one without, for the tests of the proof's machinery.
#include <cstdint>

__device__ float scaled(float a) {
    return a * 3.0f;
}

// Passes: groups of four floats, one access each.
__global__ void __launch_bounds__(128) wide(const float4* x, float4* y, int64_t n) {
    for (int64_t i = blockIdx.x * 128 + threadIdx.x; i < n; i += gridDim.x * 128) {
        const float4 a = x[i];
        y[i] = {scaled(a.x), scaled(a.y), scaled(a.z), scaled(a.w)};
    }
}

// The same work in accesses of four bytes.
__global__ void __launch_bounds__(128) narrow(const float* x, float* y, int64_t n) {
    for (int64_t i = 4 * (blockIdx.x * 128 + threadIdx.x); i < n; i += gridDim.x * 512) {
#pragma unroll
        for (int k = 0; k < 4; ++k) y[i + k] = scaled(x[i + k]);
    }
}

// Reads its operand twice.
__global__ void __launch_bounds__(128)
    twice(const float4* x, const float4* z, float4* y, int64_t n) {
    for (int64_t i = blockIdx.x * 128 + threadIdx.x; i < n; i += gridDim.x * 128) {
        const float4 a = x[i], b = z[i];
        y[i] = {scaled(a.x) + b.x, scaled(a.y) + b.y, scaled(a.z) + b.z, scaled(a.w) + b.w};
    }
}

// Needs more registers than it may have.
__global__ void __launch_bounds__(1024, 2) spilling(const float* x, float* y, int n) {
    float kept[48];
#pragma unroll
    for (int k = 0; k < 48; ++k) kept[k] = x[threadIdx.x + 1024 * k];
    for (int round = 0; round < n; ++round) {
#pragma unroll
        for (int k = 0; k < 48; ++k) kept[k] = kept[k] * kept[(k + 7) % 48] + x[round];
    }
#pragma unroll
    for (int k = 0; k < 48; ++k) y[threadIdx.x + 1024 * k] = kept[k];
}

// Indexes an array by a number that is known only at run time.
__global__ void __launch_bounds__(128) indexing(const float* x, float* y, const int* where, int n) {
    float kept[16];
    for (int k = 0; k < 16; ++k) kept[k] = x[16 * threadIdx.x + k];
    for (int k = 0; k < n; ++k) kept[where[k] & 15] += kept[where[k + 1] & 15];
    y[threadIdx.x] = kept[n & 15];
}

// Hands elements on to its neighbours on the way.
__global__ void __launch_bounds__(128) exchanging(const float4* x, float4* y, int64_t n) {
    __shared__ float4 tile[128];
    for (int64_t i = blockIdx.x * 128; i < n; i += gridDim.x * 128) {
        tile[threadIdx.x] = x[i + threadIdx.x];
        __syncthreads();
        y[i + threadIdx.x] = tile[127 - threadIdx.x];
        __syncthreads();
    }
}
