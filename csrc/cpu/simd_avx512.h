// Sixteen lanes as one AVX-512 register. Needs AVX-512 F, BW, DQ and VL, and F16C.
// The meaning of each function is in simd_baseline.h.
#pragma once

#include <immintrin.h>

#include "../math/half.h"
#include "../math/lanes.h"
#include "../math/philox.h"
#include "philox_wide.h"
#include "unrolled.h"

namespace udp {
namespace UDP_ISA {
namespace {

struct M {
    __mmask16 v;
};
struct F {
    __m512 v;
    F() = default;
    F(__m512 a) : v(a) {}
    explicit F(float a) : v(_mm512_set1_ps(a)) {}
};
struct U {
    __m512i v;
    U() = default;
    U(__m512i a) : v(a) {}
    explicit U(uint32_t a) : v(_mm512_set1_epi32(static_cast<int>(a))) {}
};

UDP_HD F operator+(F a, F b) {
    return _mm512_add_ps(a.v, b.v);
}
UDP_HD F operator-(F a, F b) {
    return _mm512_sub_ps(a.v, b.v);
}
UDP_HD F operator*(F a, F b) {
    return _mm512_mul_ps(a.v, b.v);
}
UDP_HD F operator/(F a, F b) {
    return _mm512_div_ps(a.v, b.v);
}
UDP_HD U operator+(U a, U b) {
    return _mm512_add_epi32(a.v, b.v);
}
UDP_HD U operator-(U a, U b) {
    return _mm512_sub_epi32(a.v, b.v);
}
UDP_HD U operator&(U a, U b) {
    return _mm512_and_si512(a.v, b.v);
}
UDP_HD U operator|(U a, U b) {
    return _mm512_or_si512(a.v, b.v);
}
UDP_HD U operator^(U a, U b) {
    return _mm512_xor_si512(a.v, b.v);
}
UDP_HD U operator<<(U a, int n) {
    return _mm512_slli_epi32(a.v, static_cast<unsigned>(n));
}
UDP_HD U operator>>(U a, int n) {
    return _mm512_srli_epi32(a.v, static_cast<unsigned>(n));
}

// minps and maxps return their second operand when either is a NaN.
UDP_HD F at_most(F a, F bound) {
    return _mm512_min_ps(bound.v, a.v);
}
UDP_HD F at_least(F a, F bound) {
    return _mm512_max_ps(bound.v, a.v);
}
UDP_HD M operator<(F a, F b) {
    return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)};
}
UDP_HD M operator>(F a, F b) {
    return b < a;
}
UDP_HD M operator<=(F a, F b) {
    return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)};
}

UDP_HD M operator!=(F a, F b) {
    return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_NEQ_UQ)};
}

UDP_HD F fma(F a, F b, F c) {
    return _mm512_fmadd_ps(a.v, b.v, c.v);
}
UDP_HD F sqrt(F a) {
    return _mm512_sqrt_ps(a.v);
}
UDP_HD F reciprocal(F a) {
    return _mm512_div_ps(_mm512_set1_ps(1.0f), a.v);
}
UDP_HD F floor(F a) {
    return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
UDP_HD F round_half_even(F a) {
    return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
UDP_HD U as_uint(F a) {
    return _mm512_castps_si512(a.v);
}
UDP_HD F as_float(U a) {
    return _mm512_castsi512_ps(a.v);
}
UDP_HD F to_float(U a) {
    return _mm512_cvtepi32_ps(a.v);
}
UDP_HD F abs(F a) {
    return as_float(as_uint(a) & U(0x7fffffffu));
}
UDP_HD F select(M m, F yes, F no) {
    return _mm512_mask_blend_ps(m.v, no.v, yes.v);
}
UDP_HD U select(M m, U yes, U no) {
    return _mm512_mask_blend_epi32(m.v, no.v, yes.v);
}
UDP_HD F only_if(M m, F yes) {
    return _mm512_maskz_mov_ps(m.v, yes.v);
}
UDP_HD F select_by_top_bit(U a, F yes, F no) {
    return select(M{_mm512_movepi32_mask(a.v)}, yes, no);
}
UDP_HD U lookup8(const uint32_t (&table)[8], U index) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(table));
    return _mm512_permutexvar_epi32(index.v, _mm512_broadcast_i64x4(words));
}
UDP_HD F flip(F a, F sign) {
    return as_float(as_uint(a) ^ (as_uint(sign) & U(0x80000000u)));
}

