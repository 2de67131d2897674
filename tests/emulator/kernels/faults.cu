// One planted fault a kernel, and the same kernel without it. `kFault` is true for the faulty twin.
#include <cuda_runtime.h>

#include "instructions.cuh"

constexpr int kThreads = 128;

template <class... Parameters, class... Arguments>
static int start(void (*kernel)(Parameters...), int shared_bytes, Arguments... arguments) {
    cudaLaunchConfig_t config = {};
    config.gridDim = 2;
    config.blockDim = kThreads;
    config.dynamicSmemBytes = shared_bytes;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// out[i] = in[i] reversed within the block.
template <bool kFault>
__global__ void missing_barrier(float* out, const float* in) {
    __shared__ float tile[kThreads];
    const int i = blockIdx.x * kThreads + threadIdx.x;
    tile[threadIdx.x] = in[i];
    if (!kFault) __syncthreads();
    out[i] = tile[kThreads - 1 - threadIdx.x];
}

// The same within a warp, whose lanes are no more in step than a block's threads.
template <bool kFault>
__global__ void missing_syncwarp(float* out, const float* in) {
    __shared__ float tile[kThreads];
    const int i = blockIdx.x * kThreads + threadIdx.x;
    tile[threadIdx.x] = in[i];
    if (!kFault) __syncwarp();
    out[i] = tile[threadIdx.x ^ 1];
}

// The second tile overwrites the first while others still read it.
template <bool kFault>
__global__ void missing_second_barrier(float* out, const float* in) {
    __shared__ float tile[kThreads];
    float sum = 0.0f;
    for (int k = 0; k < 2; ++k) {
        tile[threadIdx.x] = in[k * kThreads + threadIdx.x];
        __syncthreads();
        sum += tile[kThreads - 1 - threadIdx.x];
        if (!kFault) __syncthreads();
    }
    out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// One element past a static array, which another one follows.
template <bool kFault>
__global__ void shared_overrun(float* out, const float* in) {
    __shared__ float tile[kThreads];
    __shared__ float next[kThreads];
    const int i = blockIdx.x * kThreads + threadIdx.x;
    next[threadIdx.x] = 0.0f;
    tile[threadIdx.x] = in[i];
    __syncthreads();
    out[i] = tile[threadIdx.x + (kFault ? 1 : 0)] + next[threadIdx.x];
}

template <bool kFault>
__global__ void dynamic_shared_overrun(float* out, const float* in) {
    UDP_DYNAMIC_SHARED(float, tile);
    const int i = blockIdx.x * kThreads + threadIdx.x;
    tile[threadIdx.x + (kFault ? 1 : 0)] = in[i];
    __syncthreads();
    out[i] = tile[threadIdx.x];
}

template <bool kFault>
__global__ void global_overrun(float* out, const float* in) {
    const int i = blockIdx.x * kThreads + threadIdx.x;
    if (i < gridDim.x * kThreads - 1 || !kFault)
        out[i] = in[i];
    else
        out[i + 1] = in[i];
}

// The last 16 bytes of the vector path lie half beyond the end.
template <bool kFault>
__global__ void wide_load_overrun(float* out, const float* in) {
    const int i = blockIdx.x * kThreads + threadIdx.x;
    if (i >= gridDim.x * kThreads / 4) return;
    const float4 v = udp::load_global(reinterpret_cast<const float4*>(in + (kFault ? 4 : 0)) + i);
    udp::store_global(reinterpret_cast<float4*>(out) + i, v);
}

template <bool kFault>
__global__ void misaligned_load(float* out, const float* in) {
    const int i = blockIdx.x * kThreads + threadIdx.x;
    if (i < 8)
        out[i] = udp::load_global(reinterpret_cast<const float4*>(in + 4 * i + (kFault ? 1 : 0))).x;
    else
        out[i] = 0.0f;
}

template <bool kFault>
__global__ void divergent_barrier(float* out, const float* in) {
    const int i = blockIdx.x * kThreads + threadIdx.x;
    out[i] = in[i];
    if (kFault) {
        if (threadIdx.x < 40) __syncthreads();
    } else {
        __syncthreads();
    }
}

template <bool kFault>
__global__ void early_return(float* out, const float* in) {
    const int i = blockIdx.x * kThreads + threadIdx.x;
    out[i] = 0.0f;
    if (kFault && threadIdx.x == 77) return;
    out[i] = __syncthreads_count(in[i] > 0.0f);
}

// Threads of one warp at two barriers.
template <bool kFault>
__global__ void two_barriers(float* out, const float* in) {
    const int i = blockIdx.x * kThreads + threadIdx.x;
    out[i] = in[i];
    if (kFault && threadIdx.x % 2 == 0) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

// Two stages in flight, but the older one is used.
template <bool kFault>
__global__ void missing_wait(float* out, const float* in) {
    __shared__ __align__(16) float tile[2][kThreads];
    for (int stage = 0; stage < 2; ++stage) {
        udp::cp_async<4>(&tile[stage][threadIdx.x], &in[stage * kThreads + threadIdx.x]);
        udp::cp_async_commit();
    }
    udp::cp_async_wait<kFault ? 2 : 1>();
    __syncthreads();
    out[blockIdx.x * kThreads + threadIdx.x] = tile[0][kThreads - 1 - threadIdx.x];
    udp::cp_async_wait<0>();
}

// The wait is there, but only the copying thread knows.
template <bool kFault>
__global__ void wait_without_barrier(float* out, const float* in) {
    __shared__ __align__(16) float tile[kThreads];
    udp::cp_async<4>(&tile[threadIdx.x], &in[threadIdx.x]);
    udp::cp_async_commit();
    udp::cp_async_wait<0>();
    if (!kFault) __syncthreads();
    out[blockIdx.x * kThreads + threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

// The upper half of the warp is not there.
template <bool kFault>
__global__ void wrong_mask(float* out, const float* in) {
    const int i = blockIdx.x * kThreads + threadIdx.x;
    float v = in[i];
    if (threadIdx.x % 32 < 16) v += __shfl_down_sync(kFault ? 0xffffffffu : 0x0000ffffu, v, 8, 16);
    out[i] = v;
}

// A lane outside the mask is read.
template <bool kFault>
__global__ void reads_outside_mask(float* out, const float* in) {
    const int i = blockIdx.x * kThreads + threadIdx.x;
    float v = in[i];
    if (threadIdx.x % 32 < 16) v += __shfl_xor_sync(0x0000ffffu, v, kFault ? 16 : 8);
    out[i] = v;
}

template <bool kFault>
__global__ void not_in_own_mask(float* out, const float* in) {
    const int i = blockIdx.x * kThreads + threadIdx.x;
    out[i] = __ballot_sync(kFault ? 0x7fffffffu : 0xffffffffu, in[i] > 0.0f);
}

template <bool kFault>
__global__ void uninitialised_shared(float* out, const float* in) {
    __shared__ float tile[kThreads];
    const int i = blockIdx.x * kThreads + threadIdx.x;
    if (!kFault || threadIdx.x != 5) tile[threadIdx.x] = in[i];
    __syncthreads();
    out[i] = tile[threadIdx.x];
}

// One byte of sixteen that are read at once: never written, or written by another thread meanwhile.
template <bool kFault>
__global__ void uninitialised_byte(float* out, const float* in) {
    __shared__ __align__(16) unsigned char tile[16];
    if (threadIdx.x < 16 && !(kFault && threadIdx.x == 9)) tile[threadIdx.x] = 1;
    __syncthreads();
    const float4 wide = *reinterpret_cast<const float4*>(tile);
    out[blockIdx.x * kThreads + threadIdx.x] = wide.x + wide.y + wide.z + wide.w;
}
template <bool kFault>
__global__ void race_for_a_byte(float* out, const float* in) {
    __shared__ __align__(16) float tile[8];
    const int i = blockIdx.x * kThreads + threadIdx.x;
    if (threadIdx.x < 8) tile[threadIdx.x] = in[i];
    __syncthreads();
    if (threadIdx.x == 40) reinterpret_cast<unsigned char*>(tile)[kFault ? 6 : 22] = 0;
    if (threadIdx.x == 0) {
        const float4 wide = *reinterpret_cast<const float4*>(tile);
        out[i] = wide.x + wide.y + wide.z + wide.w;
    }
}

// Both blocks write the same elements.
template <bool kFault>
__global__ void race_between_blocks(float* out, const float* in) {
    const int i = blockIdx.x * kThreads + threadIdx.x;
    out[kFault ? threadIdx.x : i] = in[i];
}

template <bool kFault>
__global__ void read_only_of_written(float* out, const float* in) {
    const int i = blockIdx.x * kThreads + threadIdx.x;
    out[i] = in[i];
    const float v = kFault ? __ldg(&out[i]) : out[i];
    out[i] = 2.0f * v;
}

template <bool kFault>
__global__ void writes_an_input(float* out, const float* in) {
    const int i = blockIdx.x * kThreads + threadIdx.x;
    out[i] = in[i];
    if (kFault && i == 3) const_cast<float*>(in)[i] = 0.0f;
}

// Waits for a thread that waits for it.
template <bool kFault>
__global__ void endless_loop(float* out, const float* in) {
    __shared__ int flag;
    const int i = blockIdx.x * kThreads + threadIdx.x;
    if (threadIdx.x == 0) flag = 0;
    __syncthreads();
    if (!kFault && threadIdx.x == 64) atomicExch(&flag, 1);
    while (atomicAdd(&flag, 0) == 0) {
    }
    out[i] = in[i];
}

#define LAUNCHER(name, shared_bytes)                                       \
    extern "C" int launch_##name(int fault, float* out, const float* in) { \
        return fault ? start(name<true>, shared_bytes, out, in)            \
                     : start(name<false>, shared_bytes, out, in);          \
    }
LAUNCHER(missing_barrier, 0)
LAUNCHER(missing_syncwarp, 0)
LAUNCHER(missing_second_barrier, 0)
LAUNCHER(shared_overrun, 0)
LAUNCHER(dynamic_shared_overrun, kThreads * 4)
LAUNCHER(global_overrun, 0)
LAUNCHER(wide_load_overrun, 0)
LAUNCHER(misaligned_load, 0)
LAUNCHER(divergent_barrier, 0)
LAUNCHER(early_return, 0)
LAUNCHER(two_barriers, 0)
LAUNCHER(missing_wait, 0)
LAUNCHER(wait_without_barrier, 0)
LAUNCHER(wrong_mask, 0)
LAUNCHER(reads_outside_mask, 0)
LAUNCHER(not_in_own_mask, 0)
LAUNCHER(uninitialised_shared, 0)
LAUNCHER(uninitialised_byte, 0)
LAUNCHER(race_for_a_byte, 0)
LAUNCHER(race_between_blocks, 0)
LAUNCHER(read_only_of_written, 0)
LAUNCHER(writes_an_input, 0)
LAUNCHER(endless_loop, 0)
