// What the formulas in this folder are written over, and the plainest such type: one float.
//
// Every formula is a template over F, "some floats", and U, "as many 32-bit words". A GPU thread
// instantiates it with float and uint32_t; the CPU kernels with 16 lanes at once (cpu/simd_*.h).
// A lane type has + - * < <= > on F, & | ^ << >> + - on U, a constructor that broadcasts one
// number, and the functions below. No formula contracts or reorders anything by itself (the build
// says -ffp-contract=off): an fma is where the source says fma, so all instruction sets give equal
// bits.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define UDP_HD __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define UDP_HD static __forceinline
#else
// `static` matters: an inline function with external linkage, compiled once per instruction set,
// would be merged by the linker, perhaps into the copy that the processor cannot run.
#define UDP_HD static inline __attribute__((always_inline))
#endif

// For a loop that needs all registers: in the file that includes it, once per instruction set.
#if defined(_MSC_VER)
#define UDP_NOINLINE static __declspec(noinline)
#else
#define UDP_NOINLINE static __attribute__((noinline))
#endif

#include <cmath>

namespace udp {

UDP_HD float fma(float a, float b, float c) {
    return ::fmaf(a, b, c);
}
UDP_HD float sqrt(float a) {
    return ::sqrtf(a);
}
// A root that may be off by one unit in the last place: the GPU's exact one takes twice as long and
// a branch. Elsewhere it is exact.
template <class F>
UDP_HD F sqrt_nearly(F a) {
    return sqrt(a);
}
#if defined(__CUDA_ARCH__)
template <>
UDP_HD float sqrt_nearly<float>(float a) {  // a > 0, normal
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(a));
    const float root = a * y;
    return fmaf(fmaf(-root, root, a), 0.5f * y, root);  // Newton
}
#endif
UDP_HD float reciprocal(float a) {
    return 1.0f / a;
}
// For the GPU its instruction alone: off by 2^-23 of itself, and right for infinities, which a step
// of Newton's method would turn into a NaN. Elsewhere it is exact.
template <class F>
UDP_HD F reciprocal_roughly(F a) {
    return reciprocal(a);
}
#if defined(__CUDA_ARCH__)
template <>
UDP_HD float reciprocal_roughly<float>(float a) {  // a and 1 / a normal, or a infinite
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(a));
    return y;
}
#endif
UDP_HD float abs(float a) {
    return ::fabsf(a);
}
UDP_HD float floor(float a) {
    return ::floorf(a);
}
UDP_HD float round_half_even(float a) {
    return ::nearbyintf(a);
}

UDP_HD uint32_t as_uint(float a) {
    uint32_t bits;
    memcpy(&bits, &a, sizeof bits);
    return bits;
}
UDP_HD float as_float(uint32_t bits) {
    float a;
    memcpy(&a, &bits, sizeof a);
    return a;
}
// The word as a signed integer, converted.
UDP_HD float to_float(uint32_t a) {
    return static_cast<float>(static_cast<int32_t>(a));
}

UDP_HD float select(bool which, float yes, float no) {
    return which ? yes : no;
}
UDP_HD uint32_t select(bool which, uint32_t yes, uint32_t no) {
    return which ? yes : no;
}
UDP_HD float only_if(bool which, float yes) {
    return which ? yes : 0.0f;
}
UDP_HD float select_by_top_bit(uint32_t a, float yes, float no) {
    return (a >> 31) != 0 ? yes : no;
}
template <class F, class U>
UDP_HD F select_by_second_bit(U a, F yes, F no) {
    return select_by_top_bit(a << 1, yes, no);
}
#if defined(__CUDA_ARCH__)
template <>
UDP_HD float select_by_second_bit(uint32_t a, float yes, float no) {
    uint32_t bit;  // hidden from nvcc, which would test it by three instructions instead of one
    asm("and.b32 %0, %1, 0x40000000;" : "=r"(bit) : "r"(a));
    return bit != 0 ? yes : no;
}
#endif

constexpr float kLargest = 3.40282346638528859811704183484516925e+38f;

template <class F>
UDP_HD auto is_finite(F a) {
    return abs(a) <= F(kLargest);  // false for a NaN
}

// a, negated where `sign` has its sign bit set.
UDP_HD float flip(float a, float sign) {
    return as_float(as_uint(a) ^ (as_uint(sign) & 0x80000000u));
}

// A NaN in `a` passes; the bound is a number. Of two zeros a GPU takes the lesser or the
// greater, other processors the first: where the sign of a zero matters, let none be negative.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
UDP_HD float at_most(float a, float bound) {
    float y;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(bound));
    return y;
}
UDP_HD float at_least(float a, float bound) {
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(bound));
    return y;
}
#else
UDP_HD float at_most(float a, float bound) {
    return bound < a ? bound : a;
}
UDP_HD float at_least(float a, float bound) {
    return bound > a ? bound : a;
}
#endif

// hi:lo = a * b. A lane type may leave rubbish above bit 31 of either.
UDP_HD void multiply(uint32_t a, uint32_t b, uint32_t& hi, uint32_t& lo) {
#if defined(__CUDA_ARCH__)
    // One IMAD.WIDE. Left to itself nvcc widens the exclusive-ors after it to 64 bits.
    asm("{ .reg .b64 p; mul.wide.u32 p, %2, %3; mov.b64 {%1, %0}, p; }"
        : "=r"(hi), "=r"(lo)
        : "r"(a), "r"(b));
#else
    const uint64_t product = static_cast<uint64_t>(a) * b;
    hi = static_cast<uint32_t>(product >> 32);
    lo = static_cast<uint32_t>(product);
#endif
}

}  // namespace udp
