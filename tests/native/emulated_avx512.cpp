#include "emulated_avx512.h"
// After it: what follows takes the emulation for the intrinsics.
#include "../../csrc/cpu/kernels_avx512.cpp"