// As in ../math/lanes.h: one instruction classifies.
UDP_HD M is_finite(F a) {
    constexpr int kNanOrInfinity = 0x01 | 0x80 | 0x08 | 0x10;
    return {static_cast<__mmask16>(~_mm512_fpclass_ps_mask(a.v, kNanOrInfinity))};
}
UDP_HD F finite_sign(F a) {
    constexpr int kNanInfinityOrZero = 0x01 | 0x80 | 0x08 | 0x10 | 0x02 | 0x04;
    const __mmask16 steps =
        static_cast<__mmask16>(~_mm512_fpclass_ps_mask(a.v, kNanInfinityOrZero));
    // The sign bit of a, the rest of 1.
    return _mm512_castsi512_ps(
        _mm512_maskz_ternarylogic_epi32(steps, _mm512_set1_epi32(static_cast<int>(0x80000000u)),
                                        as_uint(a).v, as_uint(F(1.0f)).v, 0xca));
}

constexpr bool kConvertsVectors = true;
constexpr bool kStepsBy16Bits = false;
struct SignStep {
    explicit SignStep(float) {}
};

struct Count {
    int64_t n = 0;
    void add(M m) { n += __builtin_popcount(m.v); }
    int64_t total() const { return n; }
};

UDP_HD __m128i load_128(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
UDP_HD __m256i load_256(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
UDP_HD F load16(const float* p) {
    return _mm512_loadu_ps(p);
}
UDP_HD F load16(const Float16* p) {
    return _mm512_cvtph_ps(load_256(p));
}
UDP_HD F load16(const BFloat16* p) {
    return from_bfloat16_bits<F, U>(U(_mm512_cvtepu16_epi32(load_256(p))));
}
UDP_HD F load16(const uint8_t* p) {
    return to_float(U(_mm512_cvtepu8_epi32(load_128(p))));
}

UDP_HD __m256i to_float16(F a) {
    return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT);
}
// The upper halves of 32-bit words: one permutation instead of a shift and a narrowing.
UDP_HD __m256i upper_halves(__m512i a) {
    const __m256i odd =
        _mm256_setr_epi16(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return _mm512_castsi512_si256(_mm512_permutexvar_epi16(_mm512_castsi256_si512(odd), a));
}
// bfloat16_bits in ../math/half.h, with masks: a NaN's sum is replaced by the quiet NaN, whose
// upper half a last 1 does not reach.
UDP_HD __m256i to_bfloat16(F a) {
    const __m512i bits = as_uint(a).v;
    const __mmask16 number = _mm512_cmp_ps_mask(a.v, a.v, _CMP_ORD_Q);
    const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    __m512i r = _mm512_mask_add_epi32(_mm512_set1_epi32(0x7fc00000), number, bits,
                                      _mm512_set1_epi32(0x7fff));
    r = _mm512_mask_add_epi32(r, odd, r, _mm512_set1_epi32(1));
    return upper_halves(r);
}
UDP_HD __m128i to_bytes(F a) {
    return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v));
}
UDP_HD __m256i* at_256(void* p) {
    return static_cast<__m256i*>(p);
}
UDP_HD __m128i* at_128(void* p) {
    return static_cast<__m128i*>(p);
}

UDP_HD void store16(float* p, F a) {
    _mm512_storeu_ps(p, a.v);
}
UDP_HD void store16(Float16* p, F a) {
    _mm256_storeu_si256(at_256(p), to_float16(a));
}
UDP_HD void store16(BFloat16* p, F a) {
    _mm256_storeu_si256(at_256(p), to_bfloat16(a));
}
UDP_HD void store16(uint8_t* p, F a) {
    _mm_storeu_si128(at_128(p), to_bytes(a));
}

