// A row's noise, drawn into the first cache. The index of an element is its logical one, channel *
// pixels + pixel, whatever the memory order.
#pragma once

#include "../math/normal.h"
#include "rows.h"

namespace udp {
namespace UDP_ISA {
namespace {

// Philox runs on kGroups groups of sixteen blocks at once; a group makes 64 elements. A row may
// begin within a block and end within a group.
constexpr int64_t kDrawn = 64 * kGroups;
struct alignas(64) NoiseBuffer {
    float data[kRow + 2 * kDrawn];
};

struct Normals {
    UDP_HD void from_words(const U (&w)[4], F (&n)[4]) {
        normal_pair(w[0], w[1], n[0], n[1]);
        normal_pair(w[2], w[3], n[2], n[3]);
    }
};
struct Uniforms {
    UDP_HD void from_words(const U (&w)[4], F (&u)[4]) {
        for (int k = 0; k < 4; ++k) u[k] = uniform<F, U>(w[k]);
    }
};

// The words of `n` elements, from `block` on.
UDP_NOINLINE void draw_words(const NoiseStream& stream, uint32_t block, int64_t n, float* buffer) {
    for (int64_t i = 0; i < n; i += kDrawn, block += 16 * kGroups) {
        U w[kGroups][4];
        philox(block, stream, w);
        for (int k = 0; k < 4 * kGroups; ++k) {
            store16(buffer + i + 16 * k, as_float(w[k / 4][k % 4]));
        }
    }
}
// Words to numbers, in place.
template <class Draw>
UDP_NOINLINE void from_words(int64_t n, float* buffer) {
    for (int64_t i = 0; i < n; i += 64) {
        U w[4];
        F numbers[4];
        for (int k = 0; k < 4; ++k) w[k] = as_uint(load16(buffer + i + 16 * k));
        Draw::from_words(w, numbers);
        interleave4(numbers, buffer + i);
    }
}

// n <= kRow elements from `first` on; returns where the first of them lies. Words first, then
// numbers: two loops, because each is a long chain of dependent instructions, and a processor
// overlaps the more iterations the shorter they are. Two functions, because either needs all
// registers and would lose some to whatever it is inlined into.
template <class Draw>
UDP_HD const float* draw_run(const NoiseStream& stream, int64_t first, int64_t n, float* buffer) {
    const int64_t skip = first % 4;
    draw_words(stream, static_cast<uint32_t>(first / 4), skip + n, buffer);
    from_words<Draw>(skip + n, buffer);
    return buffer + skip;
}

template <class Draw>
UDP_HD const float* draw(const NoiseKey& key, const Plan& plan, const Row& row, NoiseBuffer& buffer,
                         Buffer& interleaved) {
    const NoiseStream stream(key);
    if (!row.interleaved) {
        const int64_t first = row.channel * plan.shape.pixels + row.pixel;
        return draw_run<Draw>(stream, first, row.inner, buffer.data);
    }
    for (int64_t c = 0; c < row.inner; ++c) {
        const int64_t first = (row.channel + c) * plan.shape.pixels + row.pixel;
        const float* run = draw_run<Draw>(stream, first, row.outer, buffer.data);
        for (int64_t p = 0; p < row.outer; ++p) interleaved.data[p * row.inner + c] = run[p];
    }
    return interleaved.data;
}

// Given noise, or drawn.
const float* noise_row(const Operand& given, const NoiseKey* keys, const Plan& plan, const Row& row,
                       NoiseBuffer& buffer, Buffer& converted) {
    if (given.data != nullptr) return read(given, row, converted);
    return draw<Normals>(keys[row.image], plan, row, buffer, converted);
}

}  // namespace
}  // namespace UDP_ISA
}  // namespace udp
