// Tensor-core instructions: fragments, a product, and a tiled GEMM with cp.async and ldmatrix.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "instructions.cuh"

template <class... Parameters, class... Arguments>
static int start(void (*kernel)(Parameters...), int grid, int block, int shared_bytes,
                 Arguments... arguments) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// d[16][8] = c + a[16][16] b[16][8], fragments gathered by hand.
template <class Half>
__global__ void one_mma(float* d, const float* c, const uint16_t* a, const uint16_t* b) {
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    const auto two = [](uint16_t low, uint16_t high) { return low | uint32_t{high} << 16; };
    uint32_t a_fragment[4], b_fragment[2];
    for (int r = 0; r < 4; ++r) {
        const uint16_t* row = a + (g + 8 * (r % 2)) * 16 + 2 * t + 8 * (r / 2);
        a_fragment[r] = two(row[0], row[1]);
    }
    for (int r = 0; r < 2; ++r) {
        const uint16_t* column = b + (2 * t + 8 * r) * 8 + g;
        b_fragment[r] = two(column[0], column[8]);
    }
    float d_fragment[4];
    for (int r = 0; r < 4; ++r) d_fragment[r] = c[(g + 8 * (r / 2)) * 8 + 2 * t + r % 2];
    udp::mma_m16n8k16<Half>(d_fragment, a_fragment, b_fragment);
    for (int r = 0; r < 4; ++r) d[(g + 8 * (r / 2)) * 8 + 2 * t + r % 2] = d_fragment[r];
}
extern "C" int launch_one_mma(int bfloat16, float* d, const float* c, const uint16_t* a,
                              const uint16_t* b) {
    return bfloat16 ? start(one_mma<__nv_bfloat16>, 1, 32, 0, d, c, a, b)
                    : start(one_mma<__half>, 1, 32, 0, d, c, a, b);
}

// The same of a[16][8] and b[8][8].
template <class Half>
__global__ void one_narrow_mma(float* d, const float* c, const uint16_t* a, const uint16_t* b) {
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    const auto two = [](uint16_t low, uint16_t high) { return low | uint32_t{high} << 16; };
    const uint16_t *row = a + g * 8 + 2 * t, *column = b + 2 * t * 8 + g;
    const uint32_t a_fragment[2] = {two(row[0], row[1]), two(row[64], row[65])};
    float d_fragment[4];
    for (int r = 0; r < 4; ++r) d_fragment[r] = c[(g + 8 * (r / 2)) * 8 + 2 * t + r % 2];
    udp::mma_m16n8k8<Half>(d_fragment, a_fragment, two(column[0], column[8]));
    for (int r = 0; r < 4; ++r) d[(g + 8 * (r / 2)) * 8 + 2 * t + r % 2] = d_fragment[r];
}
extern "C" int launch_one_narrow_mma(int bfloat16, float* d, const float* c, const uint16_t* a,
                                     const uint16_t* b) {
    return bfloat16 ? start(one_narrow_mma<__nv_bfloat16>, 1, 32, 0, d, c, a, b)
                    : start(one_narrow_mma<__half>, 1, 32, 0, d, c, a, b);
}

// The pairs that pack makes of x, in every third lane only, and what low_half and high_half read in
// them: back[2i], back[2i + 1].
template <class Half>
__global__ void pairs(uint32_t* packed, float* back, const float* x) {
    const int i = threadIdx.x;
    const uint32_t pair = udp::pack<Half>(x[2 * i], x[2 * i + 1]);
    udp::store_global_if(i % 3 == 0, packed + i, pair);
    back[2 * i] = udp::low_half<Half>(pair);
    back[2 * i + 1] = udp::high_half<Half>(pair);
}
extern "C" int launch_pairs(int bfloat16, uint32_t* packed, float* back, const float* x) {
    return bfloat16 ? start(pairs<__nv_bfloat16>, 1, 32, 0, packed, back, x)
                    : start(pairs<__half>, 1, 32, 0, packed, back, x);
}

__global__ void float16_products(uint32_t* out, const uint32_t* a, const uint32_t* b) {
    out[threadIdx.x] = udp::multiply_float16(a[threadIdx.x], b[threadIdx.x]);
}
extern "C" int launch_float16_products(uint32_t* out, const uint32_t* a, const uint32_t* b) {
    return start(float16_products, 1, 32, 0, out, a, b);
}

// out[lane][matrix] of kMatrices 8x8 matrices below each other.
template <bool kTransposed, int kMatrices>
__global__ void load_matrices(uint32_t* out, const uint16_t* in) {
    __shared__ __align__(16) uint16_t tile[kMatrices * 64];
    for (int i = threadIdx.x; i < kMatrices * 64; i += 32) tile[i] = in[i];
    __syncthreads();
    uint32_t matrices[kMatrices];
    const int row = static_cast<int>(threadIdx.x) % (8 * kMatrices);
    udp::ldmatrix<kTransposed>(matrices, &tile[8 * row]);
    for (int m = 0; m < kMatrices; ++m) out[threadIdx.x * kMatrices + m] = matrices[m];
}
extern "C" int launch_load_matrices(int matrices, int transposed, uint32_t* out,
                                    const uint16_t* in) {
    switch (10 * transposed + matrices) {
        case 1:
            return start(load_matrices<false, 1>, 1, 32, 0, out, in);
        case 2:
            return start(load_matrices<false, 2>, 1, 32, 0, out, in);
        case 4:
            return start(load_matrices<false, 4>, 1, 32, 0, out, in);
        case 11:
            return start(load_matrices<true, 1>, 1, 32, 0, out, in);
        case 12:
            return start(load_matrices<true, 2>, 1, 32, 0, out, in);
        case 14:
            return start(load_matrices<true, 4>, 1, 32, 0, out, in);
    }
    return cudaErrorInvalidValue;
}

