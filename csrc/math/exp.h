// 2^x, by a polynomial like the functions of normal.h, so that every instruction set of a CPU gives
// equal bits. Who can brings its factor log2 e into numbers that it multiplies by anyway;
// exp_of_negative in group_norm.h, whose argument comes unscaled and up to 87, takes powers of e,
// since a product with log2 e would round away some twenty units in the last place of the result.
#pragma once

#include "lanes.h"

namespace udp {

constexpr float kLog2E = 1.44269504088896f, kLn2 = 0.693147180559945f;

// 2^x for x <= 127, 0 below -126; a NaN stays one. Relative error < 8e-8, tried for 4 * 10^7 x.
template <class F, class U>
UDP_HD F exp2_or_zero(F x) {
    // x = n + f with |f| <= 1/2. The sum's last place is 1, so it is rounded to n + 127, which its
    // low bits then hold: the exponent field of 2^n.
    const F sum = x + F(0x1.8p23f + 127.0f);
    const F f = x - (sum - F(0x1.8p23f + 127.0f));
    // Minimax in relative error, 2e-9; its constant, 1 + 5e-10, rounds to 1.
    F p(0.000153458119456f);
    p = fma(p, f, F(0.00133999312187f));
    p = fma(p, f, F(0.00961848895731f));
    p = fma(p, f, F(0.0555032877697f));
    p = fma(p, f, F(0.240226468906f));
    p = fma(p, f, F(0.693147205737f));
    p = fma(p, f, F(1.0f));
    const F power = as_float(as_uint(sum) << 23);
    return select(x < F(-126.0f), F(0.0f), p * power);
}
#if defined(__CUDA_ARCH__)
// The GPU has an instruction for it, which is off by at most 2^-22 of itself (PTX ISA, ex2).
template <>
UDP_HD float exp2_or_zero<float, uint32_t>(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

}  // namespace udp
