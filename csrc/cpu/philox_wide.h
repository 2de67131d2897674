// Philox in 64-bit lanes, for instruction sets whose multiplication reads their low halves only:
// the low product then needs no masking, its upper half is rubbish that nobody reads. Wide: a
// register of such lanes, with + ^ product, upper_half and a constructor that broadcasts a word.
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
UDP_HD void multiply(const WideWords<Wide>& a, uint32_t b, WideWords<Wide>& hi,
                     WideWords<Wide>& lo) {
    const Wide factor(b);
    for (int i = 0; i < 4; ++i) {
        lo.v[i] = product(a.v[i], factor);
        hi.v[i] = upper_half(lo.v[i]);
    }
}

// A key as the rounds use it, in memory: an operand of the xor instead of work for the shuffle
// unit.
template <class Wide>
struct WideStream {
    Wide draw, step, stream, key0[kPhiloxRounds], key1[kPhiloxRounds];
    explicit WideStream(const NoiseKey& key) : draw(key.draw), step(key.step), stream(key.stream) {
        for (int r = 0; r < kPhiloxRounds; ++r) {
            key0[r] = Wide(philox_key0(key.key0, r));
            key1[r] = Wide(philox_key1(key.key1, r));
        }
    }
};

template <class Wide>
UDP_HD void philox_wide(const WideWords<Wide>& blocks, const WideStream<Wide>& s,
                        WideWords<Wide> (&c)[4]) {
    using Words = WideWords<Wide>;
    c[0] = blocks;
    c[1] = Words(s.draw);
    c[2] = Words(s.step);
    c[3] = Words(s.stream);
    UDP_UNROLL_ROUNDS
    for (int r = 0; r < kPhiloxRounds; ++r) philox_round(c, Words(s.key0[r]), Words(s.key1[r]));
}

}  // namespace
}  // namespace UDP_ISA
}  // namespace udp
