#define UDP_ISA avx2
#define UDP_ISA_NAME "avx2"
#include "simd_avx2.h"

#include "kernels.h"
