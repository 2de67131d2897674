// A row's noise, drawn into the first cache. The index of an element is its logical one, channel *
// pixels + pixel, whatever the memory order.
#pragma once

#include "../math/normal.h"
#include "rows.h"

namespace udp {
namespace UDP_ISA {
namespace {

// Sixteen blocks make 64 elements; a row may begin within a block.
struct alignas(64) NoiseBuffer {
    float data[kRow + 2 * 64];
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

// n <= kRow elements from `first` on; returns where the first of them lies. Words first, then
// numbers in their place: two loops, because each is a long chain of dependent instructions, and a
// processor overlaps the more iterations the shorter they are.
template <class Draw>
UDP_HD const float* draw_run(const NoiseKey& key, int64_t first, int64_t n, float* buffer) {
    const int64_t skip = first % 4, end = skip + n;
    const NoiseStream stream(key);
    uint32_t block = static_cast<uint32_t>(first / 4);
    for (int64_t i = 0; i < end; i += 64, block += 16) {
        U w[4];
        philox16(block, stream, w);
        for (int k = 0; k < 4; ++k) store16(buffer + i + 16 * k, as_float(w[k]));
    }
    for (int64_t i = 0; i < end; i += 64) {
        U w[4];
        F numbers[4];
        for (int k = 0; k < 4; ++k) w[k] = as_uint(load16(buffer + i + 16 * k));
        Draw::from_words(w, numbers);
        interleave4(numbers, buffer + i);
    }
    return buffer + skip;
}

template <class Draw>
UDP_HD const float* draw(const NoiseKey& key, const Plan& plan, const Row& row, NoiseBuffer& buffer,
                         Buffer& interleaved) {
    if (!row.interleaved) {
        const int64_t first = row.channel * plan.shape.pixels + row.pixel;
        return draw_run<Draw>(key, first, row.inner, buffer.data);
    }
    for (int64_t c = 0; c < row.inner; ++c) {
        const int64_t first = (row.channel + c) * plan.shape.pixels + row.pixel;
        const float* run = draw_run<Draw>(key, first, row.outer, buffer.data);
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
