// One element of a projected-gradient step.
#pragma once

#include "lanes.h"

namespace udp {

// Of x, and of what the model reads.
struct Range {
    float lo, hi, width;  // width = hi - lo
    float out_lo, out_hi, out_scale;
};

// Onto the linf ball; for the l2 ball, whose delta is scaled instead by min(1, eps / |delta|), the
// bound is the largest float: an infinity would become a NaN.
template <class F>
UDP_HD F within(F a, F bound) {
    return at_most(at_least(a, F(0.0f) - bound), bound);
}

// A gradient element that is not finite takes no step.
template <class F>
UDP_HD F finite_or_zero(F gradient) {
    return only_if(is_finite(gradient), gradient);
}

// -1, 0 or 1; 0 where the gradient is not finite.
template <class F>
UDP_HD F finite_sign(F gradient) {
    const F g = finite_or_zero(gradient);
    return only_if(g != F(0.0f), flip(F(1.0f), g));
}

// The same where only a launch knows which: the bits of the gradient that are kept, and those that
// are set.
struct Direction {
    uint32_t kept, set;
};
constexpr Direction kSign = {0x80000000u, 0x3f800000u}, kGradient = {0xffffffffu, 0u};

UDP_HD float finite_direction(float gradient, Direction which) {
    const bool moves = gradient != 0.0f && is_finite(gradient);
    return only_if(moves, as_float((as_uint(gradient) & which.kept) | which.set));
}

// direction: the gradient or its sign. size: +-alpha * mask, divided by the gradient's norm for an
// l2 step.
template <class F>
UDP_HD F step(F delta, F direction, F size) {
    return fma(size, direction, delta);
}

// A float original's value, no zero of it negative.
template <class F>
UDP_HD F from_float(F x) {
    return x + F(0.0f);
}

// What `project` adds: nothing, or a NaN where the original is none or infinite.
template <class F>
UDP_HD F nothing_or_nan(F x) {
    return x - x;
}

// Of a delta on its ball, to where lo <= x + delta <= hi. nothing: 0, or nothing_or_nan(x) for an x
// that may be any float. With it no zero is negative, and so no processor's order of zeros shows in
// the result.
template <class F>
UDP_HD F project(F delta, F x, F nothing, const Range& range) {
    return at_most(at_least(delta + nothing, F(range.lo) - x), F(range.hi) - x);
}

// x + delta, mapped to what the model reads, which may be x's own range. Not an fma: the product's
// own rounding hits the ends of the usual ranges (255 * (2/255) is 2). The clamp is needed: delta
// was rounded after `project`, and so are the sum and the map.
template <class F>
UDP_HD F adversarial(F x, F delta, bool maps, const Range& range) {
    F y = x + delta;
    if (maps) y = y * F(range.out_scale) + F(range.out_lo - range.lo * range.out_scale);
    return at_most(at_least(y, F(range.out_lo)), F(range.out_hi));
}

// A uint8 original's value, lo + byte * (hi - lo) / 255. The quotient comes out correctly rounded
// for all 256 bytes: 1 / 255 is taken in two parts.
template <class F>
UDP_HD F from_byte(F byte, const Range& range) {
    const F unit = fma(byte, F(0x1.010102p-8f), byte * F(-0x1.fdfdfep-33f));
    return fma(unit, F(range.width), F(range.lo));
}

}  // namespace udp
