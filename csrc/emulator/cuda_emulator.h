// Included before a .cu file, makes it C++ that g++ compiles and the emulator runs: CUDA's
// qualifiers, built-in variables, barriers, shuffles, votes, atomics, intrinsics and as much of its
// runtime API as launchers need. See README.md.
#pragma once

#define UDP_EMULATOR 1

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>

#include "half_types.h"
#include "runtime.h"
#include "vector_types.h"

// ---- qualifiers

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __cluster_dims__(...)

#define UDP_JOIN2(a, b) a##b
#define UDP_JOIN(a, b) UDP_JOIN2(a, b)
#ifdef UDP_EMULATOR_CHECKED
// Thread-local, because the linker then gathers all shared variables, and nothing else, in one
// segment with their names and sizes in the symbol table; each behind a gap, so that an overrun of
// one does not land in the next.
#define __shared__                                                                      \
    static thread_local __attribute__((used)) char UDP_JOIN(udp_gap_, __COUNTER__)[64]; \
    static thread_local
#else
#define __shared__ static  // AddressSanitizer lays its own red zones
#endif

#define UDP_DYNAMIC_SHARED(type, name) \
    type* name = static_cast<type*>(::udp::emulator::dynamic_shared())

// ---- built-in variables

// Objects that the scheduler sets whenever it turns to another thread. One thread sees them
// constant, so the compiler may know them as const; only the definitions, in threads.cpp, know
// better.
extern const uint3 threadIdx __asm__("udp_emulator_threadIdx");
extern const uint3 blockIdx __asm__("udp_emulator_blockIdx");
extern const dim3 blockDim __asm__("udp_emulator_blockDim");
extern const dim3 gridDim __asm__("udp_emulator_gridDim");
constexpr int warpSize = 32;

// ---- barriers, fences, votes, shuffles

#define UDP_SITE ::udp::emulator::Site site = ::udp::emulator::Site::here()

inline void __syncthreads(UDP_SITE) {
    udp::emulator::block_barrier(udp::emulator::Tally::sync, 0, "__syncthreads", site);
}
inline int __syncthreads_count(int predicate, UDP_SITE) {
    return udp::emulator::block_barrier(udp::emulator::Tally::count, predicate,
                                        "__syncthreads_count", site);
}
inline int __syncthreads_and(int predicate, UDP_SITE) {
    return udp::emulator::block_barrier(udp::emulator::Tally::all, predicate, "__syncthreads_and",
                                        site);
}
inline int __syncthreads_or(int predicate, UDP_SITE) {
    return udp::emulator::block_barrier(udp::emulator::Tally::any, predicate, "__syncthreads_or",
                                        site);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, UDP_SITE) {
    udp::emulator::warp_barrier(mask, site);
}
inline void __threadfence_block() {}
inline void __threadfence() {}
inline void __threadfence_system() {}

inline unsigned __activemask(UDP_SITE) {
    return udp::emulator::active_mask(site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, UDP_SITE) {
    return udp::emulator::ballot(mask, predicate != 0, "__ballot_sync", site);
}
inline int __any_sync(unsigned mask, int predicate, UDP_SITE) {
    return udp::emulator::ballot(mask, predicate != 0, "__any_sync", site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, UDP_SITE) {
    return udp::emulator::ballot(mask, predicate == 0, "__all_sync", site) == 0;
}

namespace udp::emulator {

// As a 64-bit word and back; the types that CUDA's shuffles take.
template <class T>
uint64_t to_word(const T& value) {
    static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "");
    uint64_t word = 0;
    memcpy(&word, &value, sizeof value);
    return word;
}
template <class T>
T from_word(uint64_t word) {
    T value;
    memcpy(&value, &word, sizeof value);
    return value;
}

inline int check_width(int width, const char* operation) {
    if (width < 1 || width > 32 || (width & (width - 1)) != 0)
        fault("%s: width %d is not a power of two up to 32", operation, width);
    return width;
}

}  // namespace udp::emulator

// The lane whose value is read, by the rules of PTX's shfl.sync: a source outside the segment of
// `width` lanes (for xor: above it) is the lane itself.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, UDP_SITE) {
    using namespace udp::emulator;
    const int lane = static_cast<int>(lane_index());
    check_width(width, "__shfl_sync");
    const int from = (lane & ~(width - 1)) | (source & (width - 1));
    return from_word<T>(shuffle(mask, to_word(value), from, "__shfl_sync", site));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, UDP_SITE) {
    using namespace udp::emulator;
    const int lane = static_cast<int>(lane_index());
    const int first = lane & ~(check_width(width, "__shfl_up_sync") - 1);
    const int from =
        delta > static_cast<unsigned>(lane - first) ? lane : lane - static_cast<int>(delta);
    return from_word<T>(shuffle(mask, to_word(value), from, "__shfl_up_sync", site));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, UDP_SITE) {
    using namespace udp::emulator;
    const int lane = static_cast<int>(lane_index());
    const int last = lane | (check_width(width, "__shfl_down_sync") - 1);
    const int from =
        delta > static_cast<unsigned>(last - lane) ? lane : lane + static_cast<int>(delta);
    return from_word<T>(shuffle(mask, to_word(value), from, "__shfl_down_sync", site));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, UDP_SITE) {
    using namespace udp::emulator;
    const int lane = static_cast<int>(lane_index());
    const int last = lane | (check_width(width, "__shfl_xor_sync") - 1);
    const int from = (lane ^ lane_mask) > last ? lane : lane ^ lane_mask;
    return from_word<T>(shuffle(mask, to_word(value), from, "__shfl_xor_sync", site));
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, UDP_SITE) {
    return udp::emulator::match_any(mask, udp::emulator::to_word(value), site);
}

