// 2^x, by a polynomial like the functions of normal.h, so that every instruction set gives equal
// bits.
#pragma once

#include "lanes.h"

namespace udp {

constexpr float kLog2E = 1.44269504088896f, kLn2 = 0.693147180559945f;

// 2^x for x <= 127, 0 below -126; a NaN stays one. Relative error < 1.3e-7.
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

}  // namespace udp
