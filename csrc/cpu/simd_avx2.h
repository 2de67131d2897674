// Sixteen lanes as two AVX2 registers: two independent chains hide the latency of fma and sqrt.
// Needs AVX2, FMA and F16C. The meaning of each function is in simd_baseline.h.
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
    __m256 lo, hi;
};
struct F {
    __m256 lo, hi;
    F() = default;
    F(__m256 a, __m256 b) : lo(a), hi(b) {}
    explicit F(float a) : lo(_mm256_set1_ps(a)), hi(lo) {}
};
struct U {
    __m256i lo, hi;
    U() = default;
    U(__m256i a, __m256i b) : lo(a), hi(b) {}
    explicit U(uint32_t a) : lo(_mm256_set1_epi32(static_cast<int>(a))), hi(lo) {}
};

#define UDP_BINARY(R, T, NAME, INTRINSIC)                      \
    UDP_HD R NAME(T a, T b) {                                  \
        return {INTRINSIC(a.lo, b.lo), INTRINSIC(a.hi, b.hi)}; \
    }
UDP_BINARY(F, F, operator+, _mm256_add_ps)
UDP_BINARY(F, F, operator-, _mm256_sub_ps)
UDP_BINARY(F, F, operator*, _mm256_mul_ps)
UDP_BINARY(F, F, operator/, _mm256_div_ps)
UDP_BINARY(U, U, operator+, _mm256_add_epi32)
UDP_BINARY(U, U, operator-, _mm256_sub_epi32)
UDP_BINARY(U, U, operator&, _mm256_and_si256)
UDP_BINARY(U, U, operator|, _mm256_or_si256)
UDP_BINARY(U, U, operator^, _mm256_xor_si256)
#undef UDP_BINARY

// minps and maxps return their second operand when either is a NaN.
UDP_HD F at_most(F a, F bound) {
    return {_mm256_min_ps(bound.lo, a.lo), _mm256_min_ps(bound.hi, a.hi)};
}
UDP_HD F at_least(F a, F bound) {
    return {_mm256_max_ps(bound.lo, a.lo), _mm256_max_ps(bound.hi, a.hi)};
}
UDP_HD M operator<(F a, F b) {
    return {_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)};
}
UDP_HD M operator>(F a, F b) {
    return b < a;
}
UDP_HD M operator<=(F a, F b) {
    return {_mm256_cmp_ps(a.lo, b.lo, _CMP_LE_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LE_OQ)};
}
UDP_HD M operator!=(F a, F b) {
    return {_mm256_cmp_ps(a.lo, b.lo, _CMP_NEQ_UQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_NEQ_UQ)};
}
UDP_HD U operator<<(U a, int n) {
    return {_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)};
}
UDP_HD U operator>>(U a, int n) {
    return {_mm256_srli_epi32(a.lo, n), _mm256_srli_epi32(a.hi, n)};
}
UDP_HD F fma(F a, F b, F c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
UDP_HD F sqrt(F a) {
    return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)};
}
UDP_HD F reciprocal(F a) {
    const __m256 one = _mm256_set1_ps(1.0f);
    return {_mm256_div_ps(one, a.lo), _mm256_div_ps(one, a.hi)};
}
UDP_HD F floor(F a) {
    return {_mm256_floor_ps(a.lo), _mm256_floor_ps(a.hi)};
}
UDP_HD F round_half_even(F a) {
    constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.lo, kMode), _mm256_round_ps(a.hi, kMode)};
}
UDP_HD U as_uint(F a) {
    return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)};
}
UDP_HD F as_float(U a) {
    return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)};
}
UDP_HD F to_float(U a) {
    return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
}
UDP_HD F abs(F a) {
    return as_float(as_uint(a) & U(0x7fffffffu));
}
UDP_HD F select(M m, F yes, F no) {
    return {_mm256_blendv_ps(no.lo, yes.lo, m.lo), _mm256_blendv_ps(no.hi, yes.hi, m.hi)};
}
UDP_HD U select(M m, U yes, U no) {
    return as_uint(select(m, as_float(yes), as_float(no)));
}
UDP_HD F only_if(M m, F yes) {
    return {_mm256_and_ps(m.lo, yes.lo), _mm256_and_ps(m.hi, yes.hi)};
}
UDP_HD F select_by_top_bit(U a, F yes, F no) {  // blendv looks at no other bit
    return select(M{_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}, yes, no);
}
UDP_HD U lookup8(const uint32_t (&table)[8], U index) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(table));
    return {_mm256_permutevar8x32_epi32(words, index.lo),
            _mm256_permutevar8x32_epi32(words, index.hi)};
}
UDP_HD F flip(F a, F sign) {
    return as_float(as_uint(a) ^ (as_uint(sign) & U(0x80000000u)));
}

