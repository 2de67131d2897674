// One element of a projected-gradient step.
#pragma once

#include "lanes.h"

namespace udp {

// Of x, and of what the model reads.
struct Range {
    float lo, hi, width;  // width = hi - lo
    float out_lo, out_hi, out_scale;
};

constexpr float kLargest = 3.40282346638528859811704183484516925e+38f;

template <class F>
UDP_HD auto is_finite(F a) {
    return abs(a) <= F(kLargest);  // false for a NaN
}

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

// direction: the gradient or its sign. size: +-alpha * mask, divided by the gradient's norm for an
// l2 step.
template <class F>
UDP_HD F step(F delta, F direction, F size) {
    return fma(size, direction, delta);
}

// Onto the linf ball (bound = eps, scale = 1) or the l2 ball (scale = min(1, eps / |delta|) and the
// largest float for a bound: an infinity would become a NaN), then to where lo <= x + delta <= hi.
template <class F>
UDP_HD F project(F delta, F x, F bound, F scale, const Range& range) {
    const F d = at_least(within(delta, bound) * scale, F(range.lo) - x);
    return at_most(d, F(range.hi) - x);
}

// x + delta in [lo, hi]. The clamp is needed: delta was rounded after `project`, and so is the sum.
template <class F>
UDP_HD F adversarial(F x, F delta, const Range& range) {
    return at_most(at_least(x + delta, F(range.lo)), F(range.hi));
}

// Not an fma: the product's own rounding hits the ends of the usual ranges (255 * (2/255) is 2). Of
// other ranges the clamp keeps the promise.
template <class F>
UDP_HD F to_out_range(F value, const Range& range) {
    const F shift(range.out_lo - range.lo * range.out_scale);
    const F mapped = value * F(range.out_scale) + shift;
    return at_most(at_least(mapped, F(range.out_lo)), F(range.out_hi));
}

// A uint8 original's value, lo + byte * (hi - lo) / 255. The quotient comes out correctly rounded
// for all 256 bytes: 1 / 255 is taken in two parts.
template <class F>
UDP_HD F from_byte(F byte, const Range& range) {
    const F unit = fma(byte, F(0x1.010102p-8f), byte * F(-0x1.fdfdfep-33f));
    return fma(unit, F(range.width), F(range.lo));
}

}  // namespace udp
