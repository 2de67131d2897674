// The way of an operand from memory into a thread's float32 registers and back.
//
// A thread works on a group of elements at a time, as many as fill 16-byte accesses of the narrower
// operands. Where the group lies is said by one of
//   Full       a run in memory, aligned: wide accesses
//   Part       a run of fewer elements, or not aligned: one access an element
//   Scattered  neighbouring pixels of a channel, found by their stride
#pragma once

#include "../math/half.h"
#include "instructions.cuh"
#include "ops.h"

namespace udp {

// In place of an element type: known only at run time, one of the floats, or a byte too. Serves the
// uncommon combinations of types, which would otherwise multiply the kernels.
template <bool kBytes>
struct Any {};
using AnyFloat = Any<false>;
using AnyPixel = Any<true>;
template <class T>
constexpr bool is_any = false;
template <bool kBytes>
inline constexpr bool is_any<Any<kBytes>> = true;

template <class T>
constexpr DType kTypeOf = DType::uint8;
template <>
inline constexpr DType kTypeOf<float> = DType::float32;
template <>
inline constexpr DType kTypeOf<Float16> = DType::float16;
template <>
inline constexpr DType kTypeOf<BFloat16> = DType::bfloat16;

__host__ __device__ inline int size_of(DType type) {
    return type == DType::float32 ? 4 : type == DType::uint8 ? 1 : 2;
}

// body(T{}) for the element type that `type` names.
template <bool kBytes, class Body>
__device__ __forceinline__ void with_type(DType type, Body body) {
    switch (type) {
        case DType::float32:
            return body(float{});
        case DType::float16:
            return body(Float16{});
        case DType::bfloat16:
            return body(BFloat16{});
        case DType::uint8:
            if constexpr (kBytes) body(uint8_t{});
    }
}

// On the host, of the types that an op's floats may have: what body(T{}) returns.
template <class Body>
int with_float_type(DType type, Body body) {
    switch (type) {
        case DType::float32:
            return body(float{});
        case DType::float16:
            return body(Float16{});
        case DType::bfloat16:
            return body(BFloat16{});
        case DType::uint8:
            break;
    }
    return cudaErrorInvalidValue;
}

// --- places --------------------------------------------------------------------------------------

// `first`: in elements from where the rows have been moved to.
struct Full {
    uint32_t first;
};
struct Part {
    uint32_t first;
    int count;
};
struct Scattered {
    int64_t first;  // pixel
    int count;
};

// Keeps the compiler from forming an address again from its parts in every round of a loop.
template <class T>
__device__ __forceinline__ T* kept(T* address) {
#ifdef __CUDA_ARCH__
    size_t global = __cvta_generic_to_global(address);
    asm volatile("" : "+l"(global));
    return static_cast<T*>(__cvta_global_to_generic(global));
#else
    return address;
#endif
}

// One row of an operand: an image, or a channel of one.
template <class T>
struct Row {
    T* data;        // null: absent
    int64_t pixel;  // stride, for Scattered

    Row() = default;
    __device__ Row(const Tensor& t, int64_t at_image, int64_t at_channel)
        : data(static_cast<T*>(t.data)), pixel(t.pixel) {
        if (data != nullptr) data += at_image * t.image + at_channel * t.channel;
    }
    __device__ void move(int64_t elements) {
        if (data != nullptr) data = kept(data + elements);
    }
    __device__ explicit operator bool() const { return data != nullptr; }
    // body(a row of a known type)
    template <class Body>
    __device__ __forceinline__ void typed(Body body) const {
        body(*this);
    }
};

template <bool kBytes>
struct Row<Any<kBytes>> {
    char* data;
    DType type;
    int64_t pixel;