struct Count {
    __m256i v = _mm256_setzero_si256(), false16 = _mm256_setzero_si256();
    int64_t lanes = 0;
    void add(M m) {  // true is -1
        v = _mm256_sub_epi32(v, _mm256_castps_si256(m.lo));
        v = _mm256_sub_epi32(v, _mm256_castps_si256(m.hi));
    }
    void add_false(__m256i m) {  // sixteen lanes, -1 for what does not count; 2^15 times at most
        lanes += 16;
        false16 = _mm256_add_epi16(false16, m);
    }
    int64_t total() const {
        int32_t words[8];
        const __m256i less = _mm256_madd_epi16(false16, _mm256_set1_epi16(1));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), _mm256_add_epi32(v, less));
        int64_t n = lanes;
        for (int32_t word : words) n += word;
        return n;
    }
};

UDP_HD __m128i load_128(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
UDP_HD __m128i load_64(const void* p) {
    return _mm_loadl_epi64(static_cast<const __m128i*>(p));
}
UDP_HD F load16(const float* p) {
    return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
UDP_HD F load16(const Float16* p) {
    return {_mm256_cvtph_ps(load_128(p)), _mm256_cvtph_ps(load_128(p + 8))};
}
UDP_HD F load16(const BFloat16* p) {
    const U words(_mm256_cvtepu16_epi32(load_128(p)), _mm256_cvtepu16_epi32(load_128(p + 8)));
    return from_bfloat16_bits<F, U>(words);
}
constexpr bool kConvertsVectors = true;

// `step` by finite_sign of sixteen gradient elements, and how many are finite, found while they
// have 16 bits, in half of the instructions.
constexpr bool kStepsBy16Bits = true;
struct SignStep {
    // The bfloat16 whose negative is its bits' negative: 2 or, for a negative size, -2. The sign is
    // not left to the size: its product with 0 would be -0.
    __m256i two;
    float half;
    // size: 0, or half of it is a normal float.
    explicit SignStep(float size)
        : two(_mm256_set1_epi16(static_cast<short>(size < 0.0f ? 0xc000 : 0x4000))),
          half(0.5f * (size < 0.0f ? -size : size)) {}
};
template <int kInfinity>
UDP_HD F sign_step16(const SignStep& s, F delta, const void* gradient, Count& finite) {
    // unpack, below, works on each half of a register apart.
    const __m256i g =
        _mm256_permute4x64_epi64(_mm256_loadu_si256(static_cast<const __m256i*>(gradient)), 0xd8);
    const __m256i size = _mm256_and_si256(g, _mm256_set1_epi16(0x7fff));
    const __m256i not_finite = _mm256_cmpgt_epi16(size, _mm256_set1_epi16(kInfinity - 1));
    finite.add_false(not_finite);
    // Negated for a negative g, then 0 for a zero of either sign.
    const __m256i twos = _mm256_sign_epi16(_mm256_sign_epi16(s.two, g), size);
    const __m256i w = _mm256_andnot_si256(not_finite, twos), zero = _mm256_setzero_si256();
    // As the upper halves of words.
    const U direction(_mm256_unpacklo_epi16(zero, w), _mm256_unpackhi_epi16(zero, w));
    return fma(F(s.half), as_float(direction), delta);
}
UDP_HD F sign_step(const SignStep& s, F delta, const Float16* gradient, Count& finite) {
    return sign_step16<0x7c00>(s, delta, gradient, finite);
}
UDP_HD F sign_step(const SignStep& s, F delta, const BFloat16* gradient, Count& finite) {
    return sign_step16<0x7f80>(s, delta, gradient, finite);
}

// Two shuffles of bytes (an index of 0x80 or more gives zero): half of what two vpmovzxbd take.
UDP_HD F load16(const uint8_t* p) {
    const __m256i bytes = _mm256_broadcastsi128_si256(load_128(p));
    const __m256i words = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i lower = _mm256_or_si256(words, _mm256_set1_epi32(static_cast<int>(0x80808000u)));
    const __m256i upper = _mm256_or_si256(lower, _mm256_set1_epi32(8));
    return to_float(U(_mm256_shuffle_epi8(bytes, lower), _mm256_shuffle_epi8(bytes, upper)));
}

// 32-bit words below 2^16 to 16 bits, in order: packus works on each half of a register apart.
UDP_HD __m256i narrow(U a) {
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(a.lo, a.hi), 0xd8);
}
UDP_HD __m256i to_float16(F a) {
    return _mm256_set_m128i(_mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT),
                            _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
}
UDP_HD __m128i to_bytes(F a) {
    const __m256i w = narrow(U(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)));
    return _mm_packus_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
}
UDP_HD __m256i* at_256(void* p) {
    return static_cast<__m256i*>(p);
}
UDP_HD __m128i* at_128(void* p) {
    return static_cast<__m128i*>(p);
}

