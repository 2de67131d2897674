// The AVX-512 intrinsics that csrc/cpu/simd_avx512.h uses, lane by lane in plain C++ after Intel's
// descriptions of them, so that the AVX-512 kernels can be run on any x86-64 processor with AVX2.
// Stands in for <immintrin.h>'s 512-bit part; the names are macros, since the header has its own.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulated {

template <class T, int N>
struct Vector {
    T v[N];
};
using Floats = Vector<float, 16>;
using Doubles = Vector<double, 8>;
using Words = Vector<uint32_t, 16>;

template <class To, class From>
To bits(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "a cast keeps the size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
template <class To>
To load(const void* p) {
    To to;
    memcpy(&to, p, sizeof to);
    return to;
}
// One result lane from lane i of each argument.
template <class R, class Op>
R each(Op op) {
    R r;
    for (unsigned i = 0; i < sizeof(R) / sizeof(r.v[0]); ++i) r.v[i] = op(i);
    return r;
}
using Quads = Vector<uint64_t, 8>;
inline Quads quads(const Words& a) {
    return bits<Quads>(a);
}
inline Words words(const Quads& a) {
    return bits<Words>(a);
}

inline float rounded(float a, int mode) {
    return (mode & 3) == _MM_FROUND_TO_NEG_INF ? std::floor(a) : std::nearbyint(a);
}
inline bool compare(float a, float b, int how) {
    if (how == _CMP_LT_OQ) return a < b;
    if (how == _CMP_LE_OQ) return a <= b;
    if (how == _CMP_ORD_Q) return a == a && b == b;
    if (how == _CMP_UNORD_Q) return a != a || b != b;
    return a != b;  // _CMP_NEQ_UQ
}
// Bits of `classes`: 0 and 7 quiet and signalling NaN, 1 and 2 zeros, 3 and 4 infinities.
inline bool is_of_class(float a, int classes) {
    if (a != a) return (classes & 0x81) != 0;
    if (a == 0.0f) return (classes & (std::signbit(a) ? 0x04 : 0x02)) != 0;
    return std::isinf(a) && (classes & (a < 0.0f ? 0x10 : 0x08)) != 0;
}
// Of each 128-bit quarter: lanes 0 and 1, or 2 and 3, of a and b in turn.
inline Floats unpack(const Floats& a, const Floats& b, unsigned first) {
    return each<Floats>([&](unsigned i) {
        const unsigned lane = i / 4 * 4 + first + i % 4 / 2;
        return i % 2 == 0 ? a.v[lane] : b.v[lane];
    });
}

}  // namespace emulated

#define __m512 emulated::Floats
#define __m512i emulated::Words
#define __m512d emulated::Doubles
#define E_FLOATS(...) emulated::each<emulated::Floats>([=](unsigned i) { return __VA_ARGS__; })
#define E_WORDS(...) \
    emulated::each<emulated::Words>([=](unsigned i) -> uint32_t { return __VA_ARGS__; })
#define E_QUADS(...) \
    emulated::words( \
        emulated::each<emulated::Quads>([=](unsigned i) -> uint64_t { return __VA_ARGS__; }))

