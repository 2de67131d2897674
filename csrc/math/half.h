// float32 to and from 16-bit floats on bits, round to nearest even: for processors without the
// instruction, and where an instruction set lacks one format.
#pragma once

#include "lanes.h"

namespace udp {

struct Float16 {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

// U: 32-bit words holding 16-bit values. A NaN becomes the quiet NaN 0x7fc0, as in torch.
template <class F, class U>
UDP_HD U bfloat16_bits(F value) {
    const U bits = as_uint(value);
    const U rounded = bits + U(0x7fffu) + ((bits >> 16) & U(1u));
    return select(value <= value, rounded, U(0x7fc00000u)) >> 16;
}
template <class F, class U>
UDP_HD F from_bfloat16_bits(U half) {
    return as_float(half << 16);
}

template <class F, class U>
UDP_HD U float16_bits(F value) {
    const U sign = (as_uint(value) >> 16) & U(0x8000u);
    const U magnitude = as_uint(value) & U(0x7fffffffu);
    // Below 2^-14 the result is subnormal, a multiple of 2^-24: adding 1/2, whose last place is
    // 2^-24, makes the float adder round it.
    const U subnormal = as_uint(as_float(magnitude) + F(0.5f)) - U(0x3f000000u);
    const U normal = (magnitude - U(0x38000000u) + U(0x0fffu) + ((magnitude >> 13) & U(1u))) >> 13;
    const U nan = U(0x7e00u) | ((magnitude >> 13) & U(0x3ffu));
    U half = select(as_float(magnitude) < F(0x1p-14f), subnormal, normal);
    half = select(as_float(magnitude) < F(65520.0f), half, U(0x7c00u));
    return sign | select(value <= value, half, nan);
}
template <class F, class U>
UDP_HD F from_float16_bits(U half) {
    const U sign = (half & U(0x8000u)) << 16;
    const U magnitude = (half & U(0x7fffu)) << 13;
    // A float16's bits read as a float32 are 2^-112 times its value; the product is exact,
    // subnormals included. Infinities and NaNs need the float32 exponent of all ones.
    const F scaled = as_float(magnitude) * F(0x1p112f);
    const U special = magnitude | U(0x7f800000u);
    return as_float(sign | select(scaled < F(65536.0f), as_uint(scaled), special));
}

// The largest value of the format that is <= bound (bound >= 0, finite).
UDP_HD float float16_at_most(float bound) {
    if (bound >= 65504.0f) return 65504.0f;
    const uint32_t nearest = float16_bits<float, uint32_t>(bound);
    const float value = from_float16_bits<float, uint32_t>(nearest);
    return value <= bound ? value : from_float16_bits<float, uint32_t>(nearest - 1u);
}
// Not by clearing the low bits: g++ 12.2 at -O2 drops that mask (its RTL combiner; bound comes
// back).
UDP_HD float bfloat16_at_most(float bound) {
    const uint32_t nearest = bfloat16_bits<float, uint32_t>(bound);
    const float value = from_bfloat16_bits<float, uint32_t>(nearest);
    return value <= bound ? value : from_bfloat16_bits<float, uint32_t>(nearest - 1u);
}

}  // namespace udp
