// Philox4x32-10: the counter-based generator of Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3" (SC 2011). A draw is a pure function of (key, counter), so noise belongs to an image and
// never to a batch, an order or a worker.
#pragma once

#include "lanes.h"

namespace udp {

// What stays fixed while one image's elements are drawn. The counter is
// (element / 4, draw, step, stream); its four output words serve elements 4*block .. 4*block + 3.
struct NoiseKey {
    uint32_t key0, key1;  // from the seed and the image's id
    uint32_t draw, step, stream;
};

// Philox's key changes from round to round by Weyl sequences.
constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxFactor0 = 0xD2511F53u, kPhiloxFactor1 = 0xCD9E8D57u;

UDP_HD uint32_t philox_key0(uint32_t key0, int round) {
    return key0 + static_cast<uint32_t>(round) * 0x9E3779B9u;
}
UDP_HD uint32_t philox_key1(uint32_t key1, int round) {
    return key1 + static_cast<uint32_t>(round) * 0xBB67AE85u;
}

// In place; W: 32-bit words; K: the same, or one word for all.
template <class W, class K>
UDP_HD void philox_round(W (&counter)[4], K round_key0, K round_key1) {
    W hi0(0u), lo0(0u), hi1(0u), lo1(0u);
    multiply(counter[0], kPhiloxFactor0, hi0, lo0);
    multiply(counter[2], kPhiloxFactor1, hi1, lo1);
    // The product comes last: it takes longest.
    counter[0] = hi1 ^ (counter[1] ^ W(round_key0));
    counter[1] = lo1;
    counter[2] = hi0 ^ (counter[3] ^ W(round_key1));
    counter[3] = lo0;
}

// In place: counter[4] becomes the four output words.
template <class W>
UDP_HD void philox4x32_10(W (&counter)[4], uint32_t key0, uint32_t key1) {
    for (int round = 0; round < kPhiloxRounds; ++round) {
        philox_round(counter, philox_key0(key0, round), philox_key1(key1, round));
    }
}

}  // namespace udp