#define UDP_WARP_REDUCE(name, T, combine)                                                      \
    inline T name(unsigned mask, T value, UDP_SITE) {                                          \
        struct Operand {                                                                       \
            T value, result;                                                                   \
        } operand{value, 0};                                                                   \
        udp::emulator::warp_collective(                                                        \
            mask, &operand,                                                                    \
            [](void* const* operands, unsigned) {                                              \
                bool first = true;                                                             \
                T total = 0;                                                                   \
                for (int lane = 0; lane < 32; ++lane) {                                        \
                    if (operands[lane] == nullptr) continue;                                   \
                    const T b = static_cast<Operand*>(operands[lane])->value;                  \
                    const T a = total;                                                         \
                    total = first ? b : (combine);                                             \
                    first = false;                                                             \
                }                                                                              \
                for (int lane = 0; lane < 32; ++lane)                                          \
                    if (operands[lane]) static_cast<Operand*>(operands[lane])->result = total; \
            },                                                                                 \
            #name, site);                                                                      \
        return operand.result;                                                                 \
    }
UDP_WARP_REDUCE(__reduce_add_sync, unsigned, a + b)
UDP_WARP_REDUCE(__reduce_min_sync, unsigned, b < a ? b : a)
UDP_WARP_REDUCE(__reduce_max_sync, unsigned, a < b ? b : a)
UDP_WARP_REDUCE(__reduce_and_sync, unsigned, a& b)
UDP_WARP_REDUCE(__reduce_or_sync, unsigned, a | b)
UDP_WARP_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
UDP_WARP_REDUCE(__reduce_min_sync, int, b < a ? b : a)
UDP_WARP_REDUCE(__reduce_max_sync, int, a < b ? b : a)
#undef UDP_WARP_REDUCE

// ---- atomics: one OS thread runs all, so a plain update is atomic

#define UDP_ATOMIC(name, T, update)                                                       \
    __attribute__((noinline, no_sanitize("thread"))) inline T name(T* address, T value) { \
        udp::emulator::maybe_yield();                                                     \
        udp::emulator::access(                                                            \
            address, sizeof(T),                                                           \
            udp::emulator::kStore | udp::emulator::kAtomic | udp::emulator::kExact,       \
            UDP_EMULATOR_WHERE);                                                          \
        const T old = *address;                                                           \
        *address = (update);                                                              \
        return old;                                                                       \
    }
#define UDP_ATOMIC_INTEGER(T)                                                                   \
    UDP_ATOMIC(atomicExch, T, value)                                                            \
    UDP_ATOMIC(atomicMin, T, value < old ? value : old)                                         \
    UDP_ATOMIC(atomicMax, T, value > old ? value : old)                                         \
    UDP_ATOMIC(atomicAnd, T, old& value)                                                        \
    UDP_ATOMIC(atomicOr, T, old | value)                                                        \
    UDP_ATOMIC(atomicXor, T, old ^ value)                                                       \
    __attribute__((noinline, no_sanitize("thread"))) inline T atomicCAS(T* address, T expected, \
                                                                        T value) {              \
        udp::emulator::maybe_yield();                                                           \
        udp::emulator::access(                                                                  \
            address, sizeof(T),                                                                 \
            udp::emulator::kStore | udp::emulator::kAtomic | udp::emulator::kExact,             \
            UDP_EMULATOR_WHERE);                                                                \
        const T old = *address;                                                                 \
        if (old == expected) *address = value;                                                  \
        return old;                                                                             \
    }
UDP_ATOMIC_INTEGER(int)
UDP_ATOMIC_INTEGER(unsigned)
UDP_ATOMIC_INTEGER(unsigned long long)
UDP_ATOMIC(atomicMin, long long, value < old ? value : old)
UDP_ATOMIC(atomicMax, long long, value > old ? value : old)
UDP_ATOMIC(atomicAdd, int,
           static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value)))
