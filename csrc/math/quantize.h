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

template <class F>
UDP_HD F bounded_byte(F original, F change, F levels) {  // change: a whole number, or infinite
    const F q = larger(smaller(change, levels), F(0.0f) - levels);
    return smaller(larger(original + q, F(0.0f)), F(255.0f));
}

}  // namespace udp
