// Attention and its backward, whole.
#pragma once

#include "ops.h"

namespace udp {

// Equal bits for any number of threads; there is at least one element of everything.
void attention(const Attention& a, int threads);
void attention_backward(const AttentionBackward& a, int threads);

}  // namespace udp
