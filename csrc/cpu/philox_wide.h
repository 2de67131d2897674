// Philox in 64-bit lanes, for instruction sets whose multiplication reads their low halves only:
// the low product then needs no masking, its upper half is rubbish that nobody reads. Wide: a
// register of such lanes, with + ^ product, upper_half, a constructor that broadcasts a word to all
// 32-bit lanes, and low_halves and upper_halves, which pack those of two registers into one.
#pragma once

#include "../math/philox.h"
#include "unrolled.h"

namespace udp {
namespace UDP_ISA {
namespace {

template <class Wide>
UDP_HD void multiply(const Wide& a, uint32_t b, Wide& hi, Wide& lo) {
    lo = product(a, Wide(b));
    hi = upper_half(lo);
}

// A key as the rounds use it, in memory: an operand of the xor instead of work for the shuffle
// unit. Only the block differs between lanes, and it needs three rounds to reach all four words:
// what the first two do with the others is done here, once for the key, and folded into `first`.
template <class Wide>
struct WideStream {
    Wide first[4], key0[kPhiloxRounds], key1[kPhiloxRounds];
    explicit WideStream(const NoiseKey& key) {
        const uint64_t p = uint64_t{key.step} * kPhiloxFactor1;
        const uint32_t c0 = upper(p) ^ key.draw ^ philox_key0(key.key0, 0);
        const uint64_t q = uint64_t{c0} * kPhiloxFactor0;
        first[0] = Wide(key.stream ^ philox_key1(key.key1, 0));
        first[1] = Wide(static_cast<uint32_t>(p) ^ philox_key0(key.key0, 1));
        first[2] = Wide(upper(q) ^ philox_key1(key.key1, 1));
        first[3] = Wide(static_cast<uint32_t>(q));
        for (int r = 0; r < kPhiloxRounds; ++r) {
            key0[r] = Wide(philox_key0(key.key0, r));
            key1[r] = Wide(philox_key1(key.key1, r));
        }
    }

  private:
    static uint32_t upper(uint64_t product) { return static_cast<uint32_t>(product >> 32); }
};

// Rounds 0 and 1; c[0] and c[1] after the first, c[3] after the second are one for all lanes.
template <class Wide>
UDP_HD void first_rounds(Wide block, const WideStream<Wide>& s, Wide (&c)[4]) {
    multiply(block, kPhiloxFactor0, c[2], c[3]);
    c[2] = c[2] ^ s.first[0];
    multiply(c[2], kPhiloxFactor1, c[0], c[1]);
    c[0] = c[0] ^ s.first[1];
    c[2] = c[3] ^ s.first[2];
    c[3] = s.first[3];
}

// The last of a and b, in full registers: packing takes the upper halves where they are.
template <class Wide>
UDP_HD void last_round(const Wide (&a)[4], const Wide (&b)[4], const WideStream<Wide>& s,
                       Wide (&words)[4]) {
    constexpr int kLast = kPhiloxRounds - 1;
    const Wide factor0(kPhiloxFactor0), factor1(kPhiloxFactor1);
    const Wide a0 = product(a[0], factor0), a1 = product(a[2], factor1);
    const Wide b0 = product(b[0], factor0), b1 = product(b[2], factor1);
    words[0] = upper_halves(a1, b1) ^ (low_halves(a[1], b[1]) ^ s.key0[kLast]);
    words[1] = low_halves(a1, b1);
    words[2] = upper_halves(a0, b0) ^ (low_halves(a[3], b[3]) ^ s.key1[kLast]);
    words[3] = low_halves(a0, b0);
}

// words[half]: the four words of blocks 2 * half and 2 * half + 1, packed. Four at once hide the
// latency of a round.
template <class Wide>
UDP_HD void philox_wide(Wide block0, Wide block1, Wide block2, Wide block3,
                        const WideStream<Wide>& s, Wide (&words)[2][4]) {
    Wide a[4], b[4], c[4], d[4];
    first_rounds(block0, s, a);
    first_rounds(block1, s, b);
    first_rounds(block2, s, c);
    first_rounds(block3, s, d);
    unrolled<kPhiloxRounds - 3>([&](auto after) UDP_INLINED {
        constexpr int r = 2 + decltype(after)::value;
        // One after the other: two products at a time are all that there is room for.
        philox_round(a, s.key0[r], s.key1[r]);
        philox_round(b, s.key0[r], s.key1[r]);
        philox_round(c, s.key0[r], s.key1[r]);
        philox_round(d, s.key0[r], s.key1[r]);
    });
    last_round(a, b, s, words[0]);
    last_round(c, d, s, words[1]);
}

}  // namespace
}  // namespace UDP_ISA
}  // namespace udp
