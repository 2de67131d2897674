// The kernels of group_norm_silu. Planar: pixels of a channel lie side by side, lanes are pixels.
// Interleaved: channels of a pixel do, lanes are channels. Included once for each instruction set.
#pragma once

#include "../math/group_norm.h"
#include "rows.h"

namespace udp {
namespace UDP_ISA {
namespace {

template <class T>
UDP_HD const T* element(const Operand& o, int64_t image, int64_t channel, int64_t pixel) {
    return static_cast<const T*>(o.data) + image * o.image + channel * o.channel + pixel * o.pixel;
}
template <class T>
UDP_HD T* element_to_write(const Operand& o, int64_t image, int64_t channel, int64_t pixel) {
    return static_cast<T*>(o.data) + image * o.image + channel * o.channel + pixel * o.pixel;
}

// A float16 or bfloat16, which of them is known when a kernel runs: two types less to compile it
// for, and a branch that is foreseen costs nothing beside the arithmetic.
struct Narrow {
    uint16_t bits;
};

// How elements are read and written.
template <class T>
struct Elements;
template <>
struct Elements<float> {
    explicit Elements(DType) {}
    template <class Lanes>
    F load(const float* p, Lanes lanes) const {
        return udp::UDP_ISA::load(p, lanes);
    }
    template <class Lanes>
    void store(float* p, F a, Lanes lanes, bool stream) const {
        udp::UDP_ISA::store(p, a, lanes, stream);
    }
};
template <>
struct Elements<Narrow> {
    bool is_float16;
    explicit Elements(DType type) : is_float16(type == DType::float16) {}
    template <class Lanes>
    F load(const Narrow* p, Lanes lanes) const {
        if (is_float16) return udp::UDP_ISA::load(reinterpret_cast<const Float16*>(p), lanes);
        return udp::UDP_ISA::load(reinterpret_cast<const BFloat16*>(p), lanes);
    }
    template <class Lanes>
    void store(Narrow* p, F a, Lanes lanes, bool stream) const {
        if (is_float16) {
            udp::UDP_ISA::store(reinterpret_cast<Float16*>(p), a, lanes, stream);
        } else {
            udp::UDP_ISA::store(reinterpret_cast<BFloat16*>(p), a, lanes, stream);
        }
    }
};

// body(float or Narrow), a null pointer to it
template <class Body>
UDP_HD void with_type(DType type, Body body) {
    if (type == DType::float32) {
        body(static_cast<float*>(nullptr));
    } else {
        body(static_cast<Narrow*>(nullptr));
    }
}

UDP_HD double total(F a) {
    float narrow[16];
    store16(narrow, a);
    double lanes[16];
    for (int i = 0; i < 16; ++i) lanes[i] = narrow[i];
    for (int width = 8; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    }
    return lanes[0];
}

// Elements from those at work to those that are fetched meanwhile.
constexpr int64_t kAhead = 256;

// body(first, how many, how far from one to the next) for all pixels of an interleaved tile: four
// at a time, a quarter of the tile apart. Neighbours would be in one page, where the processor
// foresees one stream of accesses, not four.
template <class Body>
UDP_HD void for_pixels(const Tile& tile, Body body) {
    const int64_t quarter = tile.pixels / 4, rest = tile.pixels % 4;
    for (int64_t i = 0; i < quarter + rest; ++i) {
        const bool four = i < quarter;
        body(tile.pixel + (four ? i : i + 3 * quarter), four ? 4 : 1, quarter);
    }
}

// --- moments -------------------------------------------------------------------------------------

// Lane by lane, of the values so far less a pivot: one of the values, so that what is summed is of
// the size of their spread, however far from zero they lie. Chan, Golub and LeVeque (1979): values
// come four at a time, whose own moments are then merged.
struct Spread {
    F mean{0.0f}, square{0.0f};
};

// What a merge of four values into 4 * j takes: 1 / (j + 1) and 4 j / (j + 1).
struct MergeFactors {
    float share[kPixelPiece / 4], between[kPixelPiece / 4];
    constexpr MergeFactors() : share(), between() {
        for (int j = 0; j < kPixelPiece / 4; ++j) {
            share[j] = 1.0f / static_cast<float>(j + 1);
            between[j] = 4.0f * static_cast<float>(j) / static_cast<float>(j + 1);
        }
    }
};
constexpr MergeFactors kMerge;
static_assert(kRunPiece / 16 <= kPixelPiece, "as many vectors as there are factors for");

UDP_HD void merge_four(Spread& s, F a, F b, F c, F d, int64_t j) {
    const F mean = ((a + b) + (c + d)) * F(0.25f);
    a = a - mean;
    b = b - mean;
    c = c - mean;
    d = d - mean;
    const F square = fma(c, c, a * a) + fma(d, d, b * b);
    const F step = mean - s.mean;
    s.mean = fma(step, F(kMerge.share[j]), s.mean);
    s.square = fma(step * step, F(kMerge.between[j]), s.square + square);
}
// One more after n.
UDP_HD void merge_one(Spread& s, F a, int64_t n) {
    const F step = a - s.mean;
    s.mean = fma(step, F(1.0f / static_cast<float>(n + 1)), s.mean);
    s.square = fma(step * step, F(static_cast<float>(n) / static_cast<float>(n + 1)), s.square);
}

template <class T>
Moments run_moments_of(const T* x, Elements<T> of, int64_t n) {
    float pivot;
    {
        float lanes[16];
        store16(lanes, of.load(x, Part{1}));
        pivot = lanes[0];
    }
    const F p(pivot);
    const int64_t vectors = n / 16;
    Spread s;
    int64_t v = 0;
    for (; v + 4 <= vectors; v += 4) {
        const T* at = x + 16 * v;
        const auto less = [=](int64_t i) { return of.load(at + i, Full{}) - p; };
        merge_four(s, less(0), less(16), less(32), less(48), v / 4);
    }
    for (; v < vectors; ++v) merge_one(s, of.load(x + 16 * v, Full{}) - p, v);

    // The lanes, and each value of the last, incomplete vector.
    const int rest = static_cast<int>(n % 16);
    float last[16] = {}, lane_mean[16];
    if (rest > 0) store16(last, of.load(x + 16 * vectors, Part{rest}));
    store16(lane_mean, s.mean);
    const double weight = static_cast<double>(vectors);
    double mean = weight * total(s.mean);
    for (int i = 0; i < rest; ++i) mean += static_cast<double>(last[i]) - pivot;
    mean /= static_cast<double>(n);
    double square = 0.0;
    for (const float lane : lane_mean) square += (lane - mean) * (lane - mean);
    square = weight * square + total(s.square);
    for (int i = 0; i < rest; ++i) {
        const double distance = static_cast<double>(last[i]) - pivot - mean;
        square += distance * distance;
    }
    return {pivot + mean, square};
}

Moments run_moments(const GroupNorm& a, int64_t image, int64_t group, int64_t first, int64_t n) {
    Moments found{};
    with_type(a.x.type, [&](auto* type) {
        using T = typename std::remove_pointer<decltype(type)>::type;
        const T* x = element<T>(a.x, image, group * a.group_channels(), 0) + first;
        found = run_moments_of(x, Elements<T>(a.x.type), n);
    });
    return found;
}

constexpr int64_t kColumnBlock = 1024;  // channels whose sums are kept at once, in the first cache

template <class T>
void moments_of(const GroupNorm& a, const Tile& tile, Moments* out) {
    alignas(64) float pivot[kColumnBlock], mean[kColumnBlock], square[kColumnBlock];
    const int64_t step = a.x.pixel;
    const Elements<T> of(a.x.type);
    for (int64_t block = 0; block < tile.channels; block += kColumnBlock) {
        const int64_t channels =
            block + kColumnBlock < tile.channels ? kColumnBlock : tile.channels - block;
        const T* x = element<T>(a.x, tile.image, tile.channel + block, tile.pixel);
        float *k = pivot, *m = mean, *s = square;
        for_lanes(channels, [=](int64_t c, auto lanes) {
            store16(k + c, of.load(x + c, lanes));
            store16(m + c, F(0.0f));
            store16(s + c, F(0.0f));
        });
        const int64_t quarter = tile.pixels / 4, apart = quarter * step;
        for (int64_t p = 0; p < quarter; ++p, x += step) {
            for_lanes(channels, [=](int64_t c, auto lanes) {
                const F origin = load16(k + c);
                Spread spread{load16(m + c), load16(s + c)};
                const auto less = [=](int64_t i) {
                    return of.load(x + i * apart + c, lanes) - origin;
                };
                merge_four(spread, less(0), less(1), less(2), less(3), p);
                store16(m + c, spread.mean);
                store16(s + c, spread.square);
            });
        }
        x += 3 * apart;
        for (int64_t p = 4 * quarter; p < tile.pixels; ++p, x += step) {
            for_lanes(channels, [=](int64_t c, auto lanes) {
                Spread spread{load16(m + c), load16(s + c)};
                merge_one(spread, of.load(x + c, lanes) - load16(k + c), p);
                store16(m + c, spread.mean);
                store16(s + c, spread.square);
            });
        }
        for (int64_t c = 0; c < channels; ++c) {
            out[block + c] = {static_cast<double>(pivot[c]) + mean[c], square[c]};
        }
    }
}

void moments(const GroupNorm& a, const Tile& tile, Moments* out) {
    with_type(a.x.type, [&](auto* type) {
        moments_of<typename std::remove_pointer<decltype(type)>::type>(a, tile, out);
    });
}

// --- what a channel's elements share -------------------------------------------------------------

struct Channel {
    F mean, scale, bias, pull, tilt;
};

UDP_HD float scale_of(const GroupNorm& a, int64_t channel, int64_t row) {
    return a.weight == nullptr ? a.rstd[row] : a.rstd[row] * a.weight[channel];
}
// Planar: one channel after another, each in all lanes. It counts to the next group: a division for
// each would take as long as the arithmetic of a hundred pixels.
class Channels {
  public:
    Channels(const GroupNorm& a, const Tile& tile)
        : a_(a),
          width_(a.group_channels()),
          channel_(tile.channel),
          row_(tile.image * a.groups + tile.channel / width_),
          left_(width_ - tile.channel % width_) {}
    Channel next(bool gradient) {
        const Channel found = {F(a_.mean[row_]), F(scale_of(a_, channel_, row_)),
                               F(a_.bias == nullptr ? 0.0f : a_.bias[channel_]),
                               F(gradient ? a_.pull[row_] : 0.0f),
                               F(gradient ? a_.tilt[row_] : 0.0f)};
        ++channel_;
        if (--left_ == 0) {
            ++row_;
            left_ = width_;
        }
        return found;
    }

