// Found by `#include <cuda_fp16.h>`: the emulator's part of CUDA half precision.
#pragma once

#include "cuda_emulator.h"
