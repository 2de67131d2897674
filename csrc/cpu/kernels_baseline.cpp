#define UDP_ISA baseline
#define UDP_ISA_NAME "baseline"
#if defined(UDP_X86)  // where only processors from before 2013 take it
#define UDP_COMPACT
#endif
#include "simd_baseline.h"

#include "kernels.h"