  private:
    const GroupNorm& a_;
    const int64_t width_;
    int64_t channel_, row_, left_;
};
// Interleaved: where the numbers of an image's channels are.
struct Columns {
    const float *mean, *scale, *bias, *pull, *tilt;
    Columns(const GroupNorm& a, int64_t image, int64_t channel)
        : mean(a.column(image, GroupNorm::kMean) + channel),
          scale(a.column(image, GroupNorm::kScale) + channel),
          bias(a.column(image, GroupNorm::kBias) + channel),
          pull(a.column(image, GroupNorm::kPull) + channel),
          tilt(a.column(image, GroupNorm::kTilt) + channel) {}
    Channel at(int64_t i, bool gradient) const {  // sixteen of them
        return {load16(mean + i), load16(scale + i), load16(bias + i),
                gradient ? load16(pull + i) : F(0.0f), gradient ? load16(tilt + i) : F(0.0f)};
    }
};

UDP_LONG F silu_of(F u) {
    return silu<F, U>(u);
}
UDP_LONG F silu_slope_of(F u) {
    return silu_slope<F, U>(u);
}
UDP_HD F activated(F x, const Channel& c, bool silu) {
    const F u = normalised(x - c.mean, c.scale, c.bias);
    return silu ? silu_of(u) : u;
}
// h = dL/du
UDP_HD F slope_of(F distance, F gradient, const Channel& c, bool silu) {
    if (!silu) return gradient;
    return gradient * silu_slope_of(normalised(distance, c.scale, c.bias));
}
UDP_HD F dx_of(F x, F gradient, const Channel& c, bool silu) {
    const F distance = x - c.mean;
    return group_norm_dx(slope_of(distance, gradient, c, silu), distance, c.scale, c.pull, c.tilt);
}

// --- y, and dx: one pass over a tile -------------------------------------------------------------

// pixel(x, gradient, channel) makes an element of y; gradient is 0 unless kGradient.
template <class T, bool kGradient, class Pixel>
UDP_HD void over_planar(const GroupNorm& a, const Tile& tile, Pixel pixel) {
    Channels channels(a, tile);
    for (int64_t c = tile.channel; c < tile.channel + tile.channels; ++c) {
        const T* x = element<T>(a.x, tile.image, c, tile.pixel);
        const T* g = kGradient ? element<T>(a.gradient, tile.image, c, tile.pixel) : nullptr;
        T* y = element_to_write<T>(a.out, tile.image, c, tile.pixel);
        const Channel channel = channels.next(kGradient);
        const bool stream = a.stream && aligned(y);
        const Elements<T> of(a.x.type);
        for_lanes(tile.pixels, [=](int64_t i, auto lanes) {
            const F gradient = kGradient ? of.load(g + i, lanes) : F(0.0f);
            of.store(y + i, pixel(of.load(x + i, lanes), gradient, channel), lanes, stream);
        });
    }
}

// Some pixels, `apart` from one to the next, which share what is loaded for their channels.
template <class T, bool kGradient, class Pixel>
UDP_HD void over_pixels(const GroupNorm& a, const Tile& tile, int64_t p, int pixels, int64_t apart,
                        Pixel pixel) {
    const T* x = element<T>(a.x, tile.image, tile.channel, p);
    const T* g = kGradient ? element<T>(a.gradient, tile.image, tile.channel, p) : nullptr;
    T* y = element_to_write<T>(a.out, tile.image, tile.channel, p);
    const int64_t x_apart = apart * a.x.pixel, g_apart = apart * a.gradient.pixel,
                  y_apart = apart * a.out.pixel;
    const bool stream = a.stream && aligned(y) && aligned(y + a.out.pixel);
    const Columns columns(a, tile.image, tile.channel);
    const Elements<T> of(a.x.type);
    for_lanes(tile.channels, [=](int64_t i, auto lanes) {
        const Channel channel = columns.at(i, kGradient);
        for (int k = 0; k < pixels; ++k) {
            const F gradient = kGradient ? of.load(g + k * g_apart + i, lanes) : F(0.0f);
            const F value = pixel(of.load(x + k * x_apart + i, lanes), gradient, channel);
            of.store(y + k * y_apart + i, value, lanes, stream);
        }
    });
}

template <class T, bool kGradient, class Pixel>
UDP_HD void over(const GroupNorm& a, const Tile& tile, Pixel pixel) {
    if (!a.interleaved) return over_planar<T, kGradient>(a, tile, pixel);
    for_pixels(tile, [&](int64_t first, int pixels, int64_t apart) {
        over_pixels<T, kGradient>(a, tile, first, pixels, apart, pixel);
    });
}

void apply(const GroupNorm& a, const Tile& tile) {
    const bool silu = a.silu;
    with_type(a.x.type, [&](auto* type) {
        using T = typename std::remove_pointer<decltype(type)>::type;
        over<T, false>(a, tile, [=](F x, F, const Channel& c) { return activated(x, c, silu); });
    });
    if (a.stream) stream_fence();
}

// --- slopes --------------------------------------------------------------------------------------

template <class T, bool kKeeps>
Slopes slopes_planar(const GroupNorm& a, const Tile& tile, Slopes* channels) {
    F plain(0.0f), tilted(0.0f);
    Channels numbers(a, tile);
    const Elements<T> of(a.x.type);
    const bool silu = kKeeps || a.silu;
    for (int64_t c = 0; c < tile.channels; ++c) {
        const T* x = element<T>(a.x, tile.image, tile.channel + c, tile.pixel);
        const T* g = element<T>(a.gradient, tile.image, tile.channel + c, tile.pixel);
        const Channel channel = numbers.next(false);
        F sum(0.0f), product(0.0f);
        T* keep =
            kKeeps ? element_to_write<T>(a.out, tile.image, tile.channel + c, tile.pixel) : nullptr;
        for_lanes(tile.pixels, [=, &sum, &product](int64_t i, auto lanes) {
            if (silu) {
                fetch(x + i + kAhead);
                fetch(g + i + kAhead);
            }
            const F distance = of.load(x + i, lanes) - channel.mean;
            const F h = slope_of(distance, of.load(g + i, lanes), channel, silu);
            if (kKeeps) of.store(keep + i, h, lanes, false);
            sum = sum + h;
            product = fma(h, distance, product);
        });
        plain = fma(sum, channel.scale, plain);
        tilted = fma(product, channel.scale, tilted);
        if (channels != nullptr) channels[c] = {total(sum), total(product)};
    }
    return {total(plain), total(tilted)};
}

template <class T, bool kKeeps>
UDP_HD void add_slopes(const GroupNorm& a, const Tile& tile, int64_t p, int pixels, int64_t apart,
                       float* sums, float* products) {
    const T* x = element<T>(a.x, tile.image, tile.channel, p);
    const T* g = element<T>(a.gradient, tile.image, tile.channel, p);
    const int64_t x_apart = apart * a.x.pixel, g_apart = apart * a.gradient.pixel,
                  keep_apart = apart * a.out.pixel;
    T* keep = kKeeps ? element_to_write<T>(a.out, tile.image, tile.channel, p) : nullptr;
    const Columns columns(a, tile.image, tile.channel);
    const Elements<T> of(a.x.type);
    const bool silu = kKeeps || a.silu;
    const int64_t x_pixel = a.x.pixel, g_pixel = a.gradient.pixel;
    for_lanes(tile.channels, [=](int64_t i, auto lanes) {
        const Channel channel = columns.at(i, false);
        F sum = load16(sums + i), product = load16(products + i);
        for (int k = 0; k < pixels; ++k) {
            if (silu) {  // the next pixel's
                fetch(x + k * x_apart + i + x_pixel);
                fetch(g + k * g_apart + i + g_pixel);
            }
            const F distance = of.load(x + k * x_apart + i, lanes) - channel.mean;
            const F h = slope_of(distance, of.load(g + k * g_apart + i, lanes), channel, silu);
            if (kKeeps) of.store(keep + k * keep_apart + i, h, lanes, false);
            sum = sum + h;
            product = fma(h, distance, product);
        }
        store16(sums + i, sum);
        store16(products + i, product);
    });
}

template <class T, bool kKeeps>
void slopes_interleaved(const GroupNorm& a, const Tile& whole, Slopes* channels) {
    alignas(64) float sums[kColumnBlock], products[kColumnBlock];
    for (int64_t block = 0; block < whole.channels; block += kColumnBlock) {
        Tile tile = whole;
        tile.channel += block;
        tile.channels =
            block + kColumnBlock < whole.channels ? kColumnBlock : whole.channels - block;
        memset(sums, 0, sizeof sums);
        memset(products, 0, sizeof products);
        for_pixels(tile, [&](int64_t first, int pixels, int64_t apart) {
            add_slopes<T, kKeeps>(a, tile, first, pixels, apart, sums, products);
        });
        for (int64_t c = 0; c < tile.channels; ++c) {
            channels[block + c] = {sums[c], products[c]};
        }
    }
}

template <class T, bool kKeeps>
Slopes slopes_of(const GroupNorm& a, const Tile& tile, Slopes* channels) {
    if (!a.interleaved) return slopes_planar<T, kKeeps>(a, tile, channels);
    slopes_interleaved<T, kKeeps>(a, tile, channels);
    return {};
}

Slopes slopes(const GroupNorm& a, const Tile& tile, Slopes* channels) {
    if (a.x.type != DType::float32) return slopes_of<Narrow, false>(a, tile, channels);
    return a.keeps ? slopes_of<float, true>(a, tile, channels)
                   : slopes_of<float, false>(a, tile, channels);
}

void dx(const GroupNorm& a, const Tile& tile) {
    if (a.x.type == DType::float32) {
        // Mostly without a SiLU, whose slope is in what `slopes` kept, and then as fast as memory.
        choose(a.silu, [&](auto silu) {
            constexpr bool kSilu = decltype(silu)::value;
            over<float, true>(a, tile,
                              [](F x, F g, const Channel& c) { return dx_of(x, g, c, kSilu); });
        });
    } else {
        const bool silu = a.silu;
        over<Narrow, true>(a, tile,
                           [=](F x, F g, const Channel& c) { return dx_of(x, g, c, silu); });
    }
    if (a.stream) stream_fence();
}

constexpr GroupNormKernels kGroupNorm = {run_moments, moments, apply, slopes, dx};

}  // namespace
}  // namespace UDP_ISA
}  // namespace udp
