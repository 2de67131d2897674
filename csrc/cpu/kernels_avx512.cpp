#define UDP_ISA avx512
#define UDP_ISA_NAME "avx512"
#include "simd_avx512.h"

#include "kernels.h"