UDP_ATOMIC(atomicSub, int,
           static_cast<int>(static_cast<unsigned>(old) - static_cast<unsigned>(value)))
UDP_ATOMIC(atomicAdd, unsigned, old + value)
UDP_ATOMIC(atomicSub, unsigned, old - value)
UDP_ATOMIC(atomicInc, unsigned, old >= value ? 0u : old + 1u)
UDP_ATOMIC(atomicDec, unsigned, old == 0u || old > value ? value : old - 1u)
UDP_ATOMIC(atomicAdd, unsigned long long, old + value)
UDP_ATOMIC(atomicAdd, float, old + value)
UDP_ATOMIC(atomicAdd, double, old + value)
UDP_ATOMIC(atomicExch, float, value)
#undef UDP_ATOMIC
#undef UDP_ATOMIC_INTEGER

// ---- loads and stores with a cache hint

#define UDP_LOAD(name, flags)                                                      \
    template <class T>                                                             \
    __attribute__((noinline, no_sanitize("thread"))) T name(const T* address) {    \
        udp::emulator::access(address, sizeof(T), (flags) | udp::emulator::kExact, \
                              UDP_EMULATOR_WHERE);                                 \
        return *address;                                                           \
    }
#define UDP_STORE(name)                                                                          \
    template <class T>                                                                           \
    __attribute__((noinline, no_sanitize("thread"))) void name(T* address, T value) {            \
        udp::emulator::access(address, sizeof(T), udp::emulator::kStore | udp::emulator::kExact, \
                              UDP_EMULATOR_WHERE);                                               \
        *address = value;                                                                        \
    }
UDP_LOAD(__ldg, udp::emulator::kReadOnly)
UDP_LOAD(__ldca, udp::emulator::kLoad)
UDP_LOAD(__ldcg, udp::emulator::kLoad)
UDP_LOAD(__ldcs, udp::emulator::kLoad)
UDP_STORE(__stcg)
UDP_STORE(__stcs)
UDP_STORE(__stwb)
UDP_STORE(__stwt)
#undef UDP_LOAD
#undef UDP_STORE

// ---- arithmetic intrinsics; the approximate ones are the exact function rounded

inline float __fmaf_rn(float a, float b, float c) {
    return std::fma(a, b, c);
}
inline double __fma_rn(double a, double b, double c) {
    return std::fma(a, b, c);
}
inline float __fadd_rn(float a, float b) {
    return a + b;
}
inline float __fsub_rn(float a, float b) {
    return a - b;
}
inline float __fmul_rn(float a, float b) {
    return a * b;
}
inline float __fdiv_rn(float a, float b) {
    return a / b;
}
inline float __fsqrt_rn(float a) {
    return std::sqrt(a);
}
inline float __frcp_rn(float a) {
    return 1.0f / a;
}
inline float __frsqrt_rn(float a) {
    return static_cast<float>(1.0 / std::sqrt(static_cast<double>(a)));
}
inline float rsqrtf(float a) {
    return __frsqrt_rn(a);
}
inline double rsqrt(double a) {
    return 1.0 / std::sqrt(a);
}
inline double __dadd_rn(double a, double b) {
    return a + b;
}
inline double __dmul_rn(double a, double b) {
    return a * b;
}
inline float __fdividef(float a, float b) {
    return a / b;
}
inline float __saturatef(float a) {
    return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f;
}
inline float __expf(float a) {
    return std::exp(a);
}
inline float __exp2f(float a) {
    return std::exp2(a);
}
inline float __logf(float a) {
    return std::log(a);
}
inline float __log2f(float a) {
    return std::log2(a);
}
inline float __sinf(float a) {
    return std::sin(a);
}
inline float __cosf(float a) {
    return std::cos(a);
}

