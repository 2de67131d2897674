// The instructions that CUDA C++ has no portable spelling for, one thin function each: wide global
// accesses with a cache hint, ldmatrix, mma.sync and cp.async. The only file with inline PTX; all
// of it runs on sm_80 and later. On the CPU the same functions are in csrc/emulator/instructions.h.
#pragma once

#ifdef UDP_EMULATOR
#include "../emulator/instructions.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

// Dynamic shared memory: `UDP_DYNAMIC_SHARED(float, tile);` declares a pointer to its first byte.
#define UDP_DYNAMIC_SHARED(type, name)                                  \
    extern __shared__ __align__(16) unsigned char udp_dynamic_shared[]; \
    type* name = reinterpret_cast<type*>(udp_dynamic_shared)

namespace udp {

// How long a line is worth keeping.
enum class Cache {
    keep,       // ordinary caching; the only one for data that this launch also writes
    once,       // streamed: evict first (ld.cs, st.cs)
    read_only,  // loads of data that nothing writes during the launch (ld.nc)
};

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

// Plain accesses. Spelled as C++ assignments, the wide ones would be split into scalars.
template <class W>
__device__ __forceinline__ void load(W& word, const W* from) {
    word = *from;
}
__device__ __forceinline__ void load(uint2& w, const uint2* from) {
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(w.x), "=r"(w.y) : "l"(from) : "memory");
}
__device__ __forceinline__ void load(uint4& w, const uint4* from) {
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
                 : "l"(from)
                 : "memory");
}
template <class W>
__device__ __forceinline__ void store(W* to, const W& word) {
    *to = word;
}
__device__ __forceinline__ void store(uint2* to, const uint2& w) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(w.x), "r"(w.y) : "memory");
}
__device__ __forceinline__ void store(uint4* to, const uint4& w) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(w.x), "r"(w.y), "r"(w.z),
                 "r"(w.w)
                 : "memory");
}
}  // namespace detail

// The unsigned type, scalar or vector, of as many bytes as T: 1, 2, 4, 8 or 16.
template <class T>
using Word = typename detail::WordOf<sizeof(T)>::type;

// One load or store instruction of sizeof(T) bytes; `address` is a multiple of sizeof(T).
template <Cache kCache = Cache::keep, class T>
__device__ __forceinline__ T load_global(const T* address) {
    static_assert(std::is_trivially_copyable<T>::value, "T is moved as bits");
    const Word<T>* words = reinterpret_cast<const Word<T>*>(address);
    Word<T> word;
    if constexpr (kCache == Cache::read_only) {
        word = __ldg(words);
    } else if constexpr (kCache == Cache::once) {
        word = __ldcs(words);
    } else {
        detail::load(word, words);
    }
    T value;
    memcpy(&value, &word, sizeof value);
    return value;
}

template <Cache kCache = Cache::keep, class T>
__device__ __forceinline__ void store_global(T* address, const T& value) {
    static_assert(std::is_trivially_copyable<T>::value, "T is moved as bits");
    static_assert(kCache != Cache::read_only, "a store is not a read");
    Word<T> word;
    memcpy(&word, &value, sizeof word);
    Word<T>* words = reinterpret_cast<Word<T>*>(address);
    if constexpr (kCache == Cache::once) {
        __stcs(words, word);
    } else {
        detail::store(words, word);
    }
}

// A store of 16, 8 or 4 bytes in the lanes where `wanted` is true: one instruction under a
// predicate, where an if would be a branch.
template <class T>
__device__ __forceinline__ void store_global_if(bool wanted, T* address, const T& value) {
    static_assert(std::is_trivially_copyable<T>::value, "T is moved as bits");
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "");
    uint32_t w[sizeof(T) / 4];
    memcpy(w, &value, sizeof value);
    const uint32_t condition = wanted;
    if constexpr (sizeof(T) == 16) {
        asm volatile(
            "{ .reg .pred p; setp.ne.u32 p, %5, 0; @p st.global.v4.u32 [%0], {%1, %2, %3, %4}; }" ::
                "l"(address),
            "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(condition)
            : "memory");
    } else if constexpr (sizeof(T) == 8) {
        asm volatile(
            "{ .reg .pred p; setp.ne.u32 p, %3, 0; @p st.global.v2.u32 [%0], {%1, %2}; }" ::"l"(
                address),
            "r"(w[0]), "r"(w[1]), "r"(condition)
            : "memory");
    } else {
        asm volatile(
            "{ .reg .pred p; setp.ne.u32 p, %2, 0; @p st.global.u32 [%0], %1; }" ::"l"(address),
            "r"(w[0]), "r"(condition)
            : "memory");
    }
}

// The same for shared memory.
template <class T>
__device__ __forceinline__ T load_shared(const T* address) {
    static_assert(std::is_trivially_copyable<T>::value, "T is moved as bits");
    const Word<T> word = *reinterpret_cast<const Word<T>*>(address);
    T value;
    memcpy(&value, &word, sizeof value);
    return value;
}
template <class T>
__device__ __forceinline__ void store_shared(T* address, const T& value) {
    static_assert(std::is_trivially_copyable<T>::value, "T is moved as bits");
    Word<T> word;
    memcpy(&word, &value, sizeof word);
    *reinterpret_cast<Word<T>*>(address) = word;
}

