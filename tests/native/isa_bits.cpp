// Runs every kernel through two instruction sets on the same inputs and compares the bits of all
// that they write: AVX2, and AVX-512 in its emulation. Built and run by test_isa.py.
#include "../../csrc/cpu/ops.h"

#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

namespace udp {
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
}  // namespace udp

using namespace udp;

namespace {

constexpr Shape kShape = {2, 3, 1003};  // no multiple of a lane, a block of noise or a row
constexpr int64_t kElements = kShape.channels * kShape.pixels;

std::mt19937 random_words(1);

// A tensor with guard bytes behind it, in a planar or channels-last layout.
struct Tensor {
    std::vector<uint8_t> bytes;
    DType type;
    bool interleaved;

    Tensor(DType t, bool channels_last)
        : bytes(static_cast<size_t>(kShape.images * kElements * size_of(t) + 64)),
          type(t),
          interleaved(channels_last) {
        for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(random_words());
        const int64_t n = kShape.images * kElements;
        if (t == DType::float32) {
            for (int64_t i = 0; i < n; ++i) {
                const float value = static_cast<float>(random_words() % 2001) / 1000.0f - 1.0f;
                memcpy(&bytes[static_cast<size_t>(4 * i)], &value, 4);
            }
        }
        if (t == DType::bfloat16) {  // keep to [-2, 2]: exponents below 128
            for (int64_t i = 0; i < n; ++i) bytes[static_cast<size_t>(2 * i + 1)] &= 0xbf;
        }
    }
    Operand operand() {
        if (interleaved) return {bytes.data(), type, kElements, 1, kShape.channels};
        return {bytes.data(), type, kElements, kShape.pixels, 1};
    }
};

int failures = 0;
void same(const char* what, const void* a, const void* b, size_t size) {
    if (memcmp(a, b, size) == 0) return;
    std::printf("%s: bits differ\n", what);
    ++failures;
}

// call(kernels, image, chunk, output) on a fresh copy of each output for each instruction set.
template <class Call>
void compare(const char* what, const Plan& plan, std::vector<Tensor> outputs, Call call) {
    std::vector<Tensor> other = outputs;
    for (int64_t image = 0; image < kShape.images; ++image) {
        for (int64_t chunk = 0; chunk < plan.chunks(); ++chunk) {
            const double a = call(avx2::kKernels, image, chunk, outputs);
            const double b = call(avx512::kKernels, image, chunk, other);
            same(what, &a, &b, sizeof a);
        }
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
        same(what, outputs[i].bytes.data(), other[i].bytes.data(), outputs[i].bytes.size());
    }
}

// Attention on [heads, rows, size], whole and with every gradient, in the order of a plan with
// several items and several blocks of keys.
void compare_attention(DType type, AttentionShape shape, bool biased, bool one_tile) {
    const auto numbers = [](int64_t n) {
        std::vector<float> x(static_cast<size_t>(n));
        for (float& a : x) a = static_cast<float>(random_words() % 2001) / 1000.0f - 1.0f;
        return x;
    };
    const int64_t rows = shape.heads * shape.queries, keys = shape.heads * shape.keys;
    const auto stored = [&](int64_t n) {  // bfloat16: the upper halves of as many floats
        std::vector<float> x = numbers(n);
        std::vector<uint8_t> bytes(static_cast<size_t>(n * 4));
        for (size_t i = 0; i < x.size(); ++i) {
            const auto* from = reinterpret_cast<const uint8_t*>(&x[i]);
            if (type == DType::float32) memcpy(&bytes[4 * i], from, 4);
            if (type == DType::bfloat16) memcpy(&bytes[2 * i], from + 2, 2);
        }
        return bytes;
    };
    std::vector<uint8_t> q = stored(rows * shape.size), k = stored(keys * shape.size);
    std::vector<uint8_t> v = stored(keys * shape.size), grad = stored(rows * shape.size);
    std::vector<float> bias = numbers(shape.queries * shape.keys);
    const auto heads = [&](std::vector<uint8_t>& x, int64_t length) {
        return Heads{x.data(), type, 0, length * shape.size, shape.size};
    };
    const Kernels* both[] = {&avx2::kKernels, &avx512::kKernels};
    std::vector<std::vector<uint8_t>> results[2];
    for (int which = 0; which < 2; ++which) {
        const Kernels& kernels = *both[which];
        std::vector<uint8_t> out(q.size()), dq(q.size()), dk(k.size()), dv(k.size());
        std::vector<float> lse(static_cast<size_t>(rows));
        Attention a{shape,
                    heads(q, shape.queries),
                    heads(k, shape.keys),
                    heads(v, shape.keys),
                    heads(out, shape.queries),
                    {},
                    0.4f,
                    lse.data()};
        if (biased) a.bias = {bias.data(), 0, 0, shape.keys, 1};
        AttentionPlan plan{64, (shape.keys + 1) / 2, 1, nullptr};
        std::vector<float> floats(static_cast<size_t>(kernels.attention_floats(a, plan)));
        for (int64_t item = 0; item < shape.heads * plan.items(shape); ++item) {
            kernels.attention(a, plan, item, floats.data());
        }
        AttentionBackward b{shape,
                            heads(grad, shape.queries),
                            a.q,
                            a.k,
                            a.v,
                            a.out,
                            heads(dq, shape.queries),
                            heads(dk, shape.keys),
                            heads(dv, shape.keys),
                            a.bias,
                            0.4f,
                            lse.data()};
        if (one_tile) {
            b.lse = nullptr;
            b.out = b.dk = b.dv = {};
            plan.keys = shape.keys;
        } else {
            plan.parts = plan.items(shape);
        }
        std::vector<float> partial(static_cast<size_t>(2 * plan.parts * keys * shape.size));
        plan.partial = partial.data();
        floats.resize(static_cast<size_t>(kernels.attention_backward_floats(b, plan)));
        for (int64_t item = 0; item < shape.heads * plan.items(shape); ++item) {
            kernels.attention_backward(b, plan, item, floats.data());
        }
        for (int64_t head = 0; !one_tile && head < shape.heads; ++head) {
            kernels.attention_sum(b, plan, head);
        }
        const auto* sums = reinterpret_cast<const uint8_t*>(lse.data());
        results[which] = {out, dq, dk, dv, {sums, sums + 4 * lse.size()}};
    }
    for (size_t i = 0; i < results[0].size(); ++i) {
        const auto &a = results[0][i], &b = results[1][i];
        same("attention", a.data(), b.data(), a.size());
    }
}

// conv3x3 in both directions and geglu, with channels that no vector divides and more input
// channels than are taken at a time.
void compare_layers(int64_t in, int64_t out) {
    const auto numbers = [](int64_t n) {
        std::vector<float> x(static_cast<size_t>(n));
        for (float& a : x) a = static_cast<float>(random_words() % 2001) / 1000.0f - 1.0f;
        return x;
    };
    const int64_t height = 9, width = 6, tiles = 6;
    const std::vector<float> x = numbers(height * width * in), weight = numbers(out * in * 9);
    const std::vector<float> bias = numbers(out);
    const Kernels* both[] = {&avx2::kKernels, &avx512::kKernels};
    std::vector<std::vector<float>> results[2];
    for (int which = 0; which < 2; ++which) {
        std::vector<float> y(static_cast<size_t>(height * width * out)), dx(x.size());
        for (const bool flipped : {false, true}) {
            Conv3x3 a{};
            a.x = flipped ? y.data() : x.data();
            a.y = flipped ? dx.data() : y.data();
            a.weight = weight.data();
            a.bias = flipped ? nullptr : bias.data();
            a.images = 1;
            a.height = height;
            a.width = width;
            a.in = flipped ? out : in;
            a.out = flipped ? in : out;
            a.x_pixel = a.in;
            a.x_row = width * a.in;
            a.x_image = height * a.x_row;
            a.out_stride = flipped ? 9 : in * 9;
            a.in_stride = flipped ? in * 9 : 9;
            a.flipped = flipped;
            a.tile_rows = 3;
            a.tile_columns = 2;
            a.tiles_pitch = (a.in + 15) / 16 * 16;
            a.tiles_slice = tiles * a.tiles_pitch + 16;
            std::vector<float> transformed(static_cast<size_t>(36 * a.tiles_slice));
            const int64_t floats = 36 * (conv_products_slice(tiles) + kConvTapsSlice);
            std::vector<float> scratch(static_cast<size_t>(floats));
            a.tiles = transformed.data();
            for (int64_t row = 0; row < a.tile_rows; ++row) both[which]->conv_tiles(a, row, row);
            for (int64_t block = 0; block * kConvBlock < a.out; ++block) {
                both[which]->conv_block(a, 0, a.tile_rows, block, scratch.data());
            }
        }
        std::vector<float> gated(x.size() / 2), d_gated(x.size());
        Geglu g{x.data(), nullptr, gated.data(), height * width, in / 2};
        for (int64_t row = 0; row < g.rows; ++row) both[which]->geglu(g, row);
        g.grad = gated.data();
        g.y = d_gated.data();
        for (int64_t row = 0; row < g.rows; ++row) both[which]->geglu_backward(g, row);
        results[which] = {y, dx, gated, d_gated};
        // Past the caches whole lines are written.
        constexpr int64_t kRows = 4, kColumns = 32;
        alignas(64) float lines[kRows * kColumns * 2];
        for (const bool backward : {false, true}) {
            std::vector<float> plain(static_cast<size_t>(kRows * kColumns * (backward ? 2 : 1)));
            const auto kernel = backward ? both[which]->geglu_backward : both[which]->geglu;
            for (const bool stream : {false, true}) {
                Geglu large{x.data(), backward ? weight.data() : nullptr,
                            stream ? lines : plain.data(), kRows, kColumns};
                large.stream = stream;
                for (int64_t row = 0; row < kRows; ++row) kernel(large, row);
            }
            same("geglu past the caches", plain.data(), lines, plain.size() * sizeof(float));
        }
    }
    const char* names[] = {"conv3x3", "conv3x3_dx", "geglu", "geglu_backward"};
    for (size_t i = 0; i < 4; ++i) {
        const auto &a = results[0][i], &b = results[1][i];
        same(names[i], a.data(), b.data(), a.size() * sizeof(float));
    }
}

// group_norm_silu on as many elements: channels and pixels, neither a multiple of the lanes.
void compare_group_norm(DType type, bool interleaved, bool silu) {
    constexpr int64_t kChannels = 51, kPixels = 59, kGroups = 3, kWidth = kChannels / kGroups;
    static_assert(kChannels * kPixels == kElements, "one image of a Tensor");
    const auto operand = [&](Tensor& t) -> Operand {
        if (interleaved) return {t.bytes.data(), type, kElements, 1, kChannels};
        return {t.bytes.data(), type, kElements, kPixels, 1};
    };
    const auto finite = [&] {
        Tensor t(type, interleaved);
        if (type != DType::float32) {  // as in its constructor: below 2 in either 16-bit type
            for (size_t i = 1; i < t.bytes.size(); i += 2) t.bytes[i] &= 0xbf;
        }
        return t;
    };
    Tensor x = finite(), gradient = finite();
    std::vector<float> values(2 * kChannels + 4 * kShape.images * kGroups);
    for (float& v : values) v = static_cast<float>(random_words() % 1000) / 500.0f - 1.0f;
    GroupNorm a{};
    a.x = operand(x);
    a.gradient = operand(gradient);
    a.shape = {kShape.images, kChannels, kPixels};
    a.groups = kGroups;
    a.interleaved = interleaved;
    a.silu = silu;
    a.weight = values.data();
    a.bias = a.weight + kChannels;
    a.mean = a.bias + kChannels;
    a.rstd = a.mean + kShape.images * kGroups;
    a.pull = a.rstd + kShape.images * kGroups;
    a.tilt = a.pull + kShape.images * kGroups;
    std::vector<float> columns(static_cast<size_t>(kShape.images * GroupNorm::kColumns * 64));
    for (float& v : columns) v = static_cast<float>(random_words() % 1000) / 500.0f - 1.0f;
    a.columns = columns.data();
    const Plan whole = {{kShape.images, 1, kElements}, false, true, 1, kChunk};
    compare("group_norm", whole, {Tensor(type, false), Tensor(type, false), Tensor(type, false)},
            [&](const Kernels& k, int64_t image, int64_t, std::vector<Tensor>& out) {
                GroupNorm b = a;
                b.out = operand(out[0]);
                const Tile all = {image, 0, kChannels, 0, kPixels};
                k.group_norm.apply(b, all);
                double sum = 0.0;
                Moments moments[kChannels];
                Slopes slopes[kChannels];
                const bool keeps = silu && type == DType::float32;
                if (interleaved) {
                    k.group_norm.moments(b, all, moments);
                    for (const Moments& m : moments) sum += m.mean + m.square;
                } else {
                    for (int64_t g = 0; g < kGroups; ++g) {
                        const Moments m =
                            k.group_norm.run_moments(b, image, g, 0, kWidth * kPixels);
                        sum += m.mean + m.square;
                    }
                }
                b.out = operand(out[1]);
                b.keeps = keeps;
                if (interleaved) {
                    k.group_norm.slopes(b, all, slopes);
                } else {
                    for (int64_t g = 0; g < kGroups; ++g) {
                        const Tile tile = {image, g * kWidth, kWidth, 0, kPixels};
                        const Slopes s = k.group_norm.slopes(b, tile, slopes + g * kWidth);
                        sum += s.plain + s.tilted;
                    }
                }
                GroupNorm c = b;
                if (keeps) {
                    c.gradient = c.out;
                    c.silu = false;
                }
                k.group_norm.dx(c, all);
                b.out = operand(out[2]);
                b.keeps = false;
                k.group_norm.dx(b, all);
                // What is kept is what would be found again.
                const int64_t size = kElements * size_of(type);
                same("group_norm, kept", out[1].bytes.data() + image * size,
                     out[2].bytes.data() + image * size, static_cast<size_t>(size));
                for (const Slopes& s : slopes) sum += s.plain + s.tilted;
                return sum;
            });
}

}  // namespace

