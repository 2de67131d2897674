// One element of a group norm with SiLU, and of its gradient.
#pragma once

#include "lanes.h"

namespace udp {

// 2^(k / 8), less what k << 20 adds to its bits.
constexpr uint32_t kEighths[8] = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                                  0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};

// e^-u. From |u| = 87 on it stays at its values there, 6e37 and 1.6e-38, so neither it nor
// 1 / (1 + e^-u) leaves the normal numbers. A NaN passes through.
template <class F, class U>
UDP_HD F exp_of_negative(F u) {
    const F v = at_most(at_least(u, F(-87.0f)), F(87.0f));
    // e^-v = 2^(n / 8) e^-r, n the integer next to -8 v / ln 2, which the shift leaves in the low
    // bits: the last three choose an eighth, those before them are the exponent.
    const F shift(0x1.8p23f);
    const F shifted = fma(v, F(-8 * 1.44269504088896f), shift);
    const F r = fma(shifted - shift, F(0.693147180559945f / 8), v);
    // Minimax for e^-r in relative error, 2.6e-8, on |r| <= ln 2 / 16, its value at zero held.
    F p(-0.16666923463344574f);
    p = fma(p, r, F(0.5000645518302917f));
    p = fma(p, r, F(-1.0f));
    p = fma(p, r, F(1.0f));
    const U n = as_uint(shifted);
    return p * as_float((n << 20) + lookup8(kEighths, n));
}

// u / (1 + e^-u), within 4 units in the last place for |u| <= 16 and 7 beyond.
template <class F, class U>
UDP_HD F silu(F u) {
    return u / (F(1.0f) + exp_of_negative<F, U>(u));
}
// Its slope: s (1 + u (1 - s)) with s = 1 / (1 + e^-u)
template <class F, class U>
UDP_HD F silu_slope(F u) {
    const F s = reciprocal(F(1.0f) + exp_of_negative<F, U>(u));
    return s * fma(u, F(1.0f) - s, F(1.0f));
}

// u from x's distance to its group's mean; scale = rstd * weight of the channel. Not x * scale + b:
// of a mean far from zero that would leave the difference of two large numbers.
template <class F>
UDP_HD F normalised(F distance, F scale, F bias) {
    return fma(distance, scale, bias);
}

// dx from h = dL/du. With S = the sum over the group and M = its elements,
//   pull = S(scale h) / M,  tilt = rstd^2 S(scale h distance) / M
// The product is rounded before the subtraction, as in the sum: alone in its group it leaves zero.
template <class F>
UDP_HD F group_norm_dx(F h, F distance, F scale, F pull, F tilt) {
    return fma(distance, F(0.0f) - tilt, h * scale - pull);
}

}  // namespace udp
