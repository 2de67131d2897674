#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#endif

namespace udp {

namespace baseline {
extern const Kernels kKernels;
}
#if defined(UDP_X86)
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
#endif

namespace {

#if defined(UDP_X86) && defined(_MSC_VER)
bool bit(int word, int n) {
    return (word >> n & 1) != 0;
}
// The operating system keeps the registers of these states (XCR0) across a task switch.
bool saves(unsigned states) {
    return (_xgetbv(0) & states) == states;
}
bool has_avx2() {
    int one[4], seven[4];
    __cpuid(one, 1);
    __cpuidex(seven, 7, 0);
    const bool fma = bit(one[2], 12), osxsave = bit(one[2], 27), f16c = bit(one[2], 29);
    return fma && osxsave && f16c && bit(seven[1], 5) && saves(0x06);
}
bool has_avx512() {
    int seven[4];
    __cpuidex(seven, 7, 0);
    const bool f = bit(seven[1], 16), dq = bit(seven[1], 17);
    const bool bw = bit(seven[1], 30), vl = bit(seven[1], 31);
    return has_avx2() && f && dq && bw && vl && saves(0xe6);
}
#elif defined(UDP_X86)
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

std::string names(bool supported_only) {
    std::string text;
    for (const Isa& isa : isas()) {
        if (supported_only && !isa.supported) continue;
        text += (text.empty() ? "" : ", ") + std::string(isa.kernels->isa);
    }
    return text;
}

const Kernels* pick(const std::string& name, const char* source) {
    const Kernels* best = nullptr;
    for (const Isa& isa : isas()) {
        if (name.empty() && isa.supported) best = isa.kernels;
        if (name != isa.kernels->isa) continue;
        if (isa.supported) return isa.kernels;
        throw std::invalid_argument(std::string(source) + ": got " + name +
                                    ", which this processor does not support; expected one of " +
                                    names(true));
    }
    if (best != nullptr) return best;
    throw std::invalid_argument(std::string(source) + ": got " + name + ", expected one of " +
                                names(false));
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const std::vector<Isa>& isas() {
    static const std::vector<Isa> all = {
        {&baseline::kKernels, true},
#if defined(UDP_X86)
        {&avx2::kKernels, has_avx2()},
        {&avx512::kKernels, has_avx512()},
#endif
    };
    return all;
}

const Kernels& kernels() {
    const Kernels* current = chosen.load(std::memory_order_acquire);
    if (current != nullptr) return *current;
    const char* name = std::getenv("UDP_FAST_CPU_ISA");
    current = pick(name == nullptr ? "" : name, "UDP_FAST_CPU_ISA");
    chosen.store(current, std::memory_order_release);
    return *current;
}

void use_isa(const std::string& name) {
    chosen.store(name.empty() ? nullptr : pick(name, "name"), std::memory_order_release);
}

}  // namespace udp