UDP_HD void stream16(float* p, F a) {
    _mm512_stream_ps(p, a.v);
}
UDP_HD void stream16(Float16* p, F a) {
    _mm256_stream_si256(at_256(p), to_float16(a));
}
UDP_HD void stream16(BFloat16* p, F a) {
    _mm256_stream_si256(at_256(p), to_bfloat16(a));
}
UDP_HD void stream16(uint8_t* p, F a) {
    _mm_stream_si128(at_128(p), to_bytes(a));
}
// Numbers only, as their sums with a half of the last place kept: both upper halves in one
// permutation.
UDP_HD __m512i rounded_numbers(F a) {
    const __m512i bits = as_uint(a).v;
    const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    const __m512i r = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    return _mm512_mask_add_epi32(r, odd, r, _mm512_set1_epi32(1));
}
UDP_HD void store32(BFloat16* p, F a, F b, bool stream) {
    if (_mm512_cmp_ps_mask(a.v, b.v, _CMP_UNORD_Q) != 0) {  // a NaN, which rounding might undo
        store16(p, a);
        store16(p + 16, b);
        return;
    }
    const __m512i odd =
        _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                         25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    const __m512i packed = _mm512_permutex2var_epi16(rounded_numbers(a), odd, rounded_numbers(b));
    if (stream) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(p), packed);
    } else {
        _mm512_storeu_si512(p, packed);
    }
}
UDP_HD void stream_fence() {
    _mm_sfence();
}

struct Sums {
    __m512d lo, hi;
    Sums() : lo(_mm512_setzero_pd()), hi(lo) {}
    void add_square(F a) {
        const __m512d l = _mm512_cvtps_pd(_mm512_castps512_ps256(a.v));
        const __m512d h = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1));
        lo = _mm512_fmadd_pd(l, l, lo);
        hi = _mm512_fmadd_pd(h, h, hi);
    }
    void store(double* out) const {
        _mm512_storeu_pd(out, lo);
        _mm512_storeu_pd(out + 8, hi);
    }
};

// Eight 64-bit lanes, of which Philox uses the low halves: see philox_wide.h.
struct Wide {
    __m512i v;
    Wide() = default;
    Wide(__m512i a) : v(a) {}
    explicit Wide(uint32_t a) : v(_mm512_set1_epi32(static_cast<int>(a))) {}
};
UDP_HD Wide operator+(Wide a, Wide b) {
    return _mm512_add_epi64(a.v, b.v);
}
UDP_HD Wide operator^(Wide a, Wide b) {
    return _mm512_xor_si512(a.v, b.v);
}
UDP_HD Wide product(Wide a, Wide b) {
    return _mm512_mul_epu32(a.v, b.v);
}
UDP_HD Wide upper_half(Wide a) {
    return _mm512_srli_epi64(a.v, 32);
}
// Of each 128 bits: a[0] a[1] b[0] b[1].
template <int kHalves>
UDP_HD Wide pack(Wide a, Wide b) {
    return _mm512_castps_si512(
        _mm512_shuffle_ps(_mm512_castsi512_ps(a.v), _mm512_castsi512_ps(b.v), kHalves));
}
UDP_HD Wide low_halves(Wide a, Wide b) {
    return pack<0x88>(a, b);
}
UDP_HD Wide upper_halves(Wide a, Wide b) {
    return pack<0xdd>(a, b);
}

using NoiseStream = WideStream<Wide>;

// A group's blocks in the order 0 4 8 12 | 1 5 9 13 | 2 6 10 14 | 3 7 11 15: interleave4 then
// transposes within the 128-bit quarters only.
constexpr int kGroups = 2;
UDP_HD void philox(uint32_t first, const NoiseStream& s, U (&words)[kGroups][4]) {
    const Wide base = Wide(first) + _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    Wide w[kGroups][4];
    philox_wide(base, base + Wide(8u), base + Wide(16u), base + Wide(24u), s, w);
    unrolled<4 * kGroups>([&](auto k) UDP_INLINED { words[k / 4][k % 4] = w[k / 4][k % 4].v; });
}
UDP_HD void interleave4(const F (&w)[4], float* out) {
    const __m512 ab_lo = _mm512_unpacklo_ps(w[0].v, w[1].v);
    const __m512 ab_hi = _mm512_unpackhi_ps(w[0].v, w[1].v);
    const __m512 cd_lo = _mm512_unpacklo_ps(w[2].v, w[3].v);
    const __m512 cd_hi = _mm512_unpackhi_ps(w[2].v, w[3].v);
    _mm512_storeu_ps(out, _mm512_shuffle_ps(ab_lo, cd_lo, 0x44));
    _mm512_storeu_ps(out + 16, _mm512_shuffle_ps(ab_lo, cd_lo, 0xee));
    _mm512_storeu_ps(out + 32, _mm512_shuffle_ps(ab_hi, cd_hi, 0x44));
    _mm512_storeu_ps(out + 48, _mm512_shuffle_ps(ab_hi, cd_hi, 0xee));
}

