// Loops over a few registers. Below gcc's -O3 a loop is unrolled after arrays that it goes through
// were given memory; these go through registers.
#pragma once

#include <type_traits>
#include <utility>

#include "../math/lanes.h"

// Behind a lambda's parameters: it is inlined before that, too.
#if defined(_MSC_VER)
#define UDP_INLINED
#else
#define UDP_INLINED __attribute__((always_inline))
#endif

namespace udp {

// body(0) .. body(n - 1), each number of a type of its own, and a constant.
template <class Body, int... kIndex>
UDP_HD void unrolled(Body body, std::integer_sequence<int, kIndex...>) {
    (body(std::integral_constant<int, kIndex>{}), ...);
}
template <int n, class Body>
UDP_HD void unrolled(Body body) {
    unrolled(body, std::make_integer_sequence<int, n>{});
}

}  // namespace udp
