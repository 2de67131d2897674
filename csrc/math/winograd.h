// Winograd's minimal filtering F(4x4, 3x3): 36 multiplications for 16 results of a 3x3 convolution,
// where the definition takes 144 (Winograd 1980; Lavin & Gray 2016).
//
//     y = A^T [ (G g G^T) * (B^T d B) ] A        d: 6x6 values, g: 3x3 taps, y: 4x4 results
//
// That is exact in real numbers, whatever the five points at which two polynomials are multiplied
// (the sixth is infinity). In float32 the points matter: the customary 0, +-1, +-2 lose twice as
// many bits as 0, +-3/4, +-3/2, whose powers are short binary fractions, too.
//
// Each function is the transform along one axis, of as many columns as F has lanes. What it finds
// it gives to out(index, value): there is then no array, which a compiler would keep in memory
// until it has unrolled the loop over it.
#pragma once

#include "lanes.h"

namespace udp {

struct WinogradPoints {
    static constexpr double a = 0.75, b = 1.5, a2 = a * a, b2 = b * b;
};

template <class F>
UDP_HD F winograd_constant(double value) {
    return F(static_cast<float>(value));
}

// v = B^T d
template <class F, class Out>
UDP_HD void winograd_input(const F (&d)[6], Out out) {
    using P = WinogradPoints;
    const F product = winograd_constant<F>(P::a2 * P::b2);
    const F sum = winograd_constant<F>(-(P::a2 + P::b2));
    const F minus_a2 = winograd_constant<F>(-P::a2), minus_b2 = winograd_constant<F>(-P::b2);
    const F even_a = fma(minus_b2, d[2], d[4]);
    const F odd_a = winograd_constant<F>(P::a) * fma(minus_b2, d[1], d[3]);
    const F even_b = fma(minus_a2, d[2], d[4]);
    const F odd_b = winograd_constant<F>(P::b) * fma(minus_a2, d[1], d[3]);
    out(0, fma(product, d[0], fma(sum, d[2], d[4])));
    out(1, even_a + odd_a);
    out(2, even_a - odd_a);
    out(3, even_b + odd_b);
    out(4, even_b - odd_b);
    out(5, fma(product, d[1], fma(sum, d[3], d[5])));
}

// u = G g
template <class F, class Out>
UDP_HD void winograd_taps(const F (&g)[3], Out out) {
    using P = WinogradPoints;
    constexpr double na = 2 * P::a2 * (P::a2 - P::b2), nb = 2 * P::b2 * (P::b2 - P::a2);
    const F even_a =
        fma(winograd_constant<F>(P::a2 / na), g[2], winograd_constant<F>(1 / na) * g[0]);
    const F odd_a = winograd_constant<F>(P::a / na) * g[1];
    const F even_b =
        fma(winograd_constant<F>(P::b2 / nb), g[2], winograd_constant<F>(1 / nb) * g[0]);
    const F odd_b = winograd_constant<F>(P::b / nb) * g[1];
    out(0, winograd_constant<F>(1 / (P::a2 * P::b2)) * g[0]);
    out(1, even_a + odd_a);
    out(2, even_a - odd_a);
    out(3, even_b + odd_b);
    out(4, even_b - odd_b);
    out(5, g[2]);
}

// y = A^T m
template <class F, class Out>
UDP_HD void winograd_output(const F (&m)[6], Out out) {
    using P = WinogradPoints;
    const F sum_a = m[1] + m[2], difference_a = m[1] - m[2];
    const F sum_b = m[3] + m[4], difference_b = m[3] - m[4];
    out(0, m[0] + sum_a + sum_b);
    out(1,
        fma(winograd_constant<F>(P::a), difference_a, winograd_constant<F>(P::b) * difference_b));
    out(2, fma(winograd_constant<F>(P::a2), sum_a, winograd_constant<F>(P::b2) * sum_b));
    out(3, fma(winograd_constant<F>(P::a * P::a2), difference_a,
               fma(winograd_constant<F>(P::b * P::b2), difference_b, m[5])));
}

}  // namespace udp
