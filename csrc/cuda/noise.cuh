// Random numbers, drawn where they are used: a Philox call for four elements.
#pragma once

#include "../math/normal.h"
#include "../math/philox.h"
#include "walk.cuh"

namespace udp {

__device__ __forceinline__ NoiseKey noise_key(const int64_t* keys, int64_t image) {
    const int64_t key = keys[3 * image], counters = keys[3 * image + 1],
                  stream = keys[3 * image + 2];
    return {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32),
            static_cast<uint32_t>(counters), static_cast<uint32_t>(counters >> 32),
            static_cast<uint32_t>(stream)};
}

struct Normals {
    static __device__ __forceinline__ void of(const uint32_t (&w)[4], float (&out)[4]) {
        normal_pair(w[0], w[1], out[0], out[1]);
        normal_pair(w[2], w[3], out[2], out[3]);
    }
};
struct Uniforms {
    static __device__ __forceinline__ void of(const uint32_t (&w)[4], float (&out)[4]) {
#pragma unroll
        for (int k = 0; k < 4; ++k) out[k] = uniform<float>(w[k]);
    }
};

// The draws of one row. The index of an element is channel * pixels + pixel.
template <class Layout, class Draw>
struct Noise {
    uint32_t key0[kPhiloxRounds], key1[kPhiloxRounds];
    uint32_t draw_counter, step, stream;
    int64_t index;            // of the element that groups count from
    uint32_t block;           // and the block that it begins, where it does
    uint32_t channel_blocks;  // from a channel to the next; only Interleaved looks

    Noise() = default;
    __device__ Noise(const int64_t* keys, int64_t image, int64_t channel, int64_t pixels)
        : index(channel * pixels),
          block(static_cast<uint32_t>(index / 4)),
          channel_blocks(static_cast<uint32_t>(pixels / 4)) {
        const NoiseKey key = noise_key(keys, image);
        draw_counter = key.draw;
        step = key.step;
        stream = key.stream;
        // All lanes hold the same key. What comes from a shuffle the compiler keeps, in registers
        // that the warp shares; a sum it would form again in every round of a loop, 18
        // instructions.
#pragma unroll
        for (int round = 0; round < kPhiloxRounds; ++round) {
            key0[round] = __shfl_sync(0xffffffffu, philox_key0(key.key0, round), 0);
            key1[round] = __shfl_sync(0xffffffffu, philox_key1(key.key1, round), 0);
        }
    }

    __device__ void move(int64_t elements) {
        index += elements / Layout::kChannels;
        block = static_cast<uint32_t>(index / 4);
    }
    __device__ __forceinline__ void four(uint32_t at, float (&out)[4]) const {
        uint32_t words[4] = {at, draw_counter, step, stream};
#pragma unroll
        for (int round = 0; round < kPhiloxRounds; ++round) {
            philox_round(words, key0[round], key1[round]);
        }
        Draw::of(words, out);
    }

    // The numbers of N elements that begin `first`, in memory order, further on.
    template <int N>
    __device__ __forceinline__ void draw(uint32_t first, float (&out)[N]) const {
        constexpr int C = Layout::kChannels, kBlocks = N / C / 4;
        const uint32_t begin = block + first / (4 * C);
#pragma unroll
        for (int c = 0; c < C; ++c) {
#pragma unroll
            for (int b = 0; b < kBlocks; ++b) {
                float numbers[4];
                four(begin + c * channel_blocks + b, numbers);
#pragma unroll
                for (int k = 0; k < 4; ++k) out[(4 * b + k) * C + c] = numbers[k];
            }
        }
    }
    // Of four pixels, which need not begin where a block does.
    __device__ __forceinline__ void draw(int64_t first, float (&out)[4]) const {
        const int64_t at = index + first;
        const uint32_t begin = static_cast<uint32_t>(at / 4);
        const int skip = static_cast<int>(at % 4);
        four(begin, out);
        if (skip == 0) return;
        float next[4];
        four(begin + 1, next);
#pragma unroll
        for (int shift = 1; shift <= 2; ++shift) {  // by one, by two
            if ((skip & shift) == 0) continue;
#pragma unroll
            for (int k = 0; k < 4; ++k)
                out[k] = k + shift < 4 ? out[k + shift] : next[k + shift - 4];
#pragma unroll
            for (int k = 0; k < 4 - shift; ++k) next[k] = next[k + shift];
        }
    }
};

}  // namespace udp
