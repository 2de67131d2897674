// Which instruction set's kernels run on this processor.
#pragma once

#include <string>
#include <vector>

#include "ops.h"

namespace udp {

struct Isa {
    const Kernels* kernels;
    bool supported;  // by this processor and operating system
};

// Those compiled into this library, plainest first.
const std::vector<Isa>& isas();

// The best supported one, or the one that UDP_FAST_CPU_ISA names. Throws std::invalid_argument, in
// words, where that is not possible.
const Kernels& kernels();

// Another from now on; an empty name means the choice that kernels() would make by itself.
void use_isa(const std::string& name);

}  // namespace udp