inline unsigned __float_as_uint(float a) {
    return static_cast<unsigned>(udp::emulator::to_word(a));
}
inline int __float_as_int(float a) {
    return static_cast<int>(__float_as_uint(a));
}
inline float __uint_as_float(unsigned a) {
    return udp::emulator::from_word<float>(a);
}
inline float __int_as_float(int a) {
    return __uint_as_float(static_cast<unsigned>(a));
}
inline long long __double_as_longlong(double a) {
    return static_cast<long long>(udp::emulator::to_word(a));
}
inline double __longlong_as_double(long long a) {
    return udp::emulator::from_word<double>(static_cast<uint64_t>(a));
}

inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
inline int __mulhi(int a, int b) {
    return static_cast<int>(static_cast<int64_t>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline int __clz(int a) {
    return a == 0 ? 32 : __builtin_clz(static_cast<unsigned>(a));
}
inline int __clzll(long long a) {
    return a == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(a));
}
inline int __ffs(int a) {
    return __builtin_ffs(a);
}
inline int __ffsll(long long a) {
    return __builtin_ffsll(a);
}
inline int __popc(unsigned a) {
    return __builtin_popcount(a);
}
inline int __popcll(unsigned long long a) {
    return __builtin_popcountll(a);
}
inline unsigned __brev(unsigned a) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; ++i) reversed |= (a >> i & 1u) << (31 - i);
    return reversed;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned s = selector >> (4 * i);
        unsigned byte = static_cast<unsigned>(bytes >> (8 * (s & 7u))) & 0xffu;
        if ((s & 8u) != 0) byte = (byte & 0x80u) != 0 ? 0xffu : 0u;
        result |= byte << (8 * i);
    }
    return result;
}
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(hi) << 32 | lo) << (shift & 31u) >> 32);
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(hi) << 32 | lo) >> (shift & 31u));
}

// A float out of the integer's range saturates and a NaN becomes 0, unlike in C++.
namespace udp::emulator {
template <class Integer>
Integer saturate(double a) {
    if (std::isnan(a)) return 0;
    if (a <= static_cast<double>(std::numeric_limits<Integer>::lowest()))
        return std::numeric_limits<Integer>::lowest();
    if (a >= static_cast<double>(std::numeric_limits<Integer>::max()))
        return std::numeric_limits<Integer>::max();
    return static_cast<Integer>(a);
}
}  // namespace udp::emulator
inline int __float2int_rn(float a) {
    return udp::emulator::saturate<int>(std::nearbyint(a));
}
inline int __float2int_rz(float a) {
    return udp::emulator::saturate<int>(std::trunc(a));
}
inline int __float2int_rd(float a) {
    return udp::emulator::saturate<int>(std::floor(a));
}
inline int __float2int_ru(float a) {
    return udp::emulator::saturate<int>(std::ceil(a));
}
inline unsigned __float2uint_rn(float a) {
    return udp::emulator::saturate<unsigned>(std::nearbyint(a));
}
inline unsigned __float2uint_rz(float a) {
    return udp::emulator::saturate<unsigned>(std::trunc(a));
}
inline float __int2float_rn(int a) {
    return static_cast<float>(a);
}
inline float __uint2float_rn(unsigned a) {
    return static_cast<float>(a);
}
inline float __double2float_rn(double a) {
    return static_cast<float>(a);
}

// CUDA has these without std::.
template <class T, class = std::enable_if_t<std::is_arithmetic<T>::value>>
constexpr T min(T a, T b) {
    if constexpr (std::is_floating_point<T>::value) return std::fmin(a, b);
    return b < a ? b : a;
}
template <class T, class = std::enable_if_t<std::is_arithmetic<T>::value>>
constexpr T max(T a, T b) {
    if constexpr (std::is_floating_point<T>::value) return std::fmax(a, b);
    return a < b ? b : a;
}
using std::isfinite;
using std::isinf;
using std::isnan;

[[noreturn]] inline void __trap() {
    udp::emulator::fault("__trap");
}
inline void __nanosleep(unsigned) {
    udp::emulator::maybe_yield();
}
// Programmatic dependent launch: launches run one after the other here.
inline void cudaGridDependencySynchronize() {}
inline void cudaTriggerProgrammaticLaunchCompletion() {}

