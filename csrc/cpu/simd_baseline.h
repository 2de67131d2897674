// Sixteen lanes for processors and compilers without a header of their own here: in the vectors of
// GCC and Clang, which make of them what the processor has, elsewhere in arrays. (Arrays would do
// everywhere, but g++ takes twice as long over them.)
#pragma once

#include "../math/half.h"
#include "../math/lanes.h"
#include "../math/philox.h"
#include "compact.h"

namespace udp {
namespace UDP_ISA {
namespace {

#define UDP_LANES for (int i = 0; i < 16; ++i)

#if defined(__GNUC__) && !defined(UDP_ARRAYS)
typedef float FloatVector __attribute__((vector_size(64)));
typedef uint32_t WordVector __attribute__((vector_size(64)));
typedef int32_t IntVector __attribute__((vector_size(64)));

UDP_HD FloatVector lesser(const FloatVector& a, const FloatVector& b) {
    return a < b ? a : b;
}
UDP_HD FloatVector greater(const FloatVector& a, const FloatVector& b) {
    return a > b ? a : b;
}
UDP_HD FloatVector converted(const IntVector& a) {
    return __builtin_convertvector(a, FloatVector);
}
#else
template <class T>
struct Array {
    T v[16];
    T& operator[](int i) { return v[i]; }
    const T& operator[](int i) const { return v[i]; }
};
using FloatVector = Array<float>;
using WordVector = Array<uint32_t>;
using IntVector = Array<int32_t>;

#define UDP_BINARY(R, NAME, EXPRESSION)                          \
    template <class T>                                           \
    UDP_HD Array<R> NAME(const Array<T>& a, const Array<T>& b) { \
        Array<R> r;                                              \
        UDP_LANES r[i] = EXPRESSION;                             \
        return r;                                                \
    }
UDP_BINARY(T, operator+, a[i] + b[i])
UDP_BINARY(T, operator-, a[i] - b[i])
UDP_BINARY(T, operator*, a[i] * b[i])
UDP_BINARY(T, operator/, a[i] / b[i])
UDP_BINARY(T, operator&, a[i] & b[i])
UDP_BINARY(T, operator|, a[i] | b[i])
UDP_BINARY(T, operator^, a[i] ^ b[i])
UDP_BINARY(uint32_t, operator<, a[i] < b[i] ? ~0u : 0u)
UDP_BINARY(uint32_t, operator<=, a[i] <= b[i] ? ~0u : 0u)
UDP_BINARY(uint32_t, operator!=, a[i] != b[i] ? ~0u : 0u)
UDP_BINARY(T, lesser, a[i] < b[i] ? a[i] : b[i])
UDP_BINARY(T, greater, a[i] > b[i] ? a[i] : b[i])
#undef UDP_BINARY

UDP_HD WordVector operator+(WordVector a, uint32_t b) {
    UDP_LANES a[i] += b;
    return a;
}
UDP_HD WordVector operator<<(WordVector a, int n) {
    UDP_LANES a[i] <<= n;
    return a;
}
UDP_HD WordVector operator>>(WordVector a, int n) {
    UDP_LANES a[i] >>= n;
    return a;
}
UDP_HD FloatVector converted(const IntVector& a) {
    FloatVector r;
    UDP_LANES r[i] = static_cast<float>(a[i]);
    return r;
}
#endif

template <class To, class From>
UDP_HD To same_bits(const From& a) {
    static_assert(sizeof(To) == sizeof(From), "of one size");
    To r;
    memcpy(&r, &a, sizeof r);
    return r;
}

struct M {
    WordVector v;  // 0 or all ones
};
struct U {
    WordVector v;
    U() = default;
    explicit U(const WordVector& a) : v(a) {}
    explicit U(uint32_t a) : v(WordVector{} + a) {}
};
struct F {
    FloatVector v;
    F() = default;
    explicit F(const FloatVector& a) : v(a) {}
    explicit F(float a) : v(same_bits<FloatVector>(WordVector{} + udp::as_uint(a))) {}
};

#define UDP_BINARY(T, NAME, EXPRESSION)     \
    UDP_HD T NAME(const T& a, const T& b) { \
        return T(EXPRESSION);               \
    }
UDP_BINARY(F, operator+, a.v + b.v)
UDP_BINARY(F, operator-, a.v - b.v)
UDP_BINARY(F, operator*, a.v* b.v)
UDP_BINARY(F, operator/, a.v / b.v)
UDP_BINARY(F, at_most, lesser(b.v, a.v))
UDP_BINARY(F, at_least, greater(b.v, a.v))
UDP_BINARY(U, operator+, a.v + b.v)
UDP_BINARY(U, operator-, a.v - b.v)
UDP_BINARY(U, operator&, a.v & b.v)
UDP_BINARY(U, operator|, a.v | b.v)
UDP_BINARY(U, operator^, a.v ^ b.v)
#undef UDP_BINARY

UDP_HD M operator<(const F& a, const F& b) {
    return {same_bits<WordVector>(a.v < b.v)};
}
UDP_HD M operator>(const F& a, const F& b) {
    return b < a;
}
UDP_HD M operator<=(const F& a, const F& b) {
    return {same_bits<WordVector>(a.v <= b.v)};
}
UDP_HD M operator!=(const F& a, const F& b) {
    return {same_bits<WordVector>(a.v != b.v)};
}

UDP_HD U as_uint(const F& a) {
    return same_bits<U>(a);
}
UDP_HD F as_float(const U& a) {
    return same_bits<F>(a);
}
UDP_HD F to_float(const U& a) {
    return F(converted(same_bits<IntVector>(a)));
}
UDP_HD U operator<<(const U& a, int n) {
    return U(a.v << n);
}
UDP_HD U operator>>(const U& a, int n) {
    return U(a.v >> n);
}
UDP_HD F abs(const F& a) {
    return as_float(as_uint(a) & U(0x7fffffffu));
}
UDP_HD F flip(const F& a, const F& sign) {
    return as_float(as_uint(a) ^ (as_uint(sign) & U(0x80000000u)));
}
UDP_HD F reciprocal(const F& a) {
    return F(1.0f) / a;
}

// What no vector has an operator for.
struct Lanes {
    float v[16];
};
UDP_HD F sqrt(const F& a) {
    Lanes r = same_bits<Lanes>(a);
    UDP_LANES r.v[i] = udp::sqrt(r.v[i]);
    return same_bits<F>(r);
}
UDP_LONG F floor(const F& a) {
    Lanes r = same_bits<Lanes>(a);
    UDP_LANES r.v[i] = udp::floor(r.v[i]);
    return same_bits<F>(r);
}
UDP_LONG F round_half_even(const F& a) {
    Lanes r = same_bits<Lanes>(a);
    UDP_LANES r.v[i] = udp::round_half_even(r.v[i]);
    return same_bits<F>(r);
}
// Sixteen calls of the C library. Inlined at each place they would be most of what there is to
// compile, and no faster.
UDP_NOINLINE F fma(const F& a, const F& b, const F& c) {
    Lanes r;
    UDP_LANES r.v[i] = udp::fma(a.v[i], b.v[i], c.v[i]);
    return same_bits<F>(r);
}

UDP_HD U select(const M& m, const U& yes, const U& no) {
    return U((m.v & yes.v) | (no.v & (m.v ^ U(~0u).v)));
}
UDP_HD F select(const M& m, const F& yes, const F& no) {
    return as_float(select(m, as_uint(yes), as_uint(no)));
}
UDP_HD F only_if(const M& m, const F& yes) {
    return as_float(U(m.v & as_uint(yes).v));
}
UDP_HD F select_by_top_bit(const U& a, const F& yes, const F& no) {
    return select(M{(U(0u) - (a >> 31)).v}, yes, no);
}

// Of each index the last three bits count.
UDP_HD U lookup8(const uint32_t (&table)[8], const U& index) {
    uint32_t words[16];
    memcpy(words, &index, sizeof words);
    UDP_LANES words[i] = table[words[i] % 8];
    U r;
    memcpy(&r, words, sizeof r);
    return r;
}

// Whether there are instructions that convert a vector of bytes or 16-bit floats.
constexpr bool kConvertsVectors = false;
// Whether a 16-bit gradient's signs are found before it is widened: simd_avx2.h.
constexpr bool kStepsBy16Bits = false;
struct SignStep {
    explicit SignStep(float) {}
};

// How many lanes were true so far; fewer than 2^31 a lane.
struct Count {
    WordVector v{};
    void add(const M& m) { v = v - m.v; }  // true is -1
    int64_t total() const {
        int64_t n = 0;
        UDP_LANES n += v[i];
        return n;
    }
};

UDP_HD F load16(const float* p) {
    F r;
    memcpy(&r, p, sizeof r);
    return r;
}
template <class T>
UDP_HD U load_words(const T* p) {
    uint32_t words[16];
    UDP_LANES words[i] = p[i];
    U r;
    memcpy(&r, words, sizeof r);
    return r;
}
UDP_LONG F load16(const Float16* p) {
    return from_float16_bits<F, U>(load_words(&p->bits));
}
UDP_HD F load16(const BFloat16* p) {
    return from_bfloat16_bits<F, U>(load_words(&p->bits));
}
UDP_HD F load16(const uint8_t* p) {
    return to_float(load_words(p));
}

UDP_HD void store16(float* p, const F& a) {
    memcpy(p, &a, sizeof a);
}
UDP_HD void store_words(uint16_t* p, const U& a) {
    uint32_t words[16];
    memcpy(words, &a, sizeof words);
    UDP_LANES p[i] = static_cast<uint16_t>(words[i]);
}
UDP_LONG void store16(Float16* p, const F& a) {
    store_words(&p->bits, float16_bits<F, U>(a));
}
UDP_LONG void store16(BFloat16* p, const F& a) {
    store_words(&p->bits, bfloat16_bits<F, U>(a));
}
UDP_HD void store16(uint8_t* p, const F& a) {
    float lanes[16];
    store16(lanes, a);
    UDP_LANES p[i] = static_cast<uint8_t>(lanes[i]);
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
        float lanes[16];
        store16(lanes, a);
        UDP_LANES v[i] += static_cast<double>(lanes[i]) * static_cast<double>(lanes[i]);
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
    uint32_t w[4][16];
    UDP_LANES {
        uint32_t c[4] = {first + static_cast<uint32_t>(i), s.key.draw, s.key.step, s.key.stream};
        philox4x32_10(c, s.key.key0, s.key.key1);
        for (int k = 0; k < 4; ++k) w[k][i] = c[k];
    }
    memcpy(&words[0], w, sizeof w);
}
// Element 4 * block + k lies in lane `block` of w[k]: to memory order, 64 floats.
UDP_HD void interleave4(const F (&w)[4], float* out) {
    float lanes[4][16];
    memcpy(lanes, &w, sizeof lanes);
    UDP_LANES {
        for (int k = 0; k < 4; ++k) out[4 * i + k] = lanes[k][i];
    }
}

// Four neighbours of each of 16 rows, as four vectors.
UDP_HD void load_columns4(const float* p, int64_t stride, F* columns) {
    float lanes[4][16];
    UDP_LANES {
        for (int k = 0; k < 4; ++k) lanes[k][i] = p[i * stride + k];
    }
    memcpy(columns, lanes, sizeof lanes);
}

// Sums that a matrix product keeps in registers: rows, and vectors of 16 to each.
constexpr int kGemmRows = 4, kGemmLanes = 1;

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
    float rows[16][16], columns[16][16];
    memcpy(rows, &r, sizeof rows);
    UDP_LANES {
        for (int j = 0; j < 16; ++j) columns[j][i] = rows[i][j];
    }
    memcpy(&r, columns, sizeof columns);
}

#undef UDP_LANES
}  // namespace
}  // namespace UDP_ISA
}  // namespace udp
