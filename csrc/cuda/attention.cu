// softmax(q kᵀ scale + bias) v over any number of keys, with the running maximum and sum of Milakov
// and Gimelshein (2018): a row's sums so far are of exp(S - m), and are multiplied by exp(m - m')
// when the maximum becomes m'.
#include "attention_tiles.cuh"

namespace udp {
namespace {

struct Forward {
    AttentionShape shape;
    Operand q, k, v, out;
    Bias bias;
    float* lse;
};

template <class Half, int kDim, int kTiles, bool kBiased>
__device__ __forceinline__ void forward(const Forward& p) {
    UDP_DYNAMIC_SHARED(uint16_t, shared);
    const Tiles<kDim> tiles{shared};
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, g = lane / 4,
              t = lane % 4;
    const int first = (static_cast<int>(blockIdx.x) * kAttentionWarps + thread / 32) * 16 * kTiles;
    const float scale = p.shape.scale * kLog2E;
    [[maybe_unused]] const float inverse_scale = 1.0f / p.shape.scale;
    const LaneOf<kDim> lane_of(lane);
    Fixed<kDim, kTiles> q;
    q.fetch(p.q.of_block(), first, p.shape.queries, g, t);

    float sums[kTiles][kDim / 8][4] = {}, most[kTiles][2], sum[kTiles][2] = {};
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) most[i / 2][i % 2] = kLeastMaximum;
    for_tiles<kBiased ? Masks::all : Masks::last>(
        tiles, p.k.of_block(), p.v.of_block(), p.shape.keys, [&](int tile, auto masked) {
            float s[kTileRows / 16][kTiles][2][4] = {};
#pragma unroll
            for (int i = 0; i < kTileRows / 16; ++i) {
                along<Half>(s[i], q, tiles.first(tile) + 16 * i * Columns<kDim>::kStride, lane_of);
                if constexpr (decltype(masked)::value) {
                    const int key = tile * kTileRows + 16 * i + 2 * t;
                    if constexpr (kBiased) {
                        add_bias(s[i], p.bias, p.shape, first + g, key, inverse_scale);
                    } else {
                        mask(s[i], key, p.shape.keys);
                    }
                }
            }
#pragma unroll
            for (int row = 0; row < 2 * kTiles; ++row) {
                const int r = row / 2, h = row % 2;
                float now = most[r][h];
#pragma unroll
                for (int i = 0; i < kTileRows / 8; ++i) {
                    const float (&pair)[4] = s[i / 2][r][i % 2];
                    now = fmaxf(now, fmaxf(pair[2 * h], pair[2 * h + 1]));
                }
                now = quad_max(now);
                const float shrink = exp2_approx((most[r][h] - now) * scale);
                most[r][h] = now;
                const float shift = -now * scale;
                sum[r][h] *= shrink;
#pragma unroll
                for (int i = 0; i < kTileRows / 8; ++i) {
                    float (&pair)[4] = s[i / 2][r][i % 2];
#pragma unroll
                    for (int e = 2 * h; e < 2 * h + 2; ++e) {
                        pair[e] = exp2_approx(fmaf(pair[e], scale, shift));
                        sum[r][h] += pair[e];
                    }
                }
#pragma unroll
                for (int c = 0; c < kDim / 8; ++c) {
                    sums[r][c][2 * h] *= shrink;
                    sums[r][c][2 * h + 1] *= shrink;
                }
            }
#pragma unroll
            for (int i = 0; i < kTileRows / 16; ++i) {
                uint32_t weights[kTiles][4];
#pragma unroll
                for (int r = 0; r < kTiles; ++r) as_weights<Half>(weights[r], s[i][r]);
                across<Half, kDim>(sums, weights,
                                   tiles.second(tile) + 16 * i * Columns<kDim>::kStride, lane_of);
            }
        });

    float inverse[kTiles][2];
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
        const float all = quad_sum(sum[i / 2][i % 2]);
        inverse[i / 2][i % 2] = 1.0f / (all == 0.0f ? 1.0f : all);
        const int row = first + 8 * i + g;
        if (p.lse != nullptr && t == 0 && row < p.shape.queries) {
            const int64_t head = int64_t{blockIdx.z} * p.shape.heads + blockIdx.y;
            const float lse = (most[i / 2][i % 2] * scale + log2_approx(all)) * kLn2;
            store_global(p.lse + head * p.shape.queries + row, all == 0.0f ? -kInfinity : lse);
        }
    }
    store_rows<Half, kDim>(p.out.of_block(), sums, inverse, first, p.shape.queries, g, t);
}

template <class Half, int kDim, int kTiles>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_forward(const __grid_constant__ Forward p) {
    forward<Half, kDim, kTiles, false>(p);
}
template <class Half, int kDim, int kTiles>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_forward_biased(const __grid_constant__ Forward p) {
    forward<Half, kDim, kTiles, true>(p);
}

template <class Half, int kDim>
cudaError_t run(const Forward& p, cudaStream_t stream) {
    constexpr int kTiles = kDim <= 64 ? 2 : 1;
    const auto launch = [&](auto kernel) {
        return launch_tiles<decltype(kernel)::value, kDim, kTiles>(p.shape, p.shape.queries, stream,
                                                                   p);
    };
    return p.bias.data == nullptr ? launch(kernel_of<attention_forward<Half, kDim, kTiles>>)
                                  : launch(kernel_of<attention_forward_biased<Half, kDim, kTiles>>);
}

}  // namespace
}  // namespace udp

int udp_attention(const udp::AttentionShape* shape, const udp::Heads* q, const udp::Heads* k,
                  const udp::Heads* v, const udp::Bias* bias, const udp::Heads* out, float* lse,
                  void* stream) {
    using udp::Operand;
    const udp::Forward p{*shape, Operand(*q), Operand(*k), Operand(*v), Operand(*out), *bias, lse};
    return udp::for_half_and_dim(*shape, [&](auto half, auto dim) {
        return udp::run<typename decltype(half)::type, dim>(p, static_cast<cudaStream_t>(stream));
    });
}