int main() {
    compare_layers(22, 37);
    compare_layers(130, 16);
    for (const DType type : {DType::float32, DType::bfloat16}) {
        for (const bool one_tile : {false, true}) {
            compare_attention(type, {1, 2, 70, 21, 40}, true, one_tile);
            compare_attention(type, {1, 1, 130, 45, 24}, false, one_tile);
            compare_attention(type, {1, 1, 20, 5, 7}, true, one_tile);
            compare_attention(type, {1, 1, 65, 30, 112}, false, one_tile);
            compare_attention(type, {1, 1, 37, 77, 56}, true, one_tile);
            compare_attention(type, {1, 1, 20, 8, 8}, false, one_tile);
        }
    }
    const float half[] = {0.5f, 0.25f}, bound[] = {0.03f, 0.04f}, one[] = {1.0f, 0.5f};
    const float levels[] = {8.0f, 3.0f};
    const NoiseKey keys[] = {{1, 2, 3, 4, 5}, {0xffffffffu, 7, 0, 0, 1}};
    const DType floats[] = {DType::float32, DType::float16, DType::bfloat16};

    for (const bool cl : {false, true}) {
        for (const DType type : floats) {
            for (const bool silu : {false, true}) compare_group_norm(type, cl, silu);
        }
        const Plan run = {{kShape.images, 1, kElements}, false, true, 1, kChunk};
        const Plan walk = cl ? Plan{kShape, true, false, kShape.channels, kChunk}
                             : Plan{kShape, false, false, kShape.channels, kChunk};
        for (const DType type : floats) {
            for (const DType other : floats) {
                Tensor gradient(other, !cl), mask(DType::float32, cl), noise(other, cl);
                for (const DType original : {DType::uint8, DType::float32}) {
                    Tensor x(original, cl);
                    for (const bool sign : {false, true}) {
                        for (const int form : {0, 1, 2}) {
                            const bool plain = form > 0;
                            PgdStep a{};
                            a.gradient = gradient.operand();
                            a.original = x.operand();
                            if (!plain) a.mask = mask.operand();
                            a.sign = sign;
                            a.linf = plain;
                            a.size = half;
                            a.scale = plain ? one + 0 : one;
                            a.bound = bound;
                            a.maps_range = form != 1;
                            a.range = a.maps_range ? Range{0.0f, 1.0f, 1.0f, -1.0f, 1.0f, 2.0f}
                                                   : Range{0.0f, 1.0f, 1.0f, 0.0f, 1.0f, 1.0f};
                            // The direct kernel takes one run: give it operands of one layout.
                            Tensor flat_gradient(other, false), flat_x(original, false);
                            const bool flat = plain && sign && !cl;
                            if (flat) {
                                a.gradient = {flat_gradient.bytes.data(), other, kElements, 0, 1};
                                a.original = {flat_x.bytes.data(), original, kElements, 0, 1};
                            }
                            const Plan& plan = flat ? run : walk;
                            compare("pgd_step", plan, {Tensor(type, cl), Tensor(other, cl)},
                                    [&](const Kernels& k, int64_t image, int64_t chunk,
                                        std::vector<Tensor>& out) {
                                        a.delta = out[0].operand();
                                        a.adversarial = out[1].operand();
                                        if (flat) a.delta.channel = a.adversarial.channel = 0;
                                        double sum = k.gradient_square(a, plan, image, chunk);
                                        sum += k.stepped_square(a, plan, image, chunk);
                                        const auto n = k.pgd_step(a, plan, image, chunk);
                                        return sum + static_cast<double>(n);
                                    });
                        }
                    }
                }
                Tensor x(type, cl);
                for (const bool drawn : {false, true}) {
                    QSample q{};
                    q.x = x.operand();
                    if (!drawn) q.noise = noise.operand();
                    q.keys = keys;
                    q.signal = half;
                    q.level = bound;
                    compare("q_sample", walk, {Tensor(other, !cl), Tensor(other, cl)},
                            [&](const Kernels& k, int64_t image, int64_t chunk,
                                std::vector<Tensor>& out) {
                                q.noisy = out[0].operand();
                                q.noise_out = out[1].operand();
                                k.q_sample(q, walk, image, chunk);
                                return 0.0;
                            });
                    for (int kind = 0; kind < 5; ++kind) {
                        DenoisingLoss d{};
                        d.prediction = x.operand();
                        d.target = noise.operand();
                        d.x = mask.operand();
                        d.noise = q.noise;
                        d.keys = keys;
                        d.kind = static_cast<Target>(kind);
                        d.signal = half;
                        d.level = bound;
                        d.gradient_scale = half;
                        compare("denoising_loss", walk, {Tensor(type, cl)},
                                [&](const Kernels& k, int64_t image, int64_t chunk,
                                    std::vector<Tensor>& out) {
                                    d.gradient = out[0].operand();
                                    return k.denoising_loss(d, walk, image, chunk);
                                });
                    }
                    for (const bool is_image : {false, true}) {
                        Tensor original(DType::uint8, !cl);
                        Quantize z{};
                        z.value = x.operand();
                        z.original = original.operand();
                        z.keys = drawn ? keys : nullptr;
                        z.levels = levels;
                        z.is_image = is_image;
                        z.lo = -1.0f;
                        z.to_levels = 127.5f;
                        compare("quantize", walk, {Tensor(DType::uint8, cl)},
                                [&](const Kernels& k, int64_t image, int64_t chunk,
                                    std::vector<Tensor>& out) {
                                    z.out = out[0].operand();
                                    k.quantize(z, walk, image, chunk);
                                    return 0.0;
                                });
                    }
                }
                ImageScale s{};
                s.x = x.operand();
                s.scale = {half, 1};
                compare(
                    "image_scale", walk, {Tensor(other, !cl)},
                    [&](const Kernels& k, int64_t image, int64_t chunk, std::vector<Tensor>& out) {
                        s.out = out[0].operand();
                        k.image_scale(s, walk, image, chunk);
                        return 0.0;
                    });
            }
        }
    }
    if (failures == 0) std::puts("equal");
    return failures == 0 ? 0 : 1;
}