UDP_HD void store16(float* p, F a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
UDP_HD void store16(Float16* p, F a) {
    _mm_storeu_si128(at_128(p), _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(at_128(p + 8), _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
UDP_HD void store16(BFloat16* p, F a) {
    _mm256_storeu_si256(at_256(p), narrow(bfloat16_bits<F, U>(a)));
}
UDP_HD void store16(uint8_t* p, F a) {
    _mm_storeu_si128(at_128(p), to_bytes(a));
}

// Past the caches; p is a multiple of 64 bytes from an aligned address.
UDP_HD void stream16(float* p, F a) {
    _mm256_stream_ps(p, a.lo);
    _mm256_stream_ps(p + 8, a.hi);
}
UDP_HD void stream16(Float16* p, F a) {
    _mm256_stream_si256(at_256(p), to_float16(a));
}
UDP_HD void stream16(BFloat16* p, F a) {
    _mm256_stream_si256(at_256(p), narrow(bfloat16_bits<F, U>(a)));
}
UDP_HD void stream16(uint8_t* p, F a) {
    _mm_stream_si128(at_128(p), to_bytes(a));
}
// One test for a NaN, which rounding might undo, instead of a selection for each register.
UDP_HD __m256i rounded_numbers(__m256 a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), last);
    return _mm256_srli_epi32(sum, 16);
}
UDP_HD bool any_nan(F a, F b) {
    const __m256 nan = _mm256_or_ps(_mm256_cmp_ps(a.lo, a.hi, _CMP_UNORD_Q),
                                    _mm256_cmp_ps(b.lo, b.hi, _CMP_UNORD_Q));
    return _mm256_movemask_ps(nan) != 0;
}
UDP_HD void store_halves(BFloat16* p, __m256i lower, __m256i upper, bool stream) {
    if (stream) {
        _mm256_stream_si256(at_256(p), lower);
        _mm256_stream_si256(at_256(p + 16), upper);
    } else {
        _mm256_storeu_si256(at_256(p), lower);
        _mm256_storeu_si256(at_256(p + 16), upper);
    }
}
UDP_HD void store32(BFloat16* p, F a, F b, bool stream) {
    if (any_nan(a, b)) {
        store16(p, a);
        store16(p + 16, b);
        return;
    }
    store_halves(p, narrow(U(rounded_numbers(a.lo), rounded_numbers(a.hi))),
                 narrow(U(rounded_numbers(b.lo), rounded_numbers(b.hi))), stream);
}
// Numbers into 0 .. 1 and to bfloat16, in two instructions for four. Each is 0 or above 2^-126.
//   The float nearest to 65535 a is 65536 a less `a` rounded to bfloat16's 8 bits: what the product
//   drops are the 16 bits below those, and of a tie the even neighbour is even in either. (With
//   65537 it would have one bit less just below a power of two. All floats up to 2^111 were tried.)
//   The narrowing saturates: negative words become 0.
UDP_HD __m256i unit_words(__m256 a) {
    const __m256 product = _mm256_mul_ps(a, _mm256_set1_ps(65535.0f));
    const __m256 rounded = _mm256_fmsub_ps(a, _mm256_set1_ps(65536.0f), product);
    return _mm256_srai_epi32(_mm256_castps_si256(rounded), 16);
}
UDP_HD __m256i unit_bfloat16(F a) {
    const __m256i words = narrow(U(unit_words(a.lo), unit_words(a.hi)));
    return _mm256_min_epi16(words, _mm256_set1_epi16(0x3f80));
}
// Returns whether it has: not where there is a NaN.
UDP_HD bool store_unit32(BFloat16* p, F a, F b, bool stream) {
    if (any_nan(a, b)) return false;
    store_halves(p, unit_bfloat16(a), unit_bfloat16(b), stream);
    return true;
}
UDP_HD void stream_fence() {
    _mm_sfence();
}

struct Sums {
    __m256d v[4];
    Sums()
        : v{_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()} {}
    void add_square(F a) {
        square(v[0], _mm256_castps256_ps128(a.lo));
        square(v[1], _mm256_extractf128_ps(a.lo, 1));
        square(v[2], _mm256_castps256_ps128(a.hi));
        square(v[3], _mm256_extractf128_ps(a.hi, 1));
    }
    void store(double* out) const {
        for (int i = 0; i < 4; ++i) _mm256_storeu_pd(out + 4 * i, v[i]);
    }

  private:
    static void square(__m256d& sum, __m128 a) {
        const __m256d d = _mm256_cvtps_pd(a);
        sum = _mm256_fmadd_pd(d, d, sum);
    }
};

// Four 64-bit lanes, of which Philox uses the low halves: see philox_wide.h.
struct Wide {
    __m256i v;
    Wide() = default;
    Wide(__m256i a) : v(a) {}
    explicit Wide(uint32_t a) : v(_mm256_set1_epi32(static_cast<int>(a))) {}
};
UDP_HD Wide operator+(Wide a, Wide b) {
    return _mm256_add_epi64(a.v, b.v);
}
UDP_HD Wide operator^(Wide a, Wide b) {
    return _mm256_xor_si256(a.v, b.v);
}
UDP_HD Wide product(Wide a, Wide b) {
    return _mm256_mul_epu32(a.v, b.v);
}
UDP_HD Wide upper_half(Wide a) {
    return _mm256_srli_epi64(a.v, 32);
}
// a[0] a[1] b[0] b[1] in the lower 128 bits, a[2] a[3] b[2] b[3] in the upper.
template <int kHalves>
UDP_HD Wide pack(Wide a, Wide b) {
    return _mm256_castps_si256(
        _mm256_shuffle_ps(_mm256_castsi256_ps(a.v), _mm256_castsi256_ps(b.v), kHalves));
}
UDP_HD Wide low_halves(Wide a, Wide b) {
    return pack<0x88>(a, b);
}
UDP_HD Wide upper_halves(Wide a, Wide b) {
    return pack<0xdd>(a, b);
}

using NoiseStream = WideStream<Wide>;

// Blocks in the order 0 2 4 6 | 1 3 5 7 and the same plus eight: interleave4 then transposes within
// the 128-bit halves only.
constexpr int kGroups = 1;
UDP_HD void philox(uint32_t first, const NoiseStream& s, U (&words)[kGroups][4]) {
    const Wide base(first);
    Wide w[2][4];
    philox_wide(base + _mm256_setr_epi64x(0, 2, 1, 3), base + _mm256_setr_epi64x(4, 6, 5, 7),
                base + _mm256_setr_epi64x(8, 10, 9, 11), base + _mm256_setr_epi64x(12, 14, 13, 15),
                s, w);
    unrolled<4>([&](auto k) UDP_INLINED { words[0][k] = U(w[0][k].v, w[1][k].v); });
}

UDP_HD void interleave4(__m256 a, __m256 b, __m256 c, __m256 d, float* out) {
    const __m256 ab_lo = _mm256_unpacklo_ps(a, b), ab_hi = _mm256_unpackhi_ps(a, b);
    const __m256 cd_lo = _mm256_unpacklo_ps(c, d), cd_hi = _mm256_unpackhi_ps(c, d);
    _mm256_storeu_ps(out, _mm256_shuffle_ps(ab_lo, cd_lo, 0x44));
    _mm256_storeu_ps(out + 8, _mm256_shuffle_ps(ab_lo, cd_lo, 0xee));
    _mm256_storeu_ps(out + 16, _mm256_shuffle_ps(ab_hi, cd_hi, 0x44));
    _mm256_storeu_ps(out + 24, _mm256_shuffle_ps(ab_hi, cd_hi, 0xee));
}
UDP_HD void interleave4(const F (&w)[4], float* out) {
    interleave4(w[0].lo, w[1].lo, w[2].lo, w[3].lo, out);
    interleave4(w[0].hi, w[1].hi, w[2].hi, w[3].hi, out + 32);
}

// As in simd_avx512.h, for eight rows at a time.
UDP_HD void load_columns4_of_8(const float* p, int64_t stride, __m256& a, __m256& b, __m256& c,
                               __m256& d) {
    const auto rows = [=](int i) UDP_INLINED {
        const float* row = p + i * stride;
        return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row)),
                                    _mm_loadu_ps(row + 4 * stride), 1);
    };
    const __m256 r0 = rows(0), r1 = rows(1), r2 = rows(2), r3 = rows(3);
    const __m256 lo01 = _mm256_unpacklo_ps(r0, r1), lo23 = _mm256_unpacklo_ps(r2, r3);
    const __m256 hi01 = _mm256_unpackhi_ps(r0, r1), hi23 = _mm256_unpackhi_ps(r2, r3);
    a = _mm256_shuffle_ps(lo01, lo23, 0x44);
    b = _mm256_shuffle_ps(lo01, lo23, 0xee);
    c = _mm256_shuffle_ps(hi01, hi23, 0x44);
    d = _mm256_shuffle_ps(hi01, hi23, 0xee);
}
UDP_HD void load_columns4(const float* p, int64_t stride, F* columns) {
    F &a = columns[0], &b = columns[1], &c = columns[2], &d = columns[3];
    load_columns4_of_8(p, stride, a.lo, b.lo, c.lo, d.lo);
    load_columns4_of_8(p + 8 * stride, stride, a.hi, b.hi, c.hi, d.hi);
}