// c[rows][32] = a[rows][depth] b[depth][32], row-major; a block of two warps makes 32 rows, 16
// each. Tiles of depth 32 arrive two stages ahead. kPitch: elements between a tile's rows; 32 + 8
// puts any eight of them into different banks, 32 does not. Rows and depth that are missing are
// zeros.
constexpr int kTile = 32, kStages = 3;
template <class Half, int kPitch>
__global__ void gemm(float* c, const Half* a, const Half* b, int rows, int depth) {
    UDP_DYNAMIC_SHARED(Half, shared);
    const auto tile = [&](int stage, int which) {
        return shared + (2 * stage + which) * kTile * kPitch;
    };
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first_row = blockIdx.x * kTile;
    const auto fetch = [&](int step) {
        // 128 pieces of 16 bytes a tile, by 64 threads.
        for (int piece = threadIdx.x; step * kTile < depth && piece < 128; piece += 64) {
            const int i = piece / 4, j = piece % 4 * 8, k = step * kTile;
            const bool a_inside = first_row + i < rows && k + j < depth, b_inside = k + i < depth;
            const Half* a_from = a + (a_inside ? (first_row + i) * depth + k + j : 0);
            const Half* b_from = b + (b_inside ? (k + i) * kTile + j : 0);
            udp::cp_async<16>(tile(step % kStages, 0) + i * kPitch + j, a_from, a_inside ? 16 : 0);
            udp::cp_async<16>(tile(step % kStages, 1) + i * kPitch + j, b_from, b_inside ? 16 : 0);
        }
        udp::cp_async_commit();
    };
    float sum[4][4] = {};
    for (int step = 0; step < kStages - 1; ++step) fetch(step);
    for (int step = 0; step * kTile < depth; ++step) {
        udp::cp_async_wait<kStages - 2>();
        __syncthreads();
        fetch(step + kStages - 1);
        for (int k = 0; k < kTile; k += 16) {
            uint32_t a_fragment[4], b_fragment[4];
            udp::ldmatrix(a_fragment, tile(step % kStages, 0) + (16 * warp + lane % 16) * kPitch +
                                          k + lane / 16 * 8);
            for (int n = 0; n < 4; n += 2) {
                udp::ldmatrix<true>(b_fragment, tile(step % kStages, 1) + (k + lane % 16) * kPitch +
                                                    8 * n + lane / 16 * 8);
                udp::mma_m16n8k16<Half>(sum[n], a_fragment, {b_fragment[0], b_fragment[1]});
                udp::mma_m16n8k16<Half>(sum[n + 1], a_fragment, {b_fragment[2], b_fragment[3]});
            }
        }
    }
    udp::cp_async_wait<0>();
    for (int n = 0; n < 4; ++n) {
        for (int half = 0; half < 2; ++half) {
            const int row = first_row + 16 * warp + lane / 4 + 8 * half;
            const float2 two = make_float2(sum[n][2 * half], sum[n][2 * half + 1]);
            float2* to = reinterpret_cast<float2*>(c + row * kTile + 8 * n + lane % 4 * 2);
            if (row < rows) udp::store_global(to, two);
        }
    }
}
extern "C" int launch_gemm(int padded, float* c, const __nv_bfloat16* a, const __nv_bfloat16* b,
                           int rows, int depth) {
    const int blocks = (rows + kTile - 1) / kTile, pitch = padded ? kTile + 8 : kTile;
    const int bytes = 2 * kStages * kTile * pitch * static_cast<int>(sizeof(__nv_bfloat16));
    return padded ? start(gemm<__nv_bfloat16, kTile + 8>, blocks, 64, bytes, c, a, b, rows, depth)
                  : start(gemm<__nv_bfloat16, kTile>, blocks, 64, bytes, c, a, b, rows, depth);
}

// 4, 8 and 16 bytes, only some of them read, the rest zeros.
template <int kBytes>
__global__ void partial_copy(unsigned char* out, const unsigned char* in) {
    __shared__ __align__(16) unsigned char tile[32 * kBytes];
    udp::cp_async<kBytes>(&tile[threadIdx.x * kBytes], &in[threadIdx.x * kBytes],
                          static_cast<int>(threadIdx.x) % (kBytes + 1));
    udp::cp_async_commit();
    udp::cp_async_wait<0>();
    for (int i = 0; i < kBytes; ++i) out[threadIdx.x * kBytes + i] = tile[threadIdx.x * kBytes + i];
}
extern "C" int launch_partial_copy(int bytes, unsigned char* out, const unsigned char* in) {
    return bytes == 4   ? start(partial_copy<4>, 1, 32, 0, out, in)
           : bytes == 8 ? start(partial_copy<8>, 1, 32, 0, out, in)
                        : start(partial_copy<16>, 1, 32, 0, out, in);
}

// From float32 to both 16-bit formats, and all of these back.
__global__ void round_to_half(uint16_t* half, uint16_t* bfloat16, const float* in, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    half[i] = __half_as_ushort(__float2half_rn(in[i]));
    bfloat16[i] = __bfloat16_as_ushort(__float2bfloat16_rn(in[i]));
}
__global__ void widen(float* from_half, float* from_bfloat16) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    from_half[i] = __half2float(__ushort_as_half(i));
    from_bfloat16[i] = __bfloat162float(__ushort_as_bfloat16(i));
}
extern "C" int launch_round(uint16_t* half, uint16_t* bfloat16, const float* in, int n) {
    return start(round_to_half, (n + 255) / 256, 256, 0, half, bfloat16, in, n);
}
extern "C" int launch_widen(float* from_half, float* from_bfloat16) {
    return start(widen, 256, 256, 0, from_half, from_bfloat16);
}
