// One element of a group norm with SiLU, and of its gradient.
#pragma once

#include "lanes.h"

namespace udp {

// 1 / (1 + e^-u), within 4 units in the last place for |u| <= 16 and 7 beyond. From |u| = 87 on it
// stays at its values there, 1 and 1.6e-38, so neither the power nor the quotient leaves the normal
// numbers. A NaN passes through.
template <class F, class U>
UDP_HD F sigmoid(F u) {
    const F v = at_most(at_least(u, F(-87.0f)), F(87.0f));
    // e^-v = 2^n e^-r, n the integer next to -v / ln 2, which the shift leaves in the low bits.
    const F shift(0x1.8p23f);
    const F shifted = fma(v, F(-1.44269504088896f), shift);
    const F r = fma(shifted - shift, F(0.693147180559945f), v);
    // Minimax for e^-r in relative error, 9.2e-8, on |r| <= ln 2 / 2, its value at zero held.
    F p(-0.00829027220606804f);
    p = fma(p, r, F(0.0418981611728668f));
    p = fma(p, r, F(-0.166676387190819f));
    p = fma(p, r, F(0.499991476535797f));
    p = fma(p, r, F(-0.999999701976776f));
    p = fma(p, r, F(1.0f));
    const F e = p * as_float((as_uint(shifted) << 23) + U(0x3f800000u));
    return reciprocal_nearly(F(1.0f) + e);
}

// u sigmoid(u)
template <class F, class U>
UDP_HD F silu(F u) {
    return u * sigmoid<F, U>(u);
}
// Its slope: sigmoid(u) (1 + u (1 - sigmoid(u)))
template <class F, class U>
UDP_HD F silu_slope(F u) {
    const F s = sigmoid<F, U>(u);
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
