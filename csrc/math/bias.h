// What an additive bias of attention counts as.
#pragma once

#include "lanes.h"

namespace udp {

// Beside a finite bias of more than that, such as the lowest float that stands for padding, scores
// would be lost, and with them a row's sum of exponentials in its logarithm: where all keys have
// such a bias, nothing would be left to divide by. exp(-10000) is 0.
constexpr float kMostBias = 1e4f;

// -inf, which masks a key, and what is no number stay.
template <class F>
UDP_HD F limited_bias(F bias) {
    const F limited = at_most(at_least(bias, F(-kMostBias)), F(kMostBias));
    return select(is_finite(bias), limited, bias);
}

}  // namespace udp
