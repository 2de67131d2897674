// The functions of cuda/instructions.cuh for the emulator, where they are documented.
#pragma once

#include "cuda_emulator.h"

namespace udp {

enum class Cache { keep, once, read_only };

namespace detail {
template <int kBytes>
struct WordOf;
template <>
struct WordOf<1> {
    using type = unsigned char;
};
template <>
struct WordOf<2> {
    using type = unsigned short;
};
template <>
struct WordOf<4> {
    using type = unsigned int;
};
template <>
struct WordOf<8> {
    using type = uint2;
};
template <>
struct WordOf<16> {
    using type = uint4;
};
}  // namespace detail
template <class T>
using Word = typename detail::WordOf<sizeof(T)>::type;

#define UDP_UNINSTRUMENTED __attribute__((noinline, no_sanitize("thread")))

template <Cache kCache = Cache::keep, class T>
UDP_UNINSTRUMENTED T load_global(const T* address) {
    static_assert(std::is_trivially_copyable<T>::value && sizeof(Word<T>) == sizeof(T), "");
    const unsigned kind = kCache == Cache::read_only ? emulator::kReadOnly : emulator::kLoad;
    emulator::access(address, sizeof(T), kind | emulator::kExact, UDP_EMULATOR_WHERE);
    T value;
    memcpy(&value, address, sizeof value);
    return value;
}
template <Cache kCache = Cache::keep, class T>
UDP_UNINSTRUMENTED void store_global(T* address, const T& value) {
    static_assert(std::is_trivially_copyable<T>::value && sizeof(Word<T>) == sizeof(T), "");
    static_assert(kCache != Cache::read_only, "a store is not a read");
    emulator::access(address, sizeof(T), emulator::kStore | emulator::kExact, UDP_EMULATOR_WHERE);
    memcpy(address, &value, sizeof value);
}
template <class T>
UDP_UNINSTRUMENTED void store_global_if(bool wanted, T* address, const T& value) {
    if (!wanted) return;
    emulator::access(address, sizeof(T), emulator::kStore | emulator::kExact, UDP_EMULATOR_WHERE);
    memcpy(address, &value, sizeof value);
}
template <class T>
UDP_UNINSTRUMENTED T load_shared(const T* address) {
    static_assert(std::is_trivially_copyable<T>::value && sizeof(Word<T>) == sizeof(T), "");
    emulator::access(address, sizeof(T), emulator::kLoad | emulator::kExact, UDP_EMULATOR_WHERE);
    T value;
    memcpy(&value, address, sizeof value);
    return value;
}
template <class T>
UDP_UNINSTRUMENTED void store_shared(T* address, const T& value) {
    static_assert(std::is_trivially_copyable<T>::value && sizeof(Word<T>) == sizeof(T), "");
    emulator::access(address, sizeof(T), emulator::kStore | emulator::kExact, UDP_EMULATOR_WHERE);
    memcpy(address, &value, sizeof value);
}

inline float reciprocal_approx(float a) {
    return 1.0f / a;
}
inline float reciprocal_sqrt_approx(float a) {
    return rsqrtf(a);
}
inline float exp2_approx(float a) {
    return std::exp2(a);
}
inline float log2_approx(float a) {
    return std::log2(a);
}

template <bool kTransposed = false, int kMatrices>
UDP_UNINSTRUMENTED void ldmatrix(uint32_t (&matrices)[kMatrices], const void* row,
                                 emulator::Site site = emulator::Site::here()) {
    static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4, "ldmatrix has x1, x2 and x4");
    if (emulator::lane_index() < 8 * kMatrices)
        emulator::access(row, 16, emulator::kMatrix | emulator::kExact, UDP_EMULATOR_WHERE);
    emulator::MatrixRow operand{row, {}};
    emulator::warp_collective(0xffffffffu, &operand,
                              emulator::load_matrices<kMatrices, kTransposed>, "ldmatrix", site);
    memcpy(matrices, operand.matrices, sizeof matrices);
}

template <class Half>
UDP_UNINSTRUMENTED void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                     emulator::Site site = emulator::Site::here()) {
    static_assert(std::is_same<Half, __half>::value || std::is_same<Half, __nv_bfloat16>::value,
                  "Half is __half or __nv_bfloat16");
    emulator::MatrixProduct operand;
    memcpy(operand.d, d, sizeof operand.d);
    memcpy(operand.a, a, sizeof operand.a);
    memcpy(operand.b, b, sizeof operand.b);
    emulator::warp_collective(0xffffffffu, &operand, emulator::multiply_matrices<Half>,
                              "mma_m16n8k16", site);
    memcpy(d, operand.d, sizeof operand.d);
}

// Zeros in the columns of a and rows of b that m16n8k16 has beyond these: the same sums.
template <class Half>
UDP_UNINSTRUMENTED void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], uint32_t b,
                                    emulator::Site site = emulator::Site::here()) {
    const uint32_t wide_a[4] = {a[0], a[1], 0, 0}, wide_b[2] = {b, 0};
    mma_m16n8k16<Half>(d, wide_a, wide_b, site);
}

template <class Half>
inline uint32_t pack(float low, float high) {
    return Half(low).bits | static_cast<uint32_t>(Half(high).bits) << 16;
}

template <class Half>
inline float low_half(uint32_t pair) {
    return Half::from_bits(static_cast<unsigned short>(pair));
}
template <class Half>
inline float high_half(uint32_t pair) {
    return Half::from_bits(static_cast<unsigned short>(pair >> 16));
}

inline uint32_t multiply_float16(uint32_t a, uint32_t b) {
    const auto product = [&](int half) {
        const auto of = [&](uint32_t word) {
            return float(__half::from_bits(static_cast<unsigned short>(word >> half)));
        };
        return static_cast<uint32_t>(__half(of(a) * of(b)).bits) << half;
    };
    return product(0) | product(16);
}

template <int kBytes>
UDP_UNINSTRUMENTED void cp_async(void* shared, const void* global, int source_bytes = kBytes) {
    static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
    emulator::copy_async(shared, global, kBytes, source_bytes, UDP_EMULATOR_WHERE);
}
UDP_UNINSTRUMENTED inline void cp_async_commit() {
    emulator::copy_async_commit();
}
template <int kPending>
UDP_UNINSTRUMENTED void cp_async_wait() {
    emulator::copy_async_wait(kPending);
}
#undef UDP_UNINSTRUMENTED

}  // namespace udp