    Row() = default;
    __device__ Row(const Tensor& t, int64_t at_image, int64_t at_channel)
        : data(static_cast<char*>(t.data)), type(t.type), pixel(t.pixel) {
        if (data != nullptr) data += (at_image * t.image + at_channel * t.channel) * size_of(type);
    }
    __device__ void move(int64_t elements) {
        if (data != nullptr) data = kept(data + elements * size_of(type));
    }
    __device__ explicit operator bool() const { return data != nullptr; }
    template <class Body>
    __device__ __forceinline__ void typed(Body body) const {
        with_type<kBytes>(type, [&](auto element) {
            Row<decltype(element)> row;
            row.data = reinterpret_cast<decltype(element)*>(data);
            row.pixel = pixel;
            body(row);
        });
    }
};

// --- conversions ---------------------------------------------------------------------------------

__device__ __forceinline__ float widened(float a) {
    return a;
}
__device__ __forceinline__ float widened(uint8_t a) {
    return to_float(uint32_t{a});
}
__device__ __forceinline__ float widened(BFloat16 a) {
    return from_bfloat16_bits<float, uint32_t>(a.bits);
}
__device__ __forceinline__ float widened(Float16 a) {
#ifdef __CUDA_ARCH__
    return __half2float(__ushort_as_half(a.bits));
#else
    return from_float16_bits<float, uint32_t>(a.bits);
#endif
}

// Two floats as 16-bit ones, a in the low half: one instruction on a GPU.
template <class T>
__device__ __forceinline__ uint32_t packed(float a, float b);
template <>
__device__ __forceinline__ uint32_t packed<BFloat16>(float a, float b) {
#ifdef __CUDA_ARCH__
    const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
    return reinterpret_cast<const uint32_t&>(pair);
#else
    return bfloat16_bits<float, uint32_t>(a) | bfloat16_bits<float, uint32_t>(b) << 16;
#endif
}
template <>
__device__ __forceinline__ uint32_t packed<Float16>(float a, float b) {
#ifdef __CUDA_ARCH__
    const __half2 pair = __floats2half2_rn(a, b);
    return reinterpret_cast<const uint32_t&>(pair);
#else
    return float16_bits<float, uint32_t>(a) | float16_bits<float, uint32_t>(b) << 16;
#endif
}

template <class T>
__device__ __forceinline__ T narrowed(float a) {
    return {static_cast<uint16_t>(packed<T>(a, 0.0f))};
}
template <>
__device__ __forceinline__ float narrowed<float>(float a) {
    return a;
}
// Of numbers in [0, 255]: adding 2^23 leaves the nearest whole one in the low bits, without the
// conversion unit.
template <>
__device__ __forceinline__ uint8_t narrowed<uint8_t>(float a) {
    return static_cast<uint8_t>(as_uint(a + 0x1p23f));
}

template <class T>
__device__ __forceinline__ void unpack(uint32_t word, float (&out)[4 / sizeof(T)]) {
    if constexpr (sizeof(T) == 4) {
        out[0] = as_float(word);
    } else if constexpr (sizeof(T) == 2) {
        out[0] = widened(T{static_cast<uint16_t>(word)});
        out[1] = widened(T{static_cast<uint16_t>(word >> 16)});
    } else {
        for (int k = 0; k < 4; ++k) out[k] = widened(static_cast<uint8_t>(word >> 8 * k));
    }
}
template <class T>
__device__ __forceinline__ uint32_t pack(const float (&in)[4 / sizeof(T)]) {
    if constexpr (sizeof(T) == 4) {
        return as_uint(in[0]);
    } else if constexpr (sizeof(T) == 2) {
        return packed<T>(in[0], in[1]);
    } else {
        uint32_t word = 0;
        for (int k = 0; k < 4; ++k) word |= uint32_t{narrowed<uint8_t>(in[k])} << 8 * k;
        return word;
    }
}

// --- loads and stores ----------------------------------------------------------------------------

template <int kWords>
struct alignas(4 * kWords) Words {
    uint32_t word[kWords];
};

// N elements of T are moved in pieces of 16 bytes, else of 8 or 4.
template <class T, int N>
struct Pieces {
    static constexpr int kWordsEach = N * sizeof(T) % 16 == 0 ? 4 : N * sizeof(T) % 8 == 0 ? 2 : 1;
    static constexpr int kCount = N * sizeof(T) / (4 * kWordsEach);
    static constexpr int kPerWord = 4 / sizeof(T);
    using Piece = Words<kWordsEach>;
    static_assert(kCount * kWordsEach * kPerWord == N, "a group is a whole number of pieces");
};

template <Cache kCache, class T, int N>
__device__ __forceinline__ void load_typed(const Row<T>& row, Full at, float (&out)[N]) {
    using P = Pieces<T, N>;
    const auto* pieces = reinterpret_cast<const typename P::Piece*>(row.data + at.first);
#pragma unroll
    for (int j = 0; j < P::kCount; ++j) {
        const typename P::Piece piece = load_global<kCache>(pieces + j);
#pragma unroll
        for (int w = 0; w < P::kWordsEach; ++w) {
            float values[P::kPerWord];
            unpack<T>(piece.word[w], values);
            for (int k = 0; k < P::kPerWord; ++k) {
                out[(j * P::kWordsEach + w) * P::kPerWord + k] = values[k];
            }
        }
    }
}
template <class T, int N>
__device__ __forceinline__ void store_typed(const Row<T>& row, Full at, const float (&in)[N]) {
    using P = Pieces<T, N>;
    auto* pieces = reinterpret_cast<typename P::Piece*>(row.data + at.first);
#pragma unroll
    for (int j = 0; j < P::kCount; ++j) {
        typename P::Piece piece;
#pragma unroll
        for (int w = 0; w < P::kWordsEach; ++w) {
            float values[P::kPerWord];
            for (int k = 0; k < P::kPerWord; ++k) {
                values[k] = in[(j * P::kWordsEach + w) * P::kPerWord + k];
            }
            piece.word[w] = pack<T>(values);
        }
        store_global(pieces + j, piece);
    }
}

// body(k, address) for the elements of a group that exist.
template <int N, class T, class Body>
__device__ __forceinline__ void for_elements(const Row<T>& row, Part at, Body body) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
        if (k < at.count) body(k, row.data + at.first + k);
    }
}
template <int N, class T, class Body>
__device__ __forceinline__ void for_elements(const Row<T>& row, Scattered at, Body body) {
    T* first = row.data + at.first * row.pixel;
#pragma unroll
    for (int k = 0; k < N; ++k) {
        if (k < at.count) body(k, first + k * row.pixel);
    }
}

