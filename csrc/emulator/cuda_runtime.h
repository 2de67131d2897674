// Found by `#include <cuda_runtime.h>`: the emulator's part of the CUDA runtime.
#pragma once

#include "cuda_emulator.h"
