// With UDP_COMPACT, size before speed: for kernels that hardly a processor runs, but which are in
// every build and would take a third of its time.
#pragma once

#include "../math/lanes.h"

#if defined(UDP_COMPACT)
// What is long and used in many places: once.
#define UDP_LONG UDP_NOINLINE
#else
#define UDP_LONG UDP_HD
#endif

namespace udp {

#if defined(UDP_COMPACT)
constexpr bool kCompact = true;
#else
constexpr bool kCompact = false;
#endif

}  // namespace udp
