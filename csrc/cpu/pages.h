// The pages that memory is made of.
#pragma once

#include <cstdint>

namespace udp {

// Asks for large pages, where the system has such and lets a program choose, for memory that is
// about to be written for the first time: each page is found by a fault, and of large ones (2 MB on
// x86-64) there are few.
void prefer_large_pages(void* data, int64_t bytes);

}  // namespace udp
