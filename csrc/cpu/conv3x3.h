// conv3x3: by Winograd's F(4x4, 3x3), see ../math/winograd.h.
//
// The 6x6 tiles of a band (launch.cpp) are transformed once, into 36 matrices [tiles, in]. Then 32
// output channels at a time: their taps are transformed, a stretch of input channels at a time so
// that they stay in the second-level cache, multiplied with the 36 matrices, and the products
// transformed into results. Taps are never stored for longer, so nothing can go stale when the
// weights change.
#pragma once

#include "../math/winograd.h"
#include "product.h"
#include "rows.h"
#include "unrolled.h"

namespace udp {
namespace UDP_ISA {
namespace {

// A tile's pixels, null where the image has ended and zeros stand.
struct Window {
    const float* pixel[6][6];
};

UDP_HD void conv_transform_tile(const Conv3x3& a, const Window& window, float* out) {
    for (int64_t c = 0; c < a.in; c += 16) {
        F half[6][6];
        unrolled<6>([&](auto j) UDP_INLINED {
            const auto at = [&](int i) UDP_INLINED {
                const float* p = window.pixel[i][j];
                return p == nullptr ? F(0.0f) : load_some(p + c, a.in - c);
            };
            const F d[6] = {at(0), at(1), at(2), at(3), at(4), at(5)};
            winograd_input(d, [&](int i, const F& v) UDP_INLINED { half[i][j] = v; });
        });
        unrolled<6>([&](auto i) UDP_INLINED {
            winograd_input(half[i], [&](int j, const F& v) UDP_INLINED {
                store16(out + (6 * i + j) * a.tiles_slice + c, v);
            });
        });
    }
}

// The tiles of one row of them (counted through all images) into place `local` of the band.
void conv_tiles(const Conv3x3& a, int64_t row, int64_t local) {
    const int64_t top = row % a.tile_rows * 4 - 1;
    const float* image = a.x + row / a.tile_rows * a.x_image;
    for (int64_t column = 0; column < a.tile_columns; ++column) {
        const int64_t left = column * 4 - 1;
        Window window;
        for (int i = 0; i < 6; ++i) {
            for (int j = 0; j < 6; ++j) {
                const int64_t y = top + i, x = left + j;
                const bool inside = y >= 0 && y < a.height && x >= 0 && x < a.width;
                window.pixel[i][j] = inside ? image + y * a.x_row + x * a.x_pixel : nullptr;
            }
        }
        conv_transform_tile(a, window, a.tiles + (local * a.tile_columns + column) * a.tiles_pitch);
    }
}

// Taps of the output channels first .. first + 31 and `depth` input channels from c0 on,
// transformed: [36][panels][kConvDepth][kGemmLanes * 16], slices kConvTapsSlice apart.
constexpr int kConvPanels = 2 / kGemmLanes, kConvPanel = 16 * kGemmLanes;

// Nine neighbours of each of `rows` rows, in reverse order if kFlipped; zeros for the rows after.
template <bool kFlipped>
UDP_HD void load_taps(const float* p, int64_t stride, int64_t rows, F (&taps)[9]) {
    F found[12];
    if (rows >= 16) {
        load_columns4(p, stride, found);
        load_columns4(p + 4, stride, found + 4);
        load_columns4(p + 5, stride, found + 8);  // of which the last: nothing past the end is read
        found[8] = found[11];
    } else {
        float values[9][16] = {};
        for (int64_t row = 0; row < rows; ++row) {
            for (int tap = 0; tap < 9; ++tap) values[tap][row] = p[row * stride + tap];
        }
        for (int tap = 0; tap < 9; ++tap) found[tap] = load16(values[tap]);
    }
    unrolled<9>([&](auto tap) UDP_INLINED { taps[tap] = found[kFlipped ? 8 - tap : tap]; });
}

template <bool kFlipped>
UDP_HD void conv_taps_of(const Conv3x3& a, int64_t first, int64_t c0, int64_t depth, float* out) {
    for (int half = 0; half < 2; ++half) {
        const int64_t k0 = first + 16 * half;
        const float* w = a.weight + k0 * a.out_stride + c0 * a.in_stride;
        float* to = out + (kGemmLanes == 2 ? 16 * half : half * kConvDepth * kConvPanel);
        for (int64_t c = 0; c < depth; ++c, w += a.in_stride, to += kConvPanel) {
            F g[9], columns[6][3];
            load_taps<kFlipped>(w, a.out_stride, a.out - k0, g);
            unrolled<3>([&](auto j) UDP_INLINED {
                const F column[3] = {g[j], g[3 + j], g[6 + j]};
                winograd_taps(column, [&](int i, const F& u) UDP_INLINED { columns[i][j] = u; });
            });
            unrolled<6>([&](auto i) UDP_INLINED {
                winograd_taps(columns[i], [&](int j, const F& u) UDP_INLINED {
                    store16(to + (6 * i + j) * kConvTapsSlice, u);
                });
            });
        }
    }
}

UDP_NOINLINE void conv_taps(const Conv3x3& a, int64_t first, int64_t c0, int64_t depth,
                            float* out) {
    choose(a.flipped, [&](auto flipped) UDP_INLINED {
        conv_taps_of<decltype(flipped)::value>(a, first, c0, depth, out);
    });
}

// to[R][kConvPanel] (+)= tiles[R][depth] taps[depth][kConvPanel]
template <int R>
UDP_HD void conv_multiply_rows(const float* tiles, int64_t pitch, const float* taps, int64_t depth,
                               float* to, bool add) {
    F sum[R][kGemmLanes];
    UDP_UNROLL for (int r = 0; r < R; ++r) {
        UDP_UNROLL for (int l = 0; l < kGemmLanes; ++l) {
            sum[r][l] = add ? load16(to + r * kConvBlock + 16 * l) : F(0.0f);
        }
    }
    for (int64_t c = 0; c < depth; ++c) {
        F tap[kGemmLanes];
        UDP_UNROLL for (int l = 0; l < kGemmLanes; ++l) tap[l] =
            load16(taps + c * kConvPanel + 16 * l);
        UDP_UNROLL for (int r = 0; r < R; ++r) {
            const F value(tiles[r * pitch + c]);
            UDP_UNROLL for (int l = 0; l < kGemmLanes; ++l) sum[r][l] =
                fma(value, tap[l], sum[r][l]);
        }
    }
    UDP_UNROLL for (int r = 0; r < R; ++r) {
        UDP_UNROLL for (int l = 0; l < kGemmLanes; ++l)
            store16(to + r * kConvBlock + 16 * l, sum[r][l]);
    }
}

// As many rows as kGemmRows at once, what is left by the same code for fewer.
template <int R>
UDP_HD void conv_multiply_last(int64_t rows, const float* tiles, int64_t pitch, const float* taps,
                               int64_t depth, float* to, bool add) {
    if constexpr (R > 0) {
        if (rows == R) return conv_multiply_rows<R>(tiles, pitch, taps, depth, to, add);
        conv_multiply_last<R - 1>(rows, tiles, pitch, taps, depth, to, add);
    }
}

UDP_NOINLINE void conv_multiply(int64_t rows, const float* tiles, int64_t pitch, const float* taps,
                                int64_t depth, float* to, bool add) {
    int64_t r = 0;
    for (; r + kGemmRows <= rows; r += kGemmRows) {
        conv_multiply_rows<kGemmRows>(tiles + r * pitch, pitch, taps, depth, to + r * kConvBlock,
                                      add);
    }
    conv_multiply_last<kGemmRows - 1>(rows - r, tiles + r * pitch, pitch, taps, depth,
                                      to + r * kConvBlock, add);
}

// The results of tile `local` of the band, for 16 output channels from k on.
UDP_HD void conv_results(const Conv3x3& a, const float* products, int64_t slice, int64_t row,
                         int64_t column, int64_t k) {
    F half[4][6];
    unrolled<6>([&](auto j) UDP_INLINED {
        const auto at = [&](int i) UDP_INLINED { return load16(products + (6 * i + j) * slice); };
        const F m[6] = {at(0), at(1), at(2), at(3), at(4), at(5)};
        winograd_output(m, [&](int i, const F& y) UDP_INLINED { half[i][j] = y; });
    });
    const int64_t channels = a.out - k;
    const F bias = a.bias == nullptr ? F(0.0f) : load_some(a.bias + k, channels);
    float* image = a.y + row / a.tile_rows * a.height * a.width * a.out;
    for (int i = 0; i < 4; ++i) {
        const int64_t y = row % a.tile_rows * 4 + i;
        if (y >= a.height) return;
        winograd_output(half[i], [&](int j, const F& value) UDP_INLINED {
            const int64_t x = column * 4 + j;
            if (x >= a.width) return;
            store_some(image + (y * a.width + x) * a.out + k, value + bias, channels);
        });
    }
}

// Output channels 32 * block .. + 31 of the band's tiles, whose first row is first_row.
void conv_block(const Conv3x3& a, int64_t first_row, int64_t rows, int64_t block, float* scratch) {
    const int64_t count = rows * a.tile_columns, slice = conv_products_slice(count);
    float *products = scratch, *taps = scratch + 36 * slice;
    const int64_t k0 = block * kConvBlock;
    for (int64_t c0 = 0; c0 < a.in; c0 += kConvDepth) {
        const int64_t depth = a.in - c0 < kConvDepth ? a.in - c0 : kConvDepth;
        conv_taps(a, k0, c0, depth, taps);
        for (int point = 0; point < 36; ++point) {
            const float* tiles = a.tiles + point * a.tiles_slice + c0;
            for (int panel = 0; panel < kConvPanels; ++panel) {
                conv_multiply(count, tiles, a.tiles_pitch,
                              taps + point * kConvTapsSlice + panel * kConvDepth * kConvPanel,
                              depth, products + point * slice + panel * kConvPanel, c0 > 0);
            }
        }
    }
    for (int64_t tile = 0; tile < count; ++tile) {
        for (int64_t k = 0; k < kConvBlock && k0 + k < a.out; k += 16) {
            conv_results(a, products + tile * kConvBlock + k, slice,
                         first_row + tile / a.tile_columns, tile % a.tile_columns, k0 + k);
        }
    }
}

}  // namespace
}  // namespace UDP_ISA
}  // namespace udp
