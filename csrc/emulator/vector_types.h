// CUDA's built-in vectors, with CUDA's alignments, and dim3.
#pragma once

#define UDP_VECTOR(name, scalar, align2, align4)                               \
    struct name##1 {                                                           \
        scalar x;                                                              \
    };                                                                         \
    struct alignas(align2) name##2 {                                           \
        scalar x, y;                                                           \
    };                                                                         \
    struct name##3 {                                                           \
        scalar x, y, z;                                                        \
    };                                                                         \
    struct alignas(align4) name##4 {                                           \
        scalar x, y, z, w;                                                     \
    };                                                                         \
    constexpr name##1 make_##name##1(scalar x) {                               \
        return {x};                                                            \
    }                                                                          \
    constexpr name##2 make_##name##2(scalar x, scalar y) {                     \
        return {x, y};                                                         \
    }                                                                          \
    constexpr name##3 make_##name##3(scalar x, scalar y, scalar z) {           \
        return {x, y, z};                                                      \
    }                                                                          \
    constexpr name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { \
        return {x, y, z, w};                                                   \
    }

UDP_VECTOR(char, signed char, 2, 4)
UDP_VECTOR(uchar, unsigned char, 2, 4)
UDP_VECTOR(short, short, 4, 8)
UDP_VECTOR(ushort, unsigned short, 4, 8)
UDP_VECTOR(int, int, 8, 16)
UDP_VECTOR(uint, unsigned int, 8, 16)
UDP_VECTOR(long, long, 16, 16)
UDP_VECTOR(ulong, unsigned long, 16, 16)
UDP_VECTOR(longlong, long long, 16, 16)
UDP_VECTOR(ulonglong, unsigned long long, 16, 16)
UDP_VECTOR(float, float, 8, 16)
UDP_VECTOR(double, double, 16, 16)
#undef UDP_VECTOR

struct dim3 {
    unsigned int x, y, z;
    constexpr dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return {x, y, z}; }
};
