// Found by `#include <cuda_bf16.h>`: the emulator's part of CUDA bfloat16.
#pragma once

#include "cuda_emulator.h"
