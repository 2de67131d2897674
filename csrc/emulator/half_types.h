// __half and __nv_bfloat16, their pairs and conversions. Arithmetic is done in float and rounded
// once: for + - * / of two 16-bit numbers that is the correctly rounded result.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "vector_types.h"

namespace udp::emulator {

// Sign, kExponent bits, kMantissa bits, as in IEEE 754. A NaN becomes 0x7fff, as on the GPU.
template <int kExponent, int kMantissa>
struct SmallFloat {
    unsigned short bits;

    SmallFloat() = default;
    SmallFloat(float value) : bits(round(value)) {}
    SmallFloat(double value) : SmallFloat(static_cast<float>(value)) {}
    SmallFloat(int value) : SmallFloat(static_cast<float>(value)) {}
    static SmallFloat from_bits(unsigned short bits) {
        SmallFloat value;
        value.bits = bits;
        return value;
    }

    operator float() const {
        const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fff) << kShift;
        float value;
        if (kExponent == 8)
            value = from_word(magnitude);
        else if (magnitude < kOne)  // subnormal: only the bits below the exponent count
            value = from_word(magnitude + kOffset + kOne) - from_word(kOffset + kOne);
        else if (magnitude < kSmallInfinity)
            value = from_word(magnitude + kOffset);
        else
            value = magnitude > kSmallInfinity ? NAN : INFINITY;
        return (bits & 0x8000) != 0 ? -value : value;
    }

    friend SmallFloat operator+(SmallFloat a, SmallFloat b) { return float(a) + float(b); }
    friend SmallFloat operator-(SmallFloat a, SmallFloat b) { return float(a) - float(b); }
    friend SmallFloat operator*(SmallFloat a, SmallFloat b) { return float(a) * float(b); }
    friend SmallFloat operator/(SmallFloat a, SmallFloat b) { return float(a) / float(b); }
    friend SmallFloat operator-(SmallFloat a) { return from_bits(a.bits ^ 0x8000); }
    friend bool operator<(SmallFloat a, SmallFloat b) { return float(a) < float(b); }
    friend bool operator>(SmallFloat a, SmallFloat b) { return float(a) > float(b); }
    friend bool operator<=(SmallFloat a, SmallFloat b) { return float(a) <= float(b); }
    friend bool operator>=(SmallFloat a, SmallFloat b) { return float(a) >= float(b); }
    friend bool operator==(SmallFloat a, SmallFloat b) { return float(a) == float(b); }
    friend bool operator!=(SmallFloat a, SmallFloat b) { return float(a) != float(b); }
    SmallFloat& operator+=(SmallFloat b) { return *this = *this + b; }
    SmallFloat& operator-=(SmallFloat b) { return *this = *this - b; }
    SmallFloat& operator*=(SmallFloat b) { return *this = *this * b; }

  private:
    // A float's word is that of the small one, shifted, but for the exponents' biases.
    static constexpr int kShift = 23 - kMantissa;
    static constexpr uint32_t kOne = 1u << 23;  // in the exponent's field of a float
    static constexpr uint32_t kOffset = (128u - (1u << (kExponent - 1))) * kOne;
    static constexpr uint32_t kSmallInfinity = ((1u << kExponent) - 1) * kOne;
    static constexpr uint32_t kInfinity = 0x7f800000;

    static float from_word(uint32_t word) {
        float value;
        std::memcpy(&value, &word, sizeof value);
        return value;
    }
    static uint32_t to_word(float value) {
        uint32_t word;
        std::memcpy(&word, &value, sizeof word);
        return word;
    }

    // To nearest, ties to even.
    static unsigned short round(float value) {
        const uint32_t word = to_word(value), sign = word >> 16 & 0x8000,
                       magnitude = word ^ sign << 16;
        uint32_t rounded;
        if (magnitude > kInfinity) return 0x7fff;
        if (kExponent != 8 && magnitude < kOffset + kOne) {
            // Subnormal: a number is added in whose binade a unit is the smallest of them.
            const uint32_t large = kOffset + (1u + static_cast<uint32_t>(kShift)) * kOne;
            rounded = to_word(from_word(magnitude) + from_word(large)) - large;
        } else {
            // (A mantissa's carry reaches infinity by itself.)
            const uint32_t scaled =
                magnitude - kOffset < kSmallInfinity ? magnitude - kOffset : kSmallInfinity;
            rounded = (scaled + (kOne >> (kMantissa + 1)) - 1 + (scaled >> kShift & 1)) >> kShift;
        }
        return static_cast<unsigned short>(sign | rounded);
    }
};

template <class Half>
struct alignas(4) Pair {
    Half x, y;
    Pair() = default;
    Pair(Half x, Half y) : x(x), y(y) {}
    friend Pair operator+(Pair a, Pair b) { return {a.x + b.x, a.y + b.y}; }
    friend Pair operator-(Pair a, Pair b) { return {a.x - b.x, a.y - b.y}; }
    friend Pair operator*(Pair a, Pair b) { return {a.x * b.x, a.y * b.y}; }
};

}  // namespace udp::emulator

using __half = udp::emulator::SmallFloat<5, 10>;
using __nv_bfloat16 = udp::emulator::SmallFloat<8, 7>;
using __half2 = udp::emulator::Pair<__half>;
using __nv_bfloat162 = udp::emulator::Pair<__nv_bfloat16>;
using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline __half __float2half(float a) {
    return a;
}
inline __half __float2half_rn(float a) {
    return a;
}
inline float __half2float(__half a) {
    return a;
}
inline unsigned short __half_as_ushort(__half a) {
    return a.bits;
}
inline __half __ushort_as_half(unsigned short a) {
    return __half::from_bits(a);
}
inline __half2 __floats2half2_rn(float a, float b) {
    return {a, b};
}
inline __half2 __float22half2_rn(float2 a) {
    return {a.x, a.y};
}
inline __half2 __float2half2_rn(float a) {
    return {a, a};
}
inline float2 __half22float2(__half2 a) {
    return {a.x, a.y};
}
inline __half2 __halves2half2(__half a, __half b) {
    return {a, b};
}
inline __half __low2half(__half2 a) {
    return a.x;
}
inline __half __high2half(__half2 a) {
    return a.y;
}

inline __nv_bfloat16 __float2bfloat16(float a) {
    return a;
}
inline __nv_bfloat16 __float2bfloat16_rn(float a) {
    return a;
}
inline float __bfloat162float(__nv_bfloat16 a) {
    return a;
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 a) {
    return a.bits;
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short a) {
    return __nv_bfloat16::from_bits(a);
}
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) {
    return {a, b};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 a) {
    return {a.x, a.y};
}
inline __nv_bfloat162 __float2bfloat162_rn(float a) {
    return {a, a};
}
inline float2 __bfloat1622float2(__nv_bfloat162 a) {
    return {a.x, a.y};
}
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) {
    return {a, b};
}
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 a) {
    return a.x;
}
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 a) {
    return a.y;
}

template <class Half>
float __low2float(udp::emulator::Pair<Half> a) {
    return a.x;
}
template <class Half>
float __high2float(udp::emulator::Pair<Half> a) {
    return a.y;
}
