// Numbers that belong to an image.
#pragma once

#include "../math/diffuse.h"
#include "ops.h"

namespace udp {

__device__ __forceinline__ float number_of(const PerImage& numbers, int64_t image) {
    return numbers.data == nullptr ? numbers.value : numbers.data[image * numbers.stride];
}

__device__ __forceinline__ Levels levels_of(const Schedule& s, int64_t image) {
    const float entry = s.table[s.t[image]];
    return s.flow != 0 ? flow_levels(entry) : diffusion_levels(entry);
}

}  // namespace udp
