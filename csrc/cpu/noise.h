// A row's noise, drawn into the first cache. The index of an element is its logical one, channel *
// pixels + pixel, whatever the memory order.
#pragma once

#include "../math/normal.h"
#include "rows.h"
#include "unrolled.h"

namespace udp {
namespace UDP_ISA {
namespace {

// Philox runs on kGroups groups of sixteen blocks at once; a group makes 64 elements. A row may
// begin within a block and end within a group.
constexpr int64_t kDrawn = 64 * kGroups;
struct alignas(64) NoiseBuffer {
    float data[kRow + 2 * kDrawn];
};

// What is read after a row's noise. Drawing touches no memory but its buffer's, so this is fetched
// meanwhile.
struct Next {
    const char* data = nullptr;
    int64_t size = 0;  // of an element, in bytes; 0: nothing
};
Next next_of(const Operand& o, const Row& row) {
    const Place place = locate(o, row);
    return place.dense(row) ? Next{place.data, size_of(o.type)} : Next{};
}

// Words first, then numbers, in loops of their own: each is a long chain of dependent instructions,
// and a processor overlaps the more iterations the shorter they are. In functions of their own:
// each needs all registers and would lose some to whatever it is inlined into.

// The words of `n` elements, from `block` on.
UDP_NOINLINE void draw_words(const NoiseStream& stream, uint32_t block, int64_t n, float* buffer,
                             const Next next) {
    for (int64_t i = 0; i < n; i += kDrawn, block += 16 * kGroups) {
        for (int64_t b = 0; b < kDrawn * next.size; b += 64) fetch(next.data + i * next.size + b);
        U w[kGroups][4];
        philox(block, stream, w);
        unrolled<4 * kGroups>(
            [&](auto k) UDP_INLINED { store16(buffer + i + 16 * k, as_float(w[k / 4][k % 4])); });
    }
}

// Words to numbers, in place.
struct Uniforms {
    UDP_NOINLINE void from_words(int64_t n, float* buffer) {
        for (int64_t i = 0; i < n; i += 64) {
            F u[4];
            unrolled<4>([&](auto k) UDP_INLINED {
                u[k] = uniform<F, U>(as_uint(load16(buffer + i + 16 * k)));
            });
            interleave4(u, buffer + i);
        }
    }
};
struct Normals {
    // Of the first of each two words.
    UDP_NOINLINE void to_radii(int64_t n, float* buffer) {
        for (int64_t i = 0; i < n; i += 64) {
            for (float* word = buffer + i; word < buffer + i + 64; word += 32) {
                store16(word, radius_squared<F, U>(as_uint(load16(word))));
            }
        }
    }
    UDP_NOINLINE void from_words(int64_t n, float* buffer) {
        to_radii(n, buffer);
        for (int64_t i = 0; i < n; i += 64) {
            F normals[4];
            unrolled<2>([&](auto k) UDP_INLINED {
                const float* pair = buffer + i + 32 * k;
                rotate(load16(pair), as_uint(load16(pair + 16)), normals[2 * k],
                       normals[2 * k + 1]);
            });
            interleave4(normals, buffer + i);
        }
    }
};

// n <= kRow elements from `first` on; returns where the first of them lies.
template <class Draw>
UDP_HD const float* draw_run(const NoiseStream& stream, int64_t first, int64_t n, float* buffer,
                             const Next next) {
    const int64_t skip = first % 4;
    draw_words(stream, static_cast<uint32_t>(first / 4), skip + n, buffer, next);
    Draw::from_words(skip + n, buffer);
    return buffer + skip;
}

template <class Draw>
UDP_HD const float* draw(const NoiseKey& key, const Plan& plan, const Row& row, NoiseBuffer& buffer,
                         Buffer& interleaved, const Operand& next) {
    const NoiseStream stream(key);
    if (!row.interleaved) {
        const int64_t first = row.channel * plan.shape.pixels + row.pixel;
        return draw_run<Draw>(stream, first, row.inner, buffer.data, next_of(next, row));
    }
    for (int64_t c = 0; c < row.inner; ++c) {
        const int64_t first = (row.channel + c) * plan.shape.pixels + row.pixel;
        const float* run = draw_run<Draw>(stream, first, row.outer, buffer.data, Next{});
        for (int64_t p = 0; p < row.outer; ++p) interleaved.data[p * row.inner + c] = run[p];
    }
    return interleaved.data;
}

// Given noise, or drawn, while `next` is fetched.
const float* noise_row(const Operand& given, const NoiseKey* keys, const Plan& plan, const Row& row,
                       NoiseBuffer& buffer, Buffer& converted, const Operand& next) {
    if (given.data != nullptr) return read(given, row, converted);
    return draw<Normals>(keys[row.image], plan, row, buffer, converted, next);
}

}  // namespace
}  // namespace UDP_ISA
}  // namespace udp
