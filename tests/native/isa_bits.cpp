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
                if (interleaved) {
                    k.group_norm.moments(b, all, moments);
                    k.group_norm.slopes(b, all, slopes);
                    b.out = operand(out[1]);
                    k.group_norm.dx(b, all);
                    for (const Moments& m : moments) sum += m.mean + m.square;
                } else {
                    for (int64_t g = 0; g < kGroups; ++g) {
                        const Moments m =
                            k.group_norm.run_moments(b, image, g, 0, kWidth * kPixels);
                        const Tile tile = {image, g * kWidth, kWidth, 0, kPixels};
                        b.out = operand(out[1]);
                        b.keeps = silu && type == DType::float32;
                        const Slopes s = k.group_norm.slopes(b, tile, slopes + g * kWidth);
                        k.group_norm.dx(b, tile);
                        b.out = operand(out[2]);
                        b.keeps = false;
                        k.group_norm.dx(b, tile);
                        sum += m.mean + m.square + s.plain + s.tilted;
                    }
                    // What is kept is what would be found again.
                    const int64_t size = kElements * size_of(type);
                    same("group_norm, kept", out[1].bytes.data() + image * size,
                         out[2].bytes.data() + image * size, static_cast<size_t>(size));
                }
                for (const Slopes& s : slopes) sum += s.plain + s.tilted;
                return sum;
            });
}

}  // namespace

int main() {
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
                        for (const bool plain : {false, true}) {
                            PgdStep a{};
                            a.gradient = gradient.operand();
                            a.original = x.operand();
                            if (!plain) a.mask = mask.operand();
                            a.sign = sign;
                            a.linf = plain;
                            a.size = half;
                            a.scale = plain ? one + 0 : one;
                            a.bound = bound;
                            a.range = {0.0f, 1.0f, 1.0f, -1.0f, 1.0f, 2.0f};
                            a.maps_range = !plain;
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
