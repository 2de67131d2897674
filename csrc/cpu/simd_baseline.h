// Sixteen lanes in plain C++, for processors and compilers without a header of their own here. The
// loops over a constant 16 are what compilers vectorise best.
#pragma once

#include "../math/half.h"
#include "../math/lanes.h"
#include "../math/philox.h"

namespace udp {
namespace UDP_ISA {
namespace {

#define UDP_LANES for (int i = 0; i < 16; ++i)

struct M {
    uint32_t v[16];  // 0 or all ones
};
struct U {
    uint32_t v[16];
    U() = default;
    explicit U(uint32_t a) { UDP_LANES v[i] = a; }
};
struct F {
    float v[16];
    F() = default;
    explicit F(float a) { UDP_LANES v[i] = a; }
};

#define UDP_BINARY(R, T, NAME, EXPRESSION)  \
    UDP_HD R NAME(const T& a, const T& b) { \
        R r;                                \
        UDP_LANES r.v[i] = EXPRESSION;      \
        return r;                           \
    }
UDP_BINARY(F, F, operator+, a.v[i] + b.v[i])
UDP_BINARY(F, F, operator-, a.v[i] - b.v[i])
UDP_BINARY(F, F, operator*, a.v[i] * b.v[i])
UDP_BINARY(F, F, operator/, a.v[i] / b.v[i])
UDP_BINARY(F, F, at_most, udp::at_most(a.v[i], b.v[i]))
UDP_BINARY(F, F, at_least, udp::at_least(a.v[i], b.v[i]))
UDP_BINARY(M, F, operator<, a.v[i] < b.v[i] ? ~0u : 0u)
UDP_BINARY(M, F, operator>, a.v[i] > b.v[i] ? ~0u : 0u)
UDP_BINARY(M, F, operator<=, a.v[i] <= b.v[i] ? ~0u : 0u)
UDP_BINARY(M, F, operator!=, a.v[i] != b.v[i] ? ~0u : 0u)
UDP_BINARY(F, F, flip, udp::flip(a.v[i], b.v[i]))
UDP_BINARY(U, U, operator+, a.v[i] + b.v[i])
UDP_BINARY(U, U, operator-, a.v[i] - b.v[i])
UDP_BINARY(U, U, operator&, a.v[i] & b.v[i])
UDP_BINARY(U, U, operator|, a.v[i] | b.v[i])
UDP_BINARY(U, U, operator^, a.v[i] ^ b.v[i])
#undef UDP_BINARY

#define UDP_UNARY(R, T, NAME, EXPRESSION) \
    UDP_HD R NAME(const T& a) {           \
        R r;                              \
        UDP_LANES r.v[i] = EXPRESSION;    \
        return r;                         \
    }
UDP_UNARY(F, F, sqrt, udp::sqrt(a.v[i]))
UDP_UNARY(F, F, reciprocal, udp::reciprocal(a.v[i]))
UDP_UNARY(F, F, abs, udp::abs(a.v[i]))
UDP_UNARY(F, F, floor, udp::floor(a.v[i]))
UDP_UNARY(F, F, round_half_even, udp::round_half_even(a.v[i]))
UDP_UNARY(U, F, as_uint, udp::as_uint(a.v[i]))
UDP_UNARY(F, U, as_float, udp::as_float(a.v[i]))
UDP_UNARY(F, U, to_float, udp::to_float(a.v[i]))
#undef UDP_UNARY

UDP_HD U operator<<(const U& a, int n) {
    U r;
    UDP_LANES r.v[i] = a.v[i] << n;
    return r;
}
UDP_HD U operator>>(const U& a, int n) {
    U r;
    UDP_LANES r.v[i] = a.v[i] >> n;
    return r;
}
// Sixteen calls of the C library. Inlined at each place they would be most of what there is to
// compile, and no faster.
UDP_NOINLINE F fma(const F& a, const F& b, const F& c) {
    F r;
    UDP_LANES r.v[i] = udp::fma(a.v[i], b.v[i], c.v[i]);
    return r;
}
UDP_HD U select(const M& m, const U& yes, const U& no) {
    U r;
    UDP_LANES r.v[i] = (m.v[i] & yes.v[i]) | (~m.v[i] & no.v[i]);
    return r;
}
UDP_HD F select(const M& m, const F& yes, const F& no) {
    return as_float(select(m, as_uint(yes), as_uint(no)));
}
UDP_HD F only_if(const M& m, const F& yes) {
    return select(m, yes, F(0.0f));
}
UDP_HD F select_by_top_bit(const U& a, const F& yes, const F& no) {
    M m;
    UDP_LANES m.v[i] = 0u - (a.v[i] >> 31);
    return select(m, yes, no);
}

// Of each index the last three bits count.
UDP_HD U lookup8(const uint32_t (&table)[8], const U& index) {
    U r;
    UDP_LANES r.v[i] = table[index.v[i] % 8];
    return r;
}

// Whether a 16-bit gradient's signs are found before it is widened: simd_avx2.h.
constexpr bool kSignsOf16Bits = false;

// How many lanes were true so far; fewer than 2^31 a lane.
struct Count {
    uint32_t v[16] = {};
    void add(const M& m) { UDP_LANES v[i] -= m.v[i]; }
    int64_t total() const {
        int64_t n = 0;
        UDP_LANES n += v[i];
        return n;
    }
};

UDP_HD F load16(const float* p) {
    F r;
    memcpy(r.v, p, sizeof r.v);
    return r;
}
UDP_HD U load_words(const uint16_t* p) {
    U r;
    UDP_LANES r.v[i] = p[i];
    return r;
}
UDP_HD F load16(const Float16* p) {
    return from_float16_bits<F, U>(load_words(&p->bits));
}
UDP_HD F load16(const BFloat16* p) {
    return from_bfloat16_bits<F, U>(load_words(&p->bits));
}
UDP_HD F load16(const uint8_t* p) {
    F r;
    UDP_LANES r.v[i] = p[i];
    return r;
}

UDP_HD void store16(float* p, const F& a) {
    memcpy(p, a.v, sizeof a.v);
}
UDP_HD void store_words(uint16_t* p, const U& a) {
    UDP_LANES p[i] = static_cast<uint16_t>(a.v[i]);
}
UDP_HD void store16(Float16* p, const F& a) {
    store_words(&p->bits, float16_bits<F, U>(a));
}
UDP_HD void store16(BFloat16* p, const F& a) {
    store_words(&p->bits, bfloat16_bits<F, U>(a));
}
UDP_HD void store16(uint8_t* p, const F& a) {
    UDP_LANES p[i] = static_cast<uint8_t>(a.v[i]);
}

// Without a non-temporal store: an ordinary one.
template <class T>
UDP_HD void stream16(T* p, const F& a) {
    store16(p, a);
}
UDP_HD void stream_fence() {}

// Sixteen running sums in float64, one a lane. The square is exact in float64 (24 + 24 bits), so it
// makes no difference whether an instruction set fuses it into the addition.
struct Sums {
    double v[16] = {};
    void add_square(const F& a) {
        UDP_LANES v[i] += static_cast<double>(a.v[i]) * static_cast<double>(a.v[i]);
    }
    void store(double* out) const { memcpy(out, v, sizeof v); }
};

// A key, made ready once for many blocks.
struct NoiseStream {
    NoiseKey key;
    explicit NoiseStream(const NoiseKey& k) : key(k) {}
};

// Groups of sixteen blocks that philox makes at once: as many as hide the latency of its rounds.
constexpr int kGroups = 1;

// The output words of blocks first .. first + 16 * kGroups - 1.
UDP_HD void philox(uint32_t first, const NoiseStream& s, U (&words)[kGroups][4]) {
    UDP_LANES {
        uint32_t c[4] = {first + static_cast<uint32_t>(i), s.key.draw, s.key.step, s.key.stream};
        philox4x32_10(c, s.key.key0, s.key.key1);
        for (int k = 0; k < 4; ++k) words[0][k].v[i] = c[k];
    }
}
// Element 4 * block + k lies in lane `block` of w[k]: to memory order, 64 floats.
UDP_HD void interleave4(const F (&w)[4], float* out) {
    UDP_LANES {
        for (int k = 0; k < 4; ++k) out[4 * i + k] = w[k].v[i];
    }
}

// Four neighbours of each of 16 rows, as four vectors.
UDP_HD void load_columns4(const float* p, int64_t stride, F* columns) {
    UDP_LANES {
        for (int k = 0; k < 4; ++k) columns[k].v[i] = p[i * stride + k];
    }
}

// Sums that a matrix product keeps in registers: rows, and vectors of 16 to each.
constexpr int kGemmRows = 4, kGemmLanes = 1;

#undef UDP_LANES

// --- for matrix products -------------------------------------------------------------------------

// Vector registers of the processor, and how many of them an F fills: what a product's tile of
// sums is chosen by.
constexpr int kRegisters = 32, kRegistersOfF = 4;

// Eight lanes, for the last columns of a matrix.
struct Half {
    float v[8];
    Half() = default;
    explicit Half(float a) {
        for (int i = 0; i < 8; ++i) v[i] = a;
    }
};
UDP_HD Half fma(const Half& a, const Half& b, const Half& c) {
    Half r;
    for (int i = 0; i < 8; ++i) r.v[i] = udp::fma(a.v[i], b.v[i], c.v[i]);
    return r;
}
UDP_HD Half load8(const float* p) {
    Half r;
    memcpy(r.v, p, sizeof r.v);
    return r;
}
UDP_HD void store8(float* p, const Half& a) {
    memcpy(p, a.v, sizeof a.v);
}

// Sixteen rows of sixteen columns become the columns.
UDP_HD void transpose16(F (&r)[16]) {
    for (int i = 1; i < 16; ++i) {
        for (int j = 0; j < i; ++j) {
            const float lower = r[i].v[j];
            r[i].v[j] = r[j].v[i];
            r[j].v[i] = lower;
        }
    }
}
}  // namespace
}  // namespace UDP_ISA
}  // namespace udp