// Sums that a matrix product keeps in registers: rows, and vectors of 16 to each.
constexpr int kGemmRows = 6, kGemmLanes = 1;

// --- for matrix products -------------------------------------------------------------------------

constexpr int kRegisters = 16, kRegistersOfF = 2;

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

UDP_HD void transpose8(__m256& a, __m256& b, __m256& c, __m256& d, __m256& e, __m256& f, __m256& g,
                       __m256& h) {
    const __m256 ab_lo = _mm256_unpacklo_ps(a, b), ab_hi = _mm256_unpackhi_ps(a, b);
    const __m256 cd_lo = _mm256_unpacklo_ps(c, d), cd_hi = _mm256_unpackhi_ps(c, d);
    const __m256 ef_lo = _mm256_unpacklo_ps(e, f), ef_hi = _mm256_unpackhi_ps(e, f);
    const __m256 gh_lo = _mm256_unpacklo_ps(g, h), gh_hi = _mm256_unpackhi_ps(g, h);
    // Columns k and 4 + k of the first four rows, and of the last four.
    const __m256 first[4] = {
        _mm256_shuffle_ps(ab_lo, cd_lo, 0x44), _mm256_shuffle_ps(ab_lo, cd_lo, 0xee),
        _mm256_shuffle_ps(ab_hi, cd_hi, 0x44), _mm256_shuffle_ps(ab_hi, cd_hi, 0xee)};
    const __m256 last[4] = {
        _mm256_shuffle_ps(ef_lo, gh_lo, 0x44), _mm256_shuffle_ps(ef_lo, gh_lo, 0xee),
        _mm256_shuffle_ps(ef_hi, gh_hi, 0x44), _mm256_shuffle_ps(ef_hi, gh_hi, 0xee)};
    a = _mm256_permute2f128_ps(first[0], last[0], 0x20);
    b = _mm256_permute2f128_ps(first[1], last[1], 0x20);
    c = _mm256_permute2f128_ps(first[2], last[2], 0x20);
    d = _mm256_permute2f128_ps(first[3], last[3], 0x20);
    e = _mm256_permute2f128_ps(first[0], last[0], 0x31);
    f = _mm256_permute2f128_ps(first[1], last[1], 0x31);
    g = _mm256_permute2f128_ps(first[2], last[2], 0x31);
    h = _mm256_permute2f128_ps(first[3], last[3], 0x31);
}
UDP_HD void transpose16(F (&r)[16]) {
    for (int i = 0; i < 16; i += 8) {
        transpose8(r[i].lo, r[i + 1].lo, r[i + 2].lo, r[i + 3].lo, r[i + 4].lo, r[i + 5].lo,
                   r[i + 6].lo, r[i + 7].lo);
        transpose8(r[i].hi, r[i + 1].hi, r[i + 2].hi, r[i + 3].hi, r[i + 4].hi, r[i + 5].hi,
                   r[i + 6].hi, r[i + 7].hi);
    }
    for (int i = 0; i < 8; ++i) {
        const __m256 upper_right = r[i].hi;
        r[i].hi = r[8 + i].lo;
        r[8 + i].lo = upper_right;
    }
}

}  // namespace
}  // namespace UDP_ISA
}  // namespace udp
