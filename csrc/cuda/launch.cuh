// Launching a kernel on grids that fill the GPU once.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace udp {

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, Arguments&&... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

// More shared memory than the 48 KB that need no permission. Given once a GPU.
template <auto kKernel>
cudaError_t allow_shared(int bytes) {
    if (bytes <= 48 << 10) return cudaSuccess;
    constexpr int kDevices = 64;
    static bool known[kDevices] = {};  // a race writes the same twice
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error != cudaSuccess || (device < kDevices && known[device])) return error;
    error = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error == cudaSuccess && device < kDevices) known[device] = true;
    return error;
}

// How many blocks of the kernel the current GPU holds at once. Asked of the driver once a GPU, so a
// kernel is always launched with as many threads and as much dynamic shared memory.
template <auto kKernel>
cudaError_t resident_blocks(int threads, int shared_bytes, int64_t& blocks) {
    constexpr int kDevices = 64;
    static int64_t known[kDevices] = {};  // a race writes the same number twice
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error != cudaSuccess) return error;
    if (device < kDevices && known[device] > 0) {
        blocks = known[device];
        return cudaSuccess;
    }
    error = allow_shared<kKernel>(shared_bytes);
    if (error != cudaSuccess) return error;
    int processors = 0, each = 0;
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (error != cudaSuccess) return error;
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kKernel, threads,
                                                          static_cast<size_t>(shared_bytes));
    if (error != cudaSuccess) return error;
    blocks = int64_t{processors} * std::max(each, 1);
    if (device < kDevices) known[device] = blocks;
    return cudaSuccess;
}

// A kernel that strides over `columns` by its grid's x and over `rows` by its y: not more blocks
// than fit, and all of them with equally much to do.
template <auto kKernel, class... Arguments>
int launch_over(int64_t columns, int64_t rows, int threads, void* stream,
                const Arguments&... arguments) {
    if (columns <= 0 || rows <= 0) return cudaSuccess;
    int64_t blocks = 0;
    const cudaError_t error = resident_blocks<kKernel>(threads, 0, blocks);
    if (error != cudaSuccess) return error;
    const auto even = [](int64_t work, int64_t most) {
        const int64_t rounds = (work + most - 1) / most;
        return (work + rounds - 1) / rounds;
    };
    const int64_t x = even(columns, std::max(blocks / rows, int64_t{1}));
    const int64_t y = even(rows, std::min(std::max(blocks / x, int64_t{1}), int64_t{65535}));
    const dim3 grid(static_cast<unsigned>(x), static_cast<unsigned>(y));
    return launch(kKernel, grid, dim3(threads), 0, static_cast<cudaStream_t>(stream), arguments...);
}

}  // namespace udp