// Of the special-function unit, relative error about 2^-22; subnormals may become zero.
__device__ __forceinline__ float reciprocal_approx(float a) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
    return r;
}
__device__ __forceinline__ float reciprocal_sqrt_approx(float a) {
    float r;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
    return r;
}
__device__ __forceinline__ float exp2_approx(float a) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
    return r;
}
__device__ __forceinline__ float log2_approx(float a) {
    float r;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
    return r;
}

// ldmatrix: kMatrices (1, 2 or 4) 8x8 matrices of 16-bit elements, read by the whole warp. Lane
// 8*m + i gives the address of row i of matrix m (16 bytes, aligned to 16); with fewer than four
// matrices the other lanes' addresses are not used. Lane l receives in matrices[m] the elements
// (row l/4, columns 2*(l%4) and +1, the first in the low half), or of the transposed matrix.
template <bool kTransposed = false, int kMatrices>
__device__ __forceinline__ void ldmatrix(uint32_t (&matrices)[kMatrices], const void* row) {
    static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4, "ldmatrix has x1, x2 and x4");
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    uint32_t (&m)[kMatrices] = matrices;
    if constexpr (kMatrices == 1 && !kTransposed) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                     : "=r"(m[0])
                     : "r"(address)
                     : "memory");
    } else if constexpr (kMatrices == 1) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                     : "=r"(m[0])
                     : "r"(address)
                     : "memory");
    } else if constexpr (kMatrices == 2 && !kTransposed) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(m[0]), "=r"(m[1])
                     : "r"(address)
                     : "memory");
    } else if constexpr (kMatrices == 2) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(m[0]), "=r"(m[1])
                     : "r"(address)
                     : "memory");
    } else if constexpr (!kTransposed) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                     : "r"(address)
                     : "memory");
    }
}

// mma.sync m16n8k16, row.col: d += a b in float32, with a 16x16, b 16x8, d 16x8; Half is __half or
// __nv_bfloat16. With g = lane / 4 and t = lane % 4 the lane holds, two 16-bit elements a register,
// the lower column (of a) or row (of b) in the low half,
//   a[0]: row g,     columns 2t, 2t+1     a[2]: row g,     columns 2t+8, 2t+9
//   a[1]: row g + 8, columns 2t, 2t+1     a[3]: row g + 8, columns 2t+8, 2t+9
//   b[0]: rows 2t, 2t+1, column g         b[1]: rows 2t+8, 2t+9, column g
//   d[0], d[1]: row g, columns 2t, 2t+1   d[2], d[3]: row g + 8, the same columns
template <class Half>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
    static_assert(std::is_same<Half, __half>::value || std::is_same<Half, __nv_bfloat16>::value,
                  "Half is __half or __nv_bfloat16");
    if constexpr (std::is_same<Half, __half>::value) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
}

// mma.sync m16n8k8: the same with a 16x8 and b 8x8, for the odd eight columns of a head.
//   a[0]: row g, columns 2t, 2t+1   a[1]: row g + 8, the same columns   b: rows 2t, 2t+1, column g
template <class Half>
__device__ __forceinline__ void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], uint32_t b) {
    static_assert(std::is_same<Half, __half>::value || std::is_same<Half, __nv_bfloat16>::value,
                  "Half is __half or __nv_bfloat16");
    if constexpr (std::is_same<Half, __half>::value) {
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(b));
    } else {
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
            "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(b));
    }
}

// Two floats to a register of two Halfs, to nearest even, `low` in the low half.
template <class Half>
__device__ __forceinline__ uint32_t pack(float low, float high) {
    uint32_t word;
    if constexpr (std::is_same<Half, __half>::value) {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    }
    return word;
}

template <class Half>
__device__ __forceinline__ float low_half(uint32_t pair) {
    if constexpr (std::is_same<Half, __half>::value) {
        return __half2float(__ushort_as_half(static_cast<unsigned short>(pair)));
    } else {
        return __uint_as_float(pair << 16);
    }
}
template <class Half>
__device__ __forceinline__ float high_half(uint32_t pair) {
    if constexpr (std::is_same<Half, __half>::value) {
        return __half2float(__ushort_as_half(static_cast<unsigned short>(pair >> 16)));
    } else {
        return __uint_as_float(pair & 0xffff0000u);
    }
}

// The products of two float16 in each of a and b.
__device__ __forceinline__ uint32_t multiply_float16(uint32_t a, uint32_t b) {
    uint32_t product;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
}

// cp.async: kBytes (4, 8 or 16) from global to shared memory without passing a register; only the
// first source_bytes are read, the rest becomes zero. Both addresses are multiples of kBytes. The
// data may be read by this thread after cp_async_wait, by others after a barrier behind that.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global,
                                         int source_bytes = kBytes) {
    static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    if constexpr (kBytes == 16) {  // past the first-level cache
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
                     "r"(source_bytes)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(global),
                     "n"(kBytes), "r"(source_bytes)
                     : "memory");
    }
}
// Closes the group of the copies that this thread started since the last commit.
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most kPending of this thread's groups, the newest, are still under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace udp

#endif
