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
        if constexpr (kExponent == 8) return from_word(static_cast<uint32_t>(bits) << 16);
        const int exponent = (bits >> kMantissa) & ((1 << kExponent) - 1);
        const int mantissa = bits & ((1 << kMantissa) - 1);
        float value;
        if (exponent == (1 << kExponent) - 1) {
            value = mantissa != 0 ? NAN : INFINITY;
        } else if (exponent == 0) {
            value = static_cast<float>(mantissa) * from_word((kLowest - kMantissa + 127) << 23);
        } else {
            value = from_word((exponent - 1 + kLowest + 127) << 23 | mantissa << (23 - kMantissa));
        }
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
    static constexpr int kLowest = 2 - (1 << (kExponent - 1));  // of a normal number's exponent

    static float from_word(uint32_t word) {
        float value;
        std::memcpy(&value, &word, sizeof value);
        return value;
    }

    static unsigned short round(float value) {
        const int sign = std::signbit(value) ? 0x8000 : 0;
        const int infinity = ((1 << kExponent) - 1) << kMantissa;
        const double magnitude = std::fabs(static_cast<double>(value));
        if (std::isnan(value)) return 0x7fff;
        if (magnitude == 0.0) return static_cast<unsigned short>(sign);
        if (std::isinf(value)) return static_cast<unsigned short>(sign | infinity);
        const int exponent = std::ilogb(magnitude) < kLowest ? kLowest : std::ilogb(magnitude);
        // With the leading one, which carries into the exponent's field by itself.
        const int mantissa =
            static_cast<int>(std::nearbyint(std::ldexp(magnitude, kMantissa - exponent)));
        const long long bits = (static_cast<long long>(exponent - kLowest) << kMantissa) + mantissa;
        return static_cast<unsigned short>(sign |
                                           (bits < infinity ? static_cast<int>(bits) : infinity));
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
