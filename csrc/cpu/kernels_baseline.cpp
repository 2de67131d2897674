#define UDP_ISA baseline
#define UDP_ISA_NAME "baseline"
#include "simd_baseline.h"

#include "kernels.h"