namespace emulated {

inline Floats set1_ps(float a) {
    return E_FLOATS(((void)i, a));
}
inline Words set1_epi32(int a) {
    return E_WORDS(((void)i, static_cast<uint32_t>(a)));
}
inline Words setr_epi64(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f,
                        uint64_t g, uint64_t h) {
    return words(Quads{{a, b, c, d, e, f, g, h}});
}
inline Floats add_ps(Floats a, Floats b) {
    return E_FLOATS(a.v[i] + b.v[i]);
}
inline Floats sub_ps(Floats a, Floats b) {
    return E_FLOATS(a.v[i] - b.v[i]);
}
inline Floats mul_ps(Floats a, Floats b) {
    return E_FLOATS(a.v[i] * b.v[i]);
}
inline Floats div_ps(Floats a, Floats b) {
    return E_FLOATS(a.v[i] / b.v[i]);
}
inline Floats fmadd_ps(Floats a, Floats b, Floats c) {
    return E_FLOATS(std::fma(a.v[i], b.v[i], c.v[i]));
}
// The second operand where they are equal or either is a NaN.
inline Floats min_ps(Floats a, Floats b) {
    return E_FLOATS(a.v[i] < b.v[i] ? a.v[i] : b.v[i]);
}
inline Floats max_ps(Floats a, Floats b) {
    return E_FLOATS(a.v[i] > b.v[i] ? a.v[i] : b.v[i]);
}
inline Floats sqrt_ps(Floats a) {
    return E_FLOATS(std::sqrt(a.v[i]));
}
inline Floats roundscale_ps(Floats a, int mode) {
    return E_FLOATS(rounded(a.v[i], mode));
}
inline Words add_epi32(Words a, Words b) {
    return E_WORDS(a.v[i] + b.v[i]);
}
inline Words sub_epi32(Words a, Words b) {
    return E_WORDS(a.v[i] - b.v[i]);
}
inline Words and_si512(Words a, Words b) {
    return E_WORDS(a.v[i] & b.v[i]);
}
inline Words or_si512(Words a, Words b) {
    return E_WORDS(a.v[i] | b.v[i]);
}
inline Words xor_si512(Words a, Words b) {
    return E_WORDS(a.v[i] ^ b.v[i]);
}
inline Words slli_epi32(Words a, unsigned n) {
    return E_WORDS(a.v[i] << n);
}
inline Words srli_epi32(Words a, unsigned n) {
    return E_WORDS(a.v[i] >> n);
}
inline Words srli_epi64(Words a, unsigned n) {
    return E_QUADS(quads(a).v[i] >> n);
}
inline Words add_epi64(Words a, Words b) {
    return E_QUADS(quads(a).v[i] + quads(b).v[i]);
}
inline Words mul_epu32(Words a, Words b) {
    return E_QUADS((quads(a).v[i] & 0xffffffffu) * (quads(b).v[i] & 0xffffffffu));
}
inline __mmask16 cmp_ps_mask(Floats a, Floats b, int how) {
    unsigned mask = 0;
    for (unsigned i = 0; i < 16; ++i) mask |= unsigned{compare(a.v[i], b.v[i], how)} << i;
    return static_cast<__mmask16>(mask);
}
inline __mmask16 fpclass_ps_mask(Floats a, int classes) {
    unsigned mask = 0;
    for (unsigned i = 0; i < 16; ++i) mask |= unsigned{is_of_class(a.v[i], classes)} << i;
    return static_cast<__mmask16>(mask);
}
inline __mmask16 test_epi32_mask(Words a, Words b) {
    unsigned mask = 0;
    for (unsigned i = 0; i < 16; ++i) mask |= unsigned{(a.v[i] & b.v[i]) != 0} << i;
    return static_cast<__mmask16>(mask);
}
inline Words mask_add_epi32(Words otherwise, __mmask16 m, Words a, Words b) {
    return E_WORDS((m >> i & 1) != 0 ? a.v[i] + b.v[i] : otherwise.v[i]);
}
// Bit by bit: a, b and c are the bits of an index into the eight bits of `table`.
inline Words maskz_ternarylogic_epi32(__mmask16 m, Words a, Words b, Words c, int table) {
    return E_WORDS([&] {
        uint32_t r = 0;
        for (int bit = 0; bit < 32 && (m >> i & 1) != 0; ++bit) {
            const uint32_t index =
                (a.v[i] >> bit & 1) << 2 | (b.v[i] >> bit & 1) << 1 | (c.v[i] >> bit & 1);
            r |= (static_cast<uint32_t>(table) >> index & 1) << bit;
        }
        return r;
    }());
}
inline __mmask16 movepi32_mask(Words a) {
    unsigned mask = 0;
    for (unsigned i = 0; i < 16; ++i) mask |= (a.v[i] >> 31) << i;
    return static_cast<__mmask16>(mask);
}
inline Floats mask_blend_ps(__mmask16 m, Floats a, Floats b) {
    return E_FLOATS((m >> i & 1) != 0 ? b.v[i] : a.v[i]);
}
inline Words mask_blend_epi32(__mmask16 m, Words a, Words b) {
    return E_WORDS((m >> i & 1) != 0 ? b.v[i] : a.v[i]);
}
inline Floats maskz_mov_ps(__mmask16 m, Floats a) {
    return E_FLOATS((m >> i & 1) != 0 ? a.v[i] : 0.0f);
}
inline Floats cvtepi32_ps(Words a) {
    return E_FLOATS(static_cast<float>(static_cast<int32_t>(a.v[i])));
}
inline Words cvtps_epi32(Floats a) {
    return E_WORDS(static_cast<uint32_t>(static_cast<int32_t>(std::nearbyint(a.v[i]))));
}
inline Words cvtepu16_epi32(__m256i a) {
    const auto half = bits<Vector<uint16_t, 16>>(a);
    return E_WORDS(half.v[i]);
}
inline Words cvtepu8_epi32(__m128i a) {
    const auto byte = bits<Vector<uint8_t, 16>>(a);
    return E_WORDS(byte.v[i]);
}
inline Words castsi256_si512(__m256i a) {
    return bits<Words>(Vector<__m256i, 2>{{a, _mm256_undefined_si256()}});
}
inline __m256i castsi512_si256(Words a) {
    return bits<Vector<__m256i, 2>>(a).v[0];
}
inline Words permutexvar_epi16(Words index, Words a) {
    const auto from = bits<Vector<uint16_t, 32>>(a), at = bits<Vector<uint16_t, 32>>(index);
    return bits<Words>(
        each<Vector<uint16_t, 32>>([=](unsigned i) { return from.v[at.v[i] & 31]; }));
}
inline Words permutex2var_epi16(Words a, Words index, Words b) {
    const auto low = bits<Vector<uint16_t, 32>>(a), high = bits<Vector<uint16_t, 32>>(b);
    const auto at = bits<Vector<uint16_t, 32>>(index);
    return bits<Words>(each<Vector<uint16_t, 32>>(
        [=](unsigned i) { return (at.v[i] & 32 ? high : low).v[at.v[i] & 31]; }));
}
// Intel's argument order: the last lane first.
template <class... Lanes>
Words set_epi16(Lanes... lanes) {
    static_assert(sizeof...(lanes) == 32, "a register of them");
    const short last_first[] = {static_cast<short>(lanes)...};
    return bits<Words>(each<Vector<short, 32>>([&](unsigned i) { return last_first[31 - i]; }));
}
inline __m128i cvtepi32_epi8(Words a) {
    return bits<__m128i>(each<Vector<uint8_t, 16>>([=](unsigned i) { return a.v[i]; }));
}
struct Halves {
    __m128i lo, hi;
};
inline Floats cvtph_ps(__m256i a) {
    const Halves h = bits<Halves>(a);
    const Vector<__m256, 2> r = {{_mm256_cvtph_ps(h.lo), _mm256_cvtph_ps(h.hi)}};
    return bits<Floats>(r);
}
inline __m256i cvtps_ph(Floats a) {
    const auto r = bits<Vector<__m256, 2>>(a);
    return bits<__m256i>(Halves{_mm256_cvtps_ph(r.v[0], _MM_FROUND_TO_NEAREST_INT),
                                _mm256_cvtps_ph(r.v[1], _MM_FROUND_TO_NEAREST_INT)});
}
inline __m256 half_of(Floats a, int which) {
    return bits<Vector<__m256, 2>>(a).v[which];
}
inline Doubles cvtps_pd(__m256 a) {
    const auto f = bits<Vector<float, 8>>(a);
    return each<Doubles>([=](unsigned i) { return static_cast<double>(f.v[i]); });
}
inline Doubles fmadd_pd(Doubles a, Doubles b, Doubles c) {
    return each<Doubles>([=](unsigned i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
inline Words broadcast_i64x4(__m256i a) {
    return bits<Words>(Vector<__m256i, 2>{{a, a}});
}
inline Words permutexvar_epi32(Words index, Words a) {
    return each<Words>([=](unsigned i) { return a.v[index.v[i] % 16]; });
}
// Four lanes in place of those from 4 * quarter on.
inline Floats insertf32x4(Floats a, __m128 b, int quarter) {
    memcpy(a.v + 4 * quarter, &b, sizeof b);
    return a;
}
inline Floats castps128_ps512(__m128 a) {
    return insertf32x4(Floats{}, a, 0);
}
// Quarters: two of a, then two of b.
inline Floats shuffle_f32x4(Floats a, Floats b, unsigned how) {
    return each<Floats>([=](unsigned i) {
        const unsigned lane = (how >> (i / 4 * 2) & 3) * 4 + i % 4;
        return i < 8 ? a.v[lane] : b.v[lane];
    });
}
inline Floats shuffle_ps(Floats a, Floats b, unsigned how) {
    return each<Floats>([=](unsigned i) {
        const unsigned lane = i / 4 * 4 + (how >> (i % 4 * 2) & 3);
        return i % 4 < 2 ? a.v[lane] : b.v[lane];
    });
}

}  // namespace emulated

#undef _mm512_setr_epi64
#undef _mm512_fpclass_ps_mask
#define _mm512_set1_ps emulated::set1_ps
#define _mm512_set1_epi32 emulated::set1_epi32
#define _mm512_setr_epi64 emulated::setr_epi64
#define _mm512_setzero_pd() \
    emulated::Doubles {}
#define _mm512_add_ps emulated::add_ps
#define _mm512_sub_ps emulated::sub_ps
#define _mm512_mul_ps emulated::mul_ps
#define _mm512_div_ps emulated::div_ps
#define _mm512_fmadd_ps emulated::fmadd_ps
#define _mm512_min_ps emulated::min_ps
#define _mm512_max_ps emulated::max_ps
#define _mm512_sqrt_ps emulated::sqrt_ps
#define _mm512_roundscale_ps emulated::roundscale_ps
#define _mm512_add_epi32 emulated::add_epi32
#define _mm512_sub_epi32 emulated::sub_epi32
#define _mm512_and_si512 emulated::and_si512
#define _mm512_or_si512 emulated::or_si512
#define _mm512_xor_si512 emulated::xor_si512
#define _mm512_slli_epi32 emulated::slli_epi32
#define _mm512_srli_epi32 emulated::srli_epi32
#define _mm512_srli_epi64 emulated::srli_epi64
#define _mm512_add_epi64 emulated::add_epi64
#define _mm512_mul_epu32 emulated::mul_epu32
#define _mm512_cmp_ps_mask emulated::cmp_ps_mask
#define _mm512_fpclass_ps_mask emulated::fpclass_ps_mask
#define _mm512_test_epi32_mask emulated::test_epi32_mask
#define _mm512_mask_add_epi32 emulated::mask_add_epi32
#define _mm512_maskz_ternarylogic_epi32 emulated::maskz_ternarylogic_epi32
#define _mm512_movepi32_mask emulated::movepi32_mask
#define _mm512_mask_blend_ps emulated::mask_blend_ps
#define _mm512_mask_blend_epi32 emulated::mask_blend_epi32
#define _mm512_maskz_mov_ps emulated::maskz_mov_ps
#define _mm512_castps_si512 emulated::bits<emulated::Words>
#define _mm512_castsi512_ps emulated::bits<emulated::Floats>
#define _mm512_cvtepi32_ps emulated::cvtepi32_ps
#define _mm512_cvtps_epi32 emulated::cvtps_epi32
#define _mm512_cvtepu16_epi32 emulated::cvtepu16_epi32
#define _mm512_cvtepu8_epi32 emulated::cvtepu8_epi32
#define _mm512_castsi256_si512 emulated::castsi256_si512
#define _mm512_castsi512_si256 emulated::castsi512_si256
#define _mm512_permutexvar_epi16 emulated::permutexvar_epi16
#define _mm512_permutex2var_epi16 emulated::permutex2var_epi16
#define _mm512_set_epi16 emulated::set_epi16
#define _mm512_cvtepi32_epi8 emulated::cvtepi32_epi8
#define _mm512_cvtph_ps emulated::cvtph_ps
#define _mm512_cvtps_ph(a, mode) emulated::cvtps_ph(a)
#define _mm512_castps512_ps256(a) emulated::half_of(a, 0)
#define _mm512_extractf32x8_ps emulated::half_of
#define _mm512_cvtps_pd emulated::cvtps_pd
#define _mm512_fmadd_pd emulated::fmadd_pd
#define _mm512_broadcast_i64x4 emulated::broadcast_i64x4
#define _mm512_permutexvar_epi32 emulated::permutexvar_epi32
#define _mm512_unpacklo_ps(a, b) emulated::unpack(a, b, 0)
#define _mm512_unpackhi_ps(a, b) emulated::unpack(a, b, 2)
#define _mm512_shuffle_ps emulated::shuffle_ps
#define _mm512_insertf32x4 emulated::insertf32x4
#define _mm512_castps128_ps512 emulated::castps128_ps512
#define _mm512_shuffle_f32x4 emulated::shuffle_f32x4
#define _mm512_loadu_ps emulated::load<emulated::Floats>
#define _mm512_storeu_ps(p, a) memcpy(p, (a).v, 64)
#define _mm512_storeu_pd(p, a) memcpy(p, (a).v, 64)
#define _mm512_storeu_si512(p, a) memcpy(p, (a).v, 64)
#define _mm512_stream_si512(p, a) memcpy(p, (a).v, 64)
#define _mm512_stream_ps(p, a) memcpy(p, (a).v, 64)
