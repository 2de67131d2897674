// One element of the exact 8-bit rounding: the written byte is at most `levels` from the
// original's.
#pragma once

#include "lanes.h"

namespace udp {

// Whole levels in a budget eps, a fraction of the full range. The 2^-10 makes 8/255, which float32
// rounds down, eight levels.
UDP_HD float levels_in(float eps) {
    return static_cast<float>(::floor(static_cast<double>(eps) * 255.0 + 0x1p-10));
}

// A whole number within [0, 255].
template <class F>
UDP_HD F within_a_byte(F a) {
    return at_most(at_least(a, F(0.0f)), F(255.0f));
}
#if defined(__CUDA_ARCH__)
// A product saturates to [0, 1] at no cost, where comparing is what a GPU has least units for. What
// comes back is off by less than 10^-4, and narrowing rounds it.
template <>
UDP_HD float within_a_byte<float>(float a) {
    return __saturatef(a * (1.0f / 255.0f)) * 255.0f;
}
#endif

template <class F>
UDP_HD F bounded_byte(F original, F change, F levels) {  // change: a whole number, or infinite
    const F q = at_least(at_most(change, levels), F(0.0f) - levels);
    return within_a_byte(original + q);
}

}  // namespace udp
