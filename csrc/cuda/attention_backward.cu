// The gradients of q, k and v over any number of keys. P is formed again from the rows' logarithms
// of sums, delta_i = Σ_d dO_id out_id is formed once by a small kernel; then
//
//     dS = P ∘ (dP − delta)    dq = scale dS k    dk = scale dSᵀ q    dv = Pᵀ dO
//
// in two kernels: for dq a warp keeps rows of q and dO and walks over keys, for dk and dv it keeps
// rows of k and v and walks over queries, so that every sum stays in one warp's registers: no
// atomics, and the same bits always.
#include "attention_tiles.cuh"

namespace udp {
namespace {

struct Backward {
    AttentionShape shape;
    Operand grad_out, q, k, v, out, dq, dk, dv;
    KeyBias bias;
    const float* lse;
    float2*
        statistics;  // of each row: lse in binary logarithms, +inf where there is no key, and delta
};

// The row's first element in statistics.
__device__ __forceinline__ float2* statistics_of_block(const Backward& p) {
    const int64_t head = int64_t{blockIdx.z} * p.shape.heads + blockIdx.y;
    return p.statistics + head * p.shape.queries;
}

// A warp for four rows: eight lanes each read 16 bytes at a time.
template <class Half>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_delta(const __grid_constant__ Backward p) {
    const int thread = static_cast<int>(threadIdx.x), part = thread % 8;
    const int row = static_cast<int>(blockIdx.x) * (kAttentionThreads / 8) + thread / 8;
    const bool inside = row < p.shape.queries;
    const int source = min(row, p.shape.queries - 1);
    const unsigned char* a = p.out.of_block().at(source);
    const unsigned char* b = p.grad_out.of_block().at(source);
    float delta = 0.0f;
    for (int chunk = part; chunk < p.shape.dim / 8; chunk += 8) {
        const uint4 x = load_global<Cache::read_only>(reinterpret_cast<const uint4*>(a) + chunk);
        const uint4 y = load_global<Cache::read_only>(reinterpret_cast<const uint4*>(b) + chunk);
        const uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            delta = fmaf(low_half<Half>(xs[i]), low_half<Half>(ys[i]), delta);
            delta = fmaf(high_half<Half>(xs[i]), high_half<Half>(ys[i]), delta);
        }
    }
#pragma unroll
    for (int lane = 1; lane < 8; lane *= 2) delta += __shfl_xor_sync(0xffffffffu, delta, lane);
    if (!inside || part != 0) return;
    const int64_t head = int64_t{blockIdx.z} * p.shape.heads + blockIdx.y;
    const float lse = load_global<Cache::read_only>(p.lse + head * p.shape.queries + row);
    store_global(statistics_of_block(p) + row,
                 make_float2(lse == -kInfinity ? kInfinity : lse * kLog2E, delta));
}

template <class Half, int kDim>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_dq(const __grid_constant__ Backward p) {
    UDP_DYNAMIC_SHARED(uint16_t, shared);
    const Tiles<kDim> tiles{shared};
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, g = lane / 4,
              t = lane % 4;
    const int first = (static_cast<int>(blockIdx.x) * kAttentionWarps + thread / 32) * 16;
    const float scale = p.shape.scale * kLog2E, inverse_scale = 1.0f / p.shape.scale;
    const LaneOf<kDim> lane_of(lane);
    Fixed<kDim, 1> q, grad_out;
    q.fetch(p.q.of_block(), first, p.shape.queries, g, t);
    grad_out.fetch(p.grad_out.of_block(), first, p.shape.queries, g, t);
    // The accumulators of dP begin with -delta. Each of the four is loaded: of a copy ptxas would
    // make another for each product.
    float lse[2], minus_delta[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
        const float2* row =
            statistics_of_block(p) + min(first + e / 2 * 8 + g, p.shape.queries - 1);
        minus_delta[e] = -load_global(&row->y);
        lse[e / 2] = load_global(&row->x);
    }

    float sums[1][kDim / 8][4] = {};
    for_tiles(
        tiles, p.k.of_block(), p.v.of_block(), p.shape.keys, p.bias.data != nullptr,
        [&](int tile, auto masked) {
#pragma unroll
            for (int i = 0; i < kTileRows / 16; ++i) {
                const int rows = 16 * i * Columns<kDim>::kStride;
                const uint16_t* k = tiles.first(tile) + rows;
                float s[1][2][4] = {}, dp[1][2][4];
#pragma unroll
                for (int e = 0; e < 8; ++e) dp[0][e / 4][e % 4] = minus_delta[e % 4];
                along<Half>(s, q, k, lane_of);
                along<Half>(dp, grad_out, tiles.second(tile) + rows, lane_of);
                if constexpr (decltype(masked)::value) {
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        const int key = tile * kTileRows + 16 * i + j / 2 * 8 + 2 * t + j % 2;
                        const float before = bias_before(p.bias, key, p.shape.keys, inverse_scale);
                        s[0][j / 2][j % 2] += before;
                        s[0][j / 2][j % 2 + 2] += before;
                    }
                }
                uint32_t ds[1][4];
#pragma unroll
                for (int e = 0; e < 8; ++e) {
                    float& score = s[0][e / 4][e % 4];
                    score = exp2_approx(fmaf(score, scale, -lse[e % 4 / 2])) * dp[0][e / 4][e % 4];
                }
                as_weights<Half>(ds[0], s[0]);
                across<Half, kDim>(sums, ds, k, lane_of);
            }
        });

