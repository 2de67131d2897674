// Philox in 64-bit lanes, for instruction sets whose multiplication reads their low halves only:
// the low product then needs no masking, its upper half is rubbish that nobody reads. Wide: a
// register of such lanes, with + ^ product, upper_half, a constructor that broadcasts a word to all
// 32-bit lanes, and low_halves and upper_halves, which pack those of two registers into one.
#pragma once

#include "../math/philox.h"

namespace udp {
namespace UDP_ISA {
namespace {

// Of as many blocks as four registers have lanes: so many hide the latency of a round.
template <class Wide>
struct WideWords {
    Wide v[4];
    WideWords() = default;
    WideWords(Wide a, Wide b, Wide c, Wide d) : v{a, b, c, d} {}
    explicit WideWords(Wide a) : v{a, a, a, a} {}
    explicit WideWords(uint32_t a) : WideWords(Wide(a)) {}
};
template <class Wide>
UDP_HD WideWords<Wide> operator^(const WideWords<Wide>& a, const WideWords<Wide>& b) {
    WideWords<Wide> r;
    for (int i = 0; i < 4; ++i) r.v[i] = a.v[i] ^ b.v[i];
    return r;
}
template <class Wide>
UDP_HD WideWords<Wide> product(const WideWords<Wide>& a, uint32_t b) {
    const Wide factor(b);
    WideWords<Wide> r;
    for (int i = 0; i < 4; ++i) r.v[i] = product(a.v[i], factor);
    return r;
}
template <class Wide>
UDP_HD WideWords<Wide> upper_half(const WideWords<Wide>& a) {
    WideWords<Wide> r;
    for (int i = 0; i < 4; ++i) r.v[i] = upper_half(a.v[i]);
    return r;
}
template <class Wide>
UDP_HD Wide product(const Wide& a, uint32_t b) {
    return product(a, Wide(b));
}
// W: one register of lanes, or several.
template <class W>
UDP_HD void multiply(const W& a, uint32_t b, W& hi, W& lo) {
    lo = product(a, b);
    hi = upper_half(lo);
}

// A key as the rounds use it, in memory: an operand of the xor instead of work for the shuffle
// unit. Only the block differs between lanes, and it needs three rounds to reach all four words:
// what the first three do with the others is done here, once for the key, and folded into `first`.
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
        first[3] = Wide(static_cast<uint32_t>(q) ^ philox_key1(key.key1, 2));
        for (int r = 0; r < kPhiloxRounds; ++r) {
            key0[r] = Wide(philox_key0(key.key0, r));
            key1[r] = Wide(philox_key1(key.key1, r));
        }
    }

  private:
    static uint32_t upper(uint64_t product) { return static_cast<uint32_t>(product >> 32); }
};

// words[k][half]: the four words of the blocks in v[0] and v[1] (half 0), v[2] and v[3] (half 1).
template <class Wide>
UDP_HD void philox_wide(const WideWords<Wide>& blocks, const WideStream<Wide>& s,
                        Wide (&words)[4][2]) {
    using Words = WideWords<Wide>;
    Words c[4];
    // Rounds 0 to 2; c[0] and c[1] after the first, c[3] after the second are one for all lanes.
    multiply(blocks, kPhiloxFactor0, c[2], c[3]);
    c[2] = c[2] ^ Words(s.first[0]);
    multiply(c[2], kPhiloxFactor1, c[0], c[1]);
    c[0] = c[0] ^ Words(s.first[1]);
    c[2] = c[3] ^ Words(s.first[2]);
    Words hi, lo;
    multiply(c[0], kPhiloxFactor0, hi, lo);
    multiply(c[2], kPhiloxFactor1, c[0], c[3]);
    c[0] = c[0] ^ (c[1] ^ Words(s.key0[2]));
    c[1] = c[3];
    c[2] = hi ^ Words(s.first[3]);
    c[3] = lo;
    UDP_UNROLL_ROUNDS
    for (int r = 3; r < kPhiloxRounds - 1; ++r) {
        // A register after the other: two products at a time are all that there is room for.
        for (int i = 0; i < 4; ++i) {
            Wide block[4] = {c[0].v[i], c[1].v[i], c[2].v[i], c[3].v[i]};
            philox_round(block, s.key0[r], s.key1[r]);
            for (int k = 0; k < 4; ++k) c[k].v[i] = block[k];
        }
    }
    // The last, in full registers: packing takes the upper halves where they are.
    const Words p0 = product(c[0], kPhiloxFactor0), p1 = product(c[2], kPhiloxFactor1);
    for (int half = 0; half < 2; ++half) {
        const int a = 2 * half, b = a + 1;
        words[0][half] = upper_halves(p1.v[a], p1.v[b]) ^
                         (low_halves(c[1].v[a], c[1].v[b]) ^ s.key0[kPhiloxRounds - 1]);
        words[1][half] = low_halves(p1.v[a], p1.v[b]);
        words[2][half] = upper_halves(p0.v[a], p0.v[b]) ^
                         (low_halves(c[3].v[a], c[3].v[b]) ^ s.key1[kPhiloxRounds - 1]);
        words[3][half] = low_halves(p0.v[a], p0.v[b]);
    }
}

}  // namespace
}  // namespace UDP_ISA
}  // namespace udp
