// What a backward over any number of keys takes, and its first step: of each row of queries the
// logarithm of its sum, and delta = Σ_d dO_d out_d.
#pragma once

#include "attention.cuh"

namespace udp {

struct Backward {
    AttentionShape shape;
    Operand grad_out, q, k, v, out, dq, dk, dv;
    Bias bias;
    const float* lse;
    // Of each row: lse, in binary logarithms but for float32, +inf where there is no key, and
    // delta.
    float2* statistics;
};

inline Backward backward_of(const AttentionShape& shape, int itemsize, const Heads& grad_out,
                            const Heads& q, const Heads& k, const Heads& v, const Bias& bias,
                            const Heads& out, const float* lse, const Heads& dq, const Heads& dk,
                            const Heads& dv, void* workspace) {
    const auto of = [&](const Heads& heads) { return Operand(heads, itemsize); };
    return {shape,  of(grad_out), of(q),  of(k), of(v), of(out),
            of(dq), of(dk),       of(dv), bias,  lse,   static_cast<float2*>(workspace)};
}

// The row's first element in statistics.
__device__ __forceinline__ float2* statistics_of_block(const Backward& p) {
    const int64_t head = int64_t{blockIdx.z} * p.shape.heads + blockIdx.y;
    return p.statistics + head * p.shape.queries;
}

namespace {

// The sum of products of 16 bytes of numbers of type T, on top of `sum`.
template <class T>
__device__ __forceinline__ float add_products(const uint4& x, const uint4& y, float sum) {
    const uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (std::is_same<T, float>::value) {
            sum = fmaf(__uint_as_float(xs[i]), __uint_as_float(ys[i]), sum);
        } else {
            sum = fmaf(low_half<T>(xs[i]), low_half<T>(ys[i]), sum);
            sum = fmaf(high_half<T>(xs[i]), high_half<T>(ys[i]), sum);
        }
    }
    return sum;
}

// A warp for four rows: eight lanes each read 16 bytes at a time.
template <class T>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_delta(const __grid_constant__ Backward p) {
    const int thread = static_cast<int>(threadIdx.x), part = thread % 8;
    const int row = static_cast<int>(blockIdx.x) * (kAttentionThreads / 8) + thread / 8;
    const bool inside = row < p.shape.queries;
    const int source = min(row, p.shape.queries - 1);
    const unsigned char* a = p.out.of_block().at(source);
    const unsigned char* b = p.grad_out.of_block().at(source);
    float delta = 0.0f;
    for (int chunk = part; chunk < p.shape.dim * static_cast<int>(sizeof(T)) / 16; chunk += 8) {
        const uint4 x = load_global<Cache::read_only>(reinterpret_cast<const uint4*>(a) + chunk);
        const uint4 y = load_global<Cache::read_only>(reinterpret_cast<const uint4*>(b) + chunk);
        delta = add_products<T>(x, y, delta);
    }
#pragma unroll
    for (int lane = 1; lane < 8; lane *= 2) delta += __shfl_xor_sync(0xffffffffu, delta, lane);
    if (!inside || part != 0) return;
    const int64_t head = int64_t{blockIdx.z} * p.shape.heads + blockIdx.y;
    constexpr float kUnit = std::is_same<T, float>::value ? 1.0f : kLog2E;
    const float lse = load_global<Cache::read_only>(p.lse + head * p.shape.queries + row);
    store_global(statistics_of_block(p) + row,
                 make_float2(lse == -kInfinity ? kInfinity : lse * kUnit, delta));
}

template <class T>
cudaError_t launch_delta(const Backward& p, cudaStream_t stream) {
    constexpr int kRows = kAttentionThreads / 8;
    const dim3 grid(static_cast<unsigned>((p.shape.queries + kRows - 1) / kRows),
                    static_cast<unsigned>(p.shape.heads), static_cast<unsigned>(p.shape.batch));
    return udp::launch(attention_delta<T>, grid, dim3(kAttentionThreads), 0, stream, p);
}

}  // namespace
}  // namespace udp