    const float factor[1][2] = {{p.shape.scale, p.shape.scale}};
    store_rows<Half, kDim>(p.dq.of_block(), sums, factor, first, p.shape.queries, g, t);
}

// As the rows are keys, the scores are those of Sᵀ: rows g and g + 8 are keys, columns 2t and 2t +
// 1 are queries.
template <class Half, int kDim>
__global__ void __launch_bounds__(kAttentionThreads, kDim == 40 ? 3 : 0)  // or ptxas tries four
    attention_dkdv(const __grid_constant__ Backward p) {
    UDP_DYNAMIC_SHARED(uint16_t, shared);
    const Tiles<kDim> tiles{shared};
    float2* const kept = reinterpret_cast<float2*>(shared + Tiles<kDim>::kBytes / 2);
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, g = lane / 4,
              t = lane % 4;
    const int first = (static_cast<int>(blockIdx.x) * kAttentionWarps + thread / 32) * 16;
    const float scale = p.shape.scale * kLog2E;
    const LaneOf<kDim> lane_of(lane);
    Fixed<kDim, 1> k, v;
    k.fetch(p.k.of_block(), first, p.shape.keys, g, t);
    v.fetch(p.v.of_block(), first, p.shape.keys, g, t);
    float bias[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        bias[h] = bias_before(p.bias, first + 8 * h + g, p.shape.keys, kLog2E);
    }

    float dk[1][kDim / 8][4] = {}, dv[1][kDim / 8][4] = {};
    const float2* const statistics = statistics_of_block(p);
    // Queries past the end are zeros, their statistics too: P is 1, and dS and dO are 0.
    const auto copy_statistics = [&](int tile) {
        if (thread >= kTileRows) return;
        const int row = tile * kTileRows + thread;
        cp_async<8>(kept + tile % 2 * kTileRows + thread,
                    statistics + min(row, p.shape.queries - 1), row < p.shape.queries ? 8 : 0);
    };
    for_tiles(tiles, p.q.of_block(), p.grad_out.of_block(), p.shape.queries, p.bias.data != nullptr,
              copy_statistics, [&](int tile, auto masked) {
#pragma unroll
                  for (int i = 0; i < kTileRows / 16; ++i) {
                      const int rows = 16 * i * Columns<kDim>::kStride;
                      const uint16_t* q = tiles.first(tile) + rows;
                      const uint16_t* grad_out = tiles.second(tile) + rows;
                      float s[1][2][4] = {}, dp[1][2][4] = {};
                      along<Half>(s, k, q, lane_of);
                      along<Half>(dp, v, grad_out, lane_of);
#pragma unroll
                      for (int j = 0; j < 2; ++j) {
                          const float4 two = load_shared(reinterpret_cast<const float4*>(
                              kept + tile % 2 * kTileRows + 16 * i + 8 * j + 2 * t));
#pragma unroll
                          for (int e = 0; e < 4; ++e) {
                              float shift = e % 2 == 0 ? -two.x : -two.z;
                              const float delta = e % 2 == 0 ? two.y : two.w;
                              if constexpr (decltype(masked)::value) shift += bias[e / 2];
                              s[0][j][e] = exp2_approx(fmaf(s[0][j][e], scale, shift));
                              dp[0][j][e] = s[0][j][e] * (dp[0][j][e] - delta);
                          }
                      }
                      uint32_t weights[1][4];
                      as_weights<Half>(weights[0], s[0]);
                      across<Half, kDim>(dv, weights, grad_out, lane_of);
                      as_weights<Half>(weights[0], dp[0]);
                      across<Half, kDim>(dk, weights, q, lane_of);
                  }
              });

    const float ones[1][2] = {{1.0f, 1.0f}};
    const float factor[1][2] = {{p.shape.scale, p.shape.scale}};
    if (p.dv.data != nullptr) {
        store_rows<Half, kDim>(p.dv.of_block(), dv, ones, first, p.shape.keys, g, t);
    }
    if (p.dk.data != nullptr) {
        store_rows<Half, kDim>(p.dk.of_block(), dk, factor, first, p.shape.keys, g, t);
    }
}

