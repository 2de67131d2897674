// geglu for one element, and the normal distribution's function and density, of which it is made.
#pragma once

#include "exp.h"

namespace udp {

// cdf = P(a standard normal < g), density = exp(-g^2 / 2) / sqrt(2 pi). cdf is within 4.8e-7 of
// itself for g >= -1; below that the rounding of g^2 counts, 2e-6 down to -6 and 4e-6 down to -9. A
// NaN stays one.
//
// With s = |g|, P(< -s) = exp(-s^2 / 2) Q(s), where Q is smooth, falls like 1 / s and is a
// polynomial in t = 1 / (1 + 0.3 s): minimax in relative error, 1.5e-7, for s <= 14.
template <class F, class U>
UDP_HD void normal_distribution(F g, F& cdf, F& density) {
    const F s = abs(g);
    const F e = exp2_or_zero<F, U>(s * s * F(-0.5f * kLog2E));
    const F t = reciprocal_roughly(fma(F(0.3f), s, F(1.0f)));
    F q(0.0356759781962f);
    q = fma(q, t, F(-0.157208098546f));
    q = fma(q, t, F(0.206362142409f));
    q = fma(q, t, F(-0.0536915799296f));
    q = fma(q, t, F(0.128565812849f));
    q = fma(q, t, F(0.0999122293367f));
    q = fma(q, t, F(0.120754157025f));
    q = fma(q, t, F(0.119629285837f));
    const F tail = e * (q * t);
    cdf = select(g < F(0.0f), tail, F(1.0f) - tail);
    density = e * F(0.398942280401f);
}

// value * gelu(gate)
template <class F, class U>
UDP_HD F gated(F value, F gate) {
    F cdf, density;
    normal_distribution<F, U>(gate, cdf, density);
    return value * (gate * cdf);
}

// Its gradient, times `grad`.
template <class F, class U>
UDP_HD void gated_slopes(F grad, F value, F gate, F& d_value, F& d_gate) {
    F cdf, density;
    normal_distribution<F, U>(gate, cdf, density);
    d_value = grad * (gate * cdf);
    d_gate = grad * value * fma(gate, density, cdf);
}

}  // namespace udp
