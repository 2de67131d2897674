// What this processor's caches hold.
#pragma once

#include <cstdint>

namespace udp {

// Bytes of the last one before memory that a core reaches: usually the third, shared by several.
int64_t last_cache();

}  // namespace udp