template <class Half, int kDim>
cudaError_t run(const Backward& p, cudaStream_t stream) {
    constexpr int kRows = kAttentionThreads / 8;
    const dim3 grid(static_cast<unsigned>((p.shape.queries + kRows - 1) / kRows),
                    static_cast<unsigned>(p.shape.heads), static_cast<unsigned>(p.shape.batch));
    cudaError_t error =
        udp::launch(attention_delta<Half>, grid, dim3(kAttentionThreads), 0, stream, p);
    if (error == cudaSuccess && p.dq.data != nullptr) {
        error =
            launch_tiles<attention_dq<Half, kDim>, kDim, 1>(p.shape, p.shape.queries, stream, p);
    }
    if (error == cudaSuccess && (p.dk.data != nullptr || p.dv.data != nullptr)) {
        error = launch_tiles<attention_dkdv<Half, kDim>, kDim, 1>(p.shape, p.shape.keys, stream, p);
    }
    return error;
}

}  // namespace
}  // namespace udp

int64_t udp_attention_backward_workspace(const udp::AttentionShape* shape) {
    return int64_t{shape->batch} * shape->heads * shape->queries * 8;
}

int udp_attention_backward(const udp::AttentionShape* shape, const udp::Heads* grad_out,
                           const udp::Heads* q, const udp::Heads* k, const udp::Heads* v,
                           const udp::KeyBias* bias, const udp::Heads* out, const float* lse,
                           const udp::Heads* dq, const udp::Heads* dk, const udp::Heads* dv,
                           void* workspace, void* stream) {
    using udp::Operand;
    const udp::Backward p{*shape,       Operand(*grad_out),
                          Operand(*q),  Operand(*k),
                          Operand(*v),  Operand(*out),
                          Operand(*dq), Operand(*dk),
                          Operand(*dv), *bias,
                          lse,          static_cast<float2*>(workspace)};
    return udp::for_dim(*shape, [&](auto half, auto dim) -> cudaError_t {
        if constexpr (dim > 128)
            return cudaErrorInvalidValue;
        else
            return udp::run<typename decltype(half)::type, dim>(p,
                                                                static_cast<cudaStream_t>(stream));
    });
}