// ---- the runtime API, for a device like the smallest that the kernels support

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidDevice = 101,
    cudaErrorLaunchFailure = 719,
};
using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault,
};
enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrWarpSize = 10,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrMaxThreadsPerMultiProcessor = 39,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};
enum cudaLaunchAttributeID {
    cudaLaunchAttributeIgnore = 0,
    cudaLaunchAttributeProgrammaticStreamSerialization = 6,
};
union cudaLaunchAttributeValue {
    char pad[64];
    int programmaticStreamSerializationAllowed;
};
struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute* attrs;
    unsigned numAttrs;
};

struct cudaFuncAttributes {
    size_t sharedSizeBytes, constSizeBytes, localSizeBytes;
    int maxThreadsPerBlock, numRegs, maxDynamicSharedSizeBytes;
};
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount, maxThreadsPerMultiProcessor, warpSize;
    size_t sharedMemPerBlockOptin;
};

namespace udp::emulator {
constexpr int kMultiprocessors = 4;  // few, so that grids sized by occupancy stay small
constexpr int kSharedBytes = 48 * 1024, kOptInSharedBytes = 99 * 1024;  // of sm_86 and sm_89

// threads.cpp
cudaError_t last_error(bool clear);
cudaError_t launch(const Launch& launch);
cudaError_t allow_dynamic_shared(const void* kernel, int bytes);
cudaError_t check_occupancy_query(const void* kernel, int threads, size_t dynamic_shared_bytes);

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                   size_t dynamic_shared_bytes, cudaStream_t, Arguments&&... arguments) {
    struct Call {
        void (*kernel)(Parameters...);
        std::tuple<std::decay_t<Parameters>...> arguments;
    } call{kernel, {static_cast<Parameters>(std::forward<Arguments>(arguments))...}};
    return launch({reinterpret_cast<const void*>(kernel), grid, block, dynamic_shared_bytes,
                   [](void* p) {
                       const Call& c = *static_cast<const Call*>(p);
                       std::apply(c.kernel, c.arguments);
                   },
                   &call, sizeof call});
}
}  // namespace udp::emulator

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    return udp::emulator::launch(kernel, config->gridDim, config->blockDim,
                                 config->dynamicSmemBytes, config->stream,
                                 std::forward<Arguments>(arguments)...);
}

inline cudaError_t cudaGetLastError() {
    return udp::emulator::last_error(true);
}
inline cudaError_t cudaPeekAtLastError() {
    return udp::emulator::last_error(false);
}
const char* cudaGetErrorString(cudaError_t error);
const char* cudaGetErrorName(cudaError_t error);

inline cudaError_t cudaGetDeviceCount(int* count) {
    return *count = 1, cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
    return *device = 0, cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
    return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
inline cudaError_t cudaDriverGetVersion(int* version) {
    return *version = 12000, cudaSuccess;
}
inline cudaError_t cudaRuntimeGetVersion(int* version) {
    return *version = 12000, cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    return udp::emulator::allow_dynamic_shared(reinterpret_cast<const void*>(kernel), value);
}
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
    *attributes = {0, 0, 0, 1024, 32, udp::emulator::kSharedBytes};
    return cudaSuccess;
}
// By threads alone: the emulator knows no registers.
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel* kernel, int threads,
                                                          size_t dynamic_shared_bytes) {
    *blocks = 0;
    const cudaError_t error = udp::emulator::check_occupancy_query(
        reinterpret_cast<const void*>(kernel), threads, dynamic_shared_bytes);
    if (error == cudaSuccess) *blocks = 1536 / threads;
    return error;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return udp::emulator::last_error(false);
}
inline cudaError_t cudaDeviceSynchronize() {
    return udp::emulator::last_error(false);
}
// Memory that kernels may use, with exact bounds, not yet written.
cudaError_t cudaMalloc(void** address, size_t bytes);
template <class T>
cudaError_t cudaMalloc(T** address, size_t bytes) {
    return cudaMalloc(reinterpret_cast<void**>(address), bytes);
}
cudaError_t cudaFree(void* address);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t = nullptr);
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, bytes, kind);
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t = nullptr);
inline cudaError_t cudaMemset(void* to, int value, size_t bytes) {
    return cudaMemsetAsync(to, value, bytes);
}
