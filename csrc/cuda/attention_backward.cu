// The gradients of q, k and v over any number of keys. P is formed again from the rows' logarithms
// of sums, delta_i = Σ_d dO_id out_id is formed once by a small kernel; then
//
//     dS = P ∘ (dP − delta)    dq = scale dS k    dk = scale dSᵀ q    dv = Pᵀ dO
//
// in two kernels: for dq a warp keeps rows of q and dO and walks over keys, for dk and dv it keeps
// rows of k and v and walks over queries, so that every sum stays in one warp's registers: no
// atomics, and the same bits always. At head dim 160 the sums of both dk and dv, and k and v, are
// more than a thread's registers (with a bias, at 128): there each has a kernel, and S is formed
// once more.
#include "attention_delta.cuh"
#include "attention_tiles.cuh"

namespace udp {
namespace {

// Steps of 16 rows of a tile that are written out. Where registers are short only one or two: with
// a bias, and at head dim 160.
template <int kDim, bool kBiased>
constexpr int unrolled = kBiased      ? 1
                         : kDim > 128 ? 2
                                      : kTileRows / 16;

template <class Half, int kDim, bool kBiased>
__device__ __forceinline__ void walk_over_keys(const Backward& p) {
    UDP_DYNAMIC_SHARED(uint16_t, shared);
    const Tiles<kDim> tiles{shared};
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, g = lane / 4,
              t = lane % 4;
    const int first = (static_cast<int>(blockIdx.x) * kAttentionWarps + thread / 32) * 16;
    const float scale = p.shape.scale * kLog2E;
    [[maybe_unused]] const float inverse_scale = 1.0f / p.shape.scale;
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
    for_tiles<kBiased ? Masks::all : Masks::last>(
        tiles, p.k.of_block(), p.v.of_block(), p.shape.keys, [&](int tile, auto masked) {
            constexpr int kUnroll = unrolled<kDim, kBiased>;
#pragma unroll kUnroll
            for (int i = 0; i < kTileRows / 16; ++i) {
                const int rows = 16 * i * Columns<kDim>::kStride;
                const uint16_t* k = tiles.first(tile) + rows;
                float s[1][2][4] = {}, dp[1][2][4];
#pragma unroll
                for (int e = 0; e < 8; ++e) dp[0][e / 4][e % 4] = minus_delta[e % 4];
                along<Half>(s, q, k, lane_of);
                if constexpr (decltype(masked)::value) {
                    const int key = tile * kTileRows + 16 * i + 2 * t;
                    if constexpr (kBiased) {
                        add_bias(s, p.bias, p.shape, first + g, key, inverse_scale);
                    } else {
                        mask(s, key, p.shape.keys);
                    }
                }
                along<Half>(dp, grad_out, tiles.second(tile) + rows, lane_of);
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
template <class Half, int kDim, bool kDk, bool kDv, bool kBiased>
__device__ __forceinline__ void walk_over_queries(const Backward& p) {
    UDP_DYNAMIC_SHARED(uint16_t, shared);
    const Tiles<kDim> tiles{shared};
    float2* const row_statistics = reinterpret_cast<float2*>(shared + Tiles<kDim>::kBytes / 2);
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, g = lane / 4,
              t = lane % 4;
    const int first = (static_cast<int>(blockIdx.x) * kAttentionWarps + thread / 32) * 16;
    const float scale = p.shape.scale * kLog2E;
    [[maybe_unused]] const float inverse_scale = 1.0f / p.shape.scale;
    const LaneOf<kDim> lane_of(lane);
    Fixed<kDim, 1> k;
    [[maybe_unused]] Fixed<kDim, 1> v;
    k.fetch(p.k.of_block(), first, p.shape.keys, g, t);
    if constexpr (kDk) v.fetch(p.v.of_block(), first, p.shape.keys, g, t);

    [[maybe_unused]] float dk[1][kDim / 8][4] = {}, dv[1][kDim / 8][4] = {};
    const float2* const statistics = statistics_of_block(p);
    // Queries past the end are zeros, their statistics too: P is 1 without a bias, and dS and dO
    // are 0. Keys past the end are not stored.
    const auto copy_statistics = [&](int tile) {
        if (thread >= kTileRows) return;
        const int row = tile * kTileRows + thread;
        cp_async<8>(row_statistics + tile % 2 * kTileRows + thread, statistics + row,
                    row < p.shape.queries ? 8 : 0);
    };
    for_tiles<kBiased ? Masks::all : Masks::none>(
        tiles, p.q.of_block(), p.grad_out.of_block(), p.shape.queries, copy_statistics,
        [&](int tile, auto masked) {
            constexpr int kUnroll = unrolled<kDim, kBiased>;
#pragma unroll kUnroll
            for (int i = 0; i < kTileRows / 16; ++i) {
                const int rows = 16 * i * Columns<kDim>::kStride;
                const uint16_t* q = tiles.first(tile) + rows;
                const uint16_t* grad_out = tiles.second(tile) + rows;
                float s[1][2][4] = {};
                [[maybe_unused]] float dp[1][2][4] = {};
                along<Half>(s, k, q, lane_of);
                if constexpr (decltype(masked)::value) {
                    add_bias_of_keys(s, p.bias, p.shape, first + g,
                                     tile * kTileRows + 16 * i + 2 * t, inverse_scale);
                }
                if constexpr (kDk) along<Half>(dp, v, grad_out, lane_of);
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const float4 two = load_shared(reinterpret_cast<const float4*>(
                        row_statistics + tile % 2 * kTileRows + 16 * i + 8 * j + 2 * t));
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        const float shift = e % 2 == 0 ? -two.x : -two.z;
                        [[maybe_unused]] const float delta = e % 2 == 0 ? two.y : two.w;
                        s[0][j][e] = exp2_approx(fmaf(s[0][j][e], scale, shift));
                        if constexpr (kDk) dp[0][j][e] = s[0][j][e] * (dp[0][j][e] - delta);
                    }
                }
                uint32_t weights[1][4];
                if constexpr (kDv) {
                    as_weights<Half>(weights[0], s[0]);
                    across<Half, kDim>(dv, weights, grad_out, lane_of);
                }
                if constexpr (kDk) {
                    as_weights<Half>(weights[0], dp[0]);
                    across<Half, kDim>(dk, weights, q, lane_of);
                }
            }
        });

    if (kDv && p.dv.data != nullptr) {
        const float ones[1][2] = {{1.0f, 1.0f}};
        store_rows<Half, kDim>(p.dv.of_block(), dv, ones, first, p.shape.keys, g, t);
    }
    if (kDk && p.dk.data != nullptr) {
        const float factor[1][2] = {{p.shape.scale, p.shape.scale}};
        store_rows<Half, kDim>(p.dk.of_block(), dk, factor, first, p.shape.keys, g, t);
    }
}

template <class Half, int kDim>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_dq(const __grid_constant__ Backward p) {
    walk_over_keys<Half, kDim, false>(p);
}
template <class Half, int kDim>
__global__ void __launch_bounds__(kAttentionThreads, kDim == 40 ? 2 : 0)  // or ptxas tries four
    attention_dkdv(const __grid_constant__ Backward p) {
    walk_over_queries<Half, kDim, true, true, false>(p);
}
template <class Half, int kDim>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_dk(const __grid_constant__ Backward p) {
    walk_over_queries<Half, kDim, true, false, false>(p);
}
template <class Half, int kDim>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_dv(const __grid_constant__ Backward p) {
    walk_over_queries<Half, kDim, false, true, false>(p);
}

template <class Half, int kDim>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_dq_biased(const __grid_constant__ Backward p) {
    walk_over_keys<Half, kDim, true>(p);
}
template <class Half, int kDim>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_dkdv_biased(const __grid_constant__ Backward p) {
    walk_over_queries<Half, kDim, true, true, true>(p);
}
template <class Half, int kDim>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_dk_biased(const __grid_constant__ Backward p) {
    walk_over_queries<Half, kDim, true, false, true>(p);
}
template <class Half, int kDim>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_dv_biased(const __grid_constant__ Backward p) {
    walk_over_queries<Half, kDim, false, true, true>(p);
}

template <class Half, int kDim>
cudaError_t run(const Backward& p, cudaStream_t stream) {
    const bool biased = p.bias.data != nullptr;
    const bool dk = p.dk.data != nullptr, dv = p.dv.data != nullptr;
    cudaError_t error = launch_delta<Half>(p, stream);
    const auto launch = [&](bool wanted, int rows, auto kernel) {
        if (error != cudaSuccess || !wanted) return;
        error = launch_tiles<decltype(kernel)::value, kDim, 1>(p.shape, rows, stream, p);
    };
    const int queries = p.shape.queries, keys = p.shape.keys;
    if (p.dq.data != nullptr) {
        launch(!biased, queries, kernel_of<attention_dq<Half, kDim>>);
        launch(biased, queries, kernel_of<attention_dq_biased<Half, kDim>>);
    }
    // A kernel of both dk and dv serves either alone, too: it forms both sums and stores one. Of
    // its four products two are then for nothing where that is dv, one where it is dk. Who wants
    // one mostly wants both, so where registers hold the two there are no kernels for one.
    if constexpr (kDim <= 128) {
        launch(!biased && (dk || dv), keys, kernel_of<attention_dkdv<Half, kDim>>);
    } else {
        launch(!biased && dk, keys, kernel_of<attention_dk<Half, kDim>>);
        launch(!biased && dv, keys, kernel_of<attention_dv<Half, kDim>>);
    }
    if constexpr (kDim <= 80) {
        launch(biased && (dk || dv), keys, kernel_of<attention_dkdv_biased<Half, kDim>>);
    } else {
        launch(biased && dk, keys, kernel_of<attention_dk_biased<Half, kDim>>);
        launch(biased && dv, keys, kernel_of<attention_dv_biased<Half, kDim>>);
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
                           const udp::Bias* bias, const udp::Heads* out, const float* lse,
                           const udp::Heads* dq, const udp::Heads* dk, const udp::Heads* dv,
                           void* workspace, void* stream) {
    const udp::Backward p = udp::backward_of(*shape, 2, *grad_out, *q, *k, *v, *bias, *out, lse,
                                             *dq, *dk, *dv, workspace);
    return udp::for_half_and_dim(*shape, [&](auto half, auto dim) {
        return udp::run<typename decltype(half)::type, dim>(p, static_cast<cudaStream_t>(stream));
    });
}