template <Cache kCache, class T, class At, int N>
__device__ __forceinline__ void load_typed(const Row<T>& row, At at, float (&out)[N]) {
#pragma unroll
    for (int k = 0; k < N; ++k) out[k] = 0.0f;  // what does not exist
    for_elements<N>(row, at, [&](int k, const T* p) { out[k] = widened(load_global<kCache>(p)); });
}
template <class T, class At, int N>
__device__ __forceinline__ void store_typed(const Row<T>& row, At at, const float (&in)[N]) {
    for_elements<N>(row, at, [&](int k, T* p) { store_global(p, narrowed<T>(in[k])); });
}

template <Cache kCache, class T, class At, int N>
__device__ __forceinline__ void load(const Row<T>& row, At at, float (&out)[N]) {
    row.typed([&](const auto& typed) { load_typed<kCache>(typed, at, out); });
}
template <class T, class At, int N>
__device__ __forceinline__ void store(const Row<T>& row, At at, const float (&in)[N]) {
    row.typed([&](const auto& typed) { store_typed(typed, at, in); });
}

// Whether Full groups of N are possible from an element of the row on; so they are where it is
// absent.
template <int N, class T>
__device__ __forceinline__ bool is_aligned(const Row<T>& row, int64_t first) {
    return reinterpret_cast<uintptr_t>(row.data + first) % sizeof(typename Pieces<T, N>::Piece) ==
               0 ||
           row.data == nullptr;
}
template <int N, bool kBytes>
__device__ __forceinline__ bool is_aligned(const Row<Any<kBytes>>& row, int64_t first) {
    bool aligned = true;
    row.typed([&](const auto& typed) { aligned = is_aligned<N>(typed, first); });
    return aligned;
}

// v becomes what it will be when it has been stored in the row and read again.
template <class T, int N>
__device__ __forceinline__ void round_as_stored(const Row<T>&, float (&v)[N]) {
    if constexpr (sizeof(T) == 2) {
#pragma unroll
        for (int k = 0; k < N; k += 2) {
            float pair[2];
            unpack<T>(packed<T>(v[k], v[k + 1]), pair);
            v[k] = pair[0];
            v[k + 1] = pair[1];
        }
    }
}
template <bool kBytes, int N>
__device__ __forceinline__ void round_as_stored(const Row<Any<kBytes>>& row, float (&v)[N]) {
    row.typed([&](const auto& typed) { round_as_stored(typed, v); });
}

}  // namespace udp
