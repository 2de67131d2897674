// Random words to uniforms and, by Box and Muller's method, to normals. Polynomials instead of a
// math library: every instruction set and the GPU then agree, and a vector of lanes costs the same.
#pragma once

#include "lanes.h"

namespace udp {

// [0, 1): a multiple of 2^-24.
template <class F, class U>
UDP_HD F uniform(U word) {
    return to_float(word >> 8) * F(0x1p-24f);
}

// -2 ln u for u in [2^-24, 1). Its root is within 3.5e-7 of the exact one, tried for every u below.
template <class F, class U>
UDP_HD F minus_two_log(F u) {
    // u = 2^e * m with m in [sqrt(1/2), sqrt(2)): 0x3f3504f3 is sqrt(1/2), and what remains above
    // the mantissa field is e * 2^23.
    const U bits = as_uint(u);
    const U exponent = (bits - U(0x3f3504f3u)) & U(0xff800000u);
    const F f = as_float(bits - exponent) - F(1.0f);
    // Minimax for -2 ln(1 + f) / f in relative error, 1.7e-7, on [sqrt(1/2) - 1, sqrt(2) - 1].
    F p(0.202138032287f);
    p = fma(p, f, F(-0.324451666355f));
    p = fma(p, f, F(0.34501658482f));
    p = fma(p, f, F(-0.398003305356f));
    p = fma(p, f, F(0.499398181503f));
    p = fma(p, f, F(-0.666701178814f));
    p = fma(p, f, F(1.00000730246f));
    p = fma(p, f, F(-1.99999989062f));
    return fma(to_float(exponent), F(-1.38629436112f * 0x1p-23f), p * f);  // -2 ln 2
}

// Two independent standard normals from two words, a and b. |normal| < 5.8 and the absolute error
// is < 9.5e-7: the worst of all 2^23 radii plus the worst of all 2^23 angles at the largest radius.
//   u   = ((a >> 9) + 1/2) 2^-23 in (0, 1),  rho = sqrt(-2 ln u), negated where b has bit 31
//   phi = pi/2 * y,  y = ((b >> 7) mod 2^23) 2^-23 - 1/2: a quarter turn around zero; the sign of
//         rho adds a half turn and bit 30 of b, which swaps sine and cosine, the other quarters
template <class F, class U>
UDP_HD F radius_squared(U a) {
    const F u = as_float((a >> 9) | U(0x3f800000u)) - F(1.0f - 0x1p-24f);  // exact
    return minus_two_log<F, U>(u);
}
template <class F, class U>
UDP_HD void rotate(F radius_squared, U b, F& first, F& second) {
    const F radius = sqrt_nearly(radius_squared);
    const F rho = flip(radius, as_float(b));

    const F y = as_float(((b >> 7) & U(0x007fffffu)) | U(0x3f800000u)) - F(1.5f);  // exact
    const F z = y * y;
    // Minimax on |y| <= 1/2: sin(pi/2 y) / y, error 4.9e-9; cos(pi/2 y) as 1 + z * c, error 3.3e-8.
    // The one is never rounded: it enters as rho in the last fma.
    F s(-0.00460217698109f);
    s = fma(s, z, F(0.0796802280623f));
    s = fma(s, z, F(-0.645963478641f));
    s = fma(s, z, F(1.57079632197f));
    F c(-0.0204262502975f);
    c = fma(c, z, F(0.253606361919f));
    c = fma(c, z, F(-1.23369795397f));

    const F sine = rho * (y * s);
    const F cosine = fma(rho * z, c, rho);
    first = select_by_second_bit(b, sine, cosine);
    second = select_by_second_bit(b, cosine, sine);
}
template <class F, class U>
UDP_HD void normal_pair(U a, U b, F& first, F& second) {
    rotate(radius_squared<F, U>(a), b, first, second);
}

}  // namespace udp
