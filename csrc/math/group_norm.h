// One element of a group norm with SiLU, and of its gradient.
#pragma once

#include "lanes.h"

namespace udp {

template <class F>
struct Sigmoid {
    F value;  // 1 / (1 + e^-u)
    F rest;   // 1 - value, without its cancellation
};

// Within 2 units in the last place of the exact ones for |u| <= 16, 5 beyond; from |u| = 87 on both
// stay at their values there, 1 and 1.6e-38, so neither the power nor a quotient leaves the normal
// numbers. A NaN passes through.
template <class F, class U>
UDP_HD Sigmoid<F> sigmoid(F u) {
    const F v = at_most(at_least(u, F(-87.0f)), F(87.0f));
    // e^-v = 2^n e^-r, n the integer next to -v / ln 2, which the shift leaves in the low bits.
    const F shift(0x1.8p23f);
    const F shifted = fma(v, F(-1.44269504088896f), shift);
    const F r = fma(shifted - shift, F(0.693147180559945f), v);
    // Minimax for e^-r in relative error, 3.1e-9, on |r| <= ln 2 / 2, the first two terms held.
    F p(0.0013814540579915f);
    p = fma(p, r, F(-0.0083687454462051f));
    p = fma(p, r, F(0.0416683889925480f));
    p = fma(p, r, F(-0.1666652113199234f));
    p = fma(p, r, F(0.4999999403953552f));
    p = fma(p, r, F(-1.0f));
    p = fma(p, r, F(1.0f));
    const F e = p * as_float((as_uint(shifted) << 23) + U(0x3f800000u));
    const F value = reciprocal_nearly(F(1.0f) + e);
    return {value, e * value};
}

// u sigmoid(u)
template <class F, class U>
UDP_HD F silu(F u) {
    return u * sigmoid<F, U>(u).value;
}
// Its slope: sigmoid(u) (1 + u (1 - sigmoid(u)))
template <class F>
UDP_HD F silu_slope(F u, Sigmoid<F> s) {
    return s.value * fma(u, s.rest, F(1.0f));
}
template <class F, class U>
UDP_HD F silu_slope(F u) {
    return silu_slope(u, sigmoid<F, U>(u));
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