// Columns first .. first + 3 of 16 rows, each a vector: quarter q of `rows` holds rows q, q + 4,
// ... of its four, which a transposition within quarters puts in order.
UDP_HD void load_columns4(const float* p, int64_t stride, F* columns) {
    const auto rows = [=](int i) UDP_INLINED {
        const float* row = p + i * stride;
        __m512 r = _mm512_castps128_ps512(_mm_loadu_ps(row));
        r = _mm512_insertf32x4(r, _mm_loadu_ps(row + 4 * stride), 1);
        r = _mm512_insertf32x4(r, _mm_loadu_ps(row + 8 * stride), 2);
        return _mm512_insertf32x4(r, _mm_loadu_ps(row + 12 * stride), 3);
    };
    const __m512 r0 = rows(0), r1 = rows(1), r2 = rows(2), r3 = rows(3);
    const __m512 lo01 = _mm512_unpacklo_ps(r0, r1), lo23 = _mm512_unpacklo_ps(r2, r3);
    const __m512 hi01 = _mm512_unpackhi_ps(r0, r1), hi23 = _mm512_unpackhi_ps(r2, r3);
    columns[0] = _mm512_shuffle_ps(lo01, lo23, 0x44);
    columns[1] = _mm512_shuffle_ps(lo01, lo23, 0xee);
    columns[2] = _mm512_shuffle_ps(hi01, hi23, 0x44);
    columns[3] = _mm512_shuffle_ps(hi01, hi23, 0xee);
}

// Sums that a matrix product keeps in registers: rows, and vectors of 16 to each.
constexpr int kGemmRows = 8, kGemmLanes = 2;
// --- for matrix products -------------------------------------------------------------------------

constexpr int kRegisters = 32, kRegistersOfF = 1;

struct Half {
    __m256 v;
    Half() = default;
    Half(__m256 a) : v(a) {}
    explicit Half(float a) : v(_mm256_set1_ps(a)) {}
};
UDP_HD Half fma(Half a, Half b, Half c) {
    return _mm256_fmadd_ps(a.v, b.v, c.v);
}
UDP_HD Half load8(const float* p) {
    return _mm256_loadu_ps(p);
}
UDP_HD void store8(float* p, Half a) {
    _mm256_storeu_ps(p, a.v);
}

UDP_HD void transpose16(F (&r)[16]) {
    F t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
        t[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
    }
    // r[4 * j + k]: of each 128-bit quarter l, column 4 * l + k of rows 4 * j .. 4 * j + 3.
    for (int j = 0; j < 16; j += 4) {
        r[j] = _mm512_shuffle_ps(t[j].v, t[j + 2].v, 0x44);
        r[j + 1] = _mm512_shuffle_ps(t[j].v, t[j + 2].v, 0xee);
        r[j + 2] = _mm512_shuffle_ps(t[j + 1].v, t[j + 3].v, 0x44);
        r[j + 3] = _mm512_shuffle_ps(t[j + 1].v, t[j + 3].v, 0xee);
    }
    for (int k = 0; k < 4; ++k) {  // the quarters of r[k], r[4 + k], r[8 + k] and r[12 + k]
        const __m512 even_lo = _mm512_shuffle_f32x4(r[k].v, r[4 + k].v, 0x88);
        const __m512 odd_lo = _mm512_shuffle_f32x4(r[k].v, r[4 + k].v, 0xdd);
        const __m512 even_hi = _mm512_shuffle_f32x4(r[8 + k].v, r[12 + k].v, 0x88);
        const __m512 odd_hi = _mm512_shuffle_f32x4(r[8 + k].v, r[12 + k].v, 0xdd);
        t[k] = _mm512_shuffle_f32x4(even_lo, even_hi, 0x88);
        t[4 + k] = _mm512_shuffle_f32x4(odd_lo, odd_hi, 0x88);
        t[8 + k] = _mm512_shuffle_f32x4(even_lo, even_hi, 0xdd);
        t[12 + k] = _mm512_shuffle_f32x4(odd_lo, odd_hi, 0xdd);
    }
    for (int i = 0; i < 16; ++i) r[i] = t[i];
}

}  // namespace
}  // namespace UDP_ISA
}  // namespace udp
