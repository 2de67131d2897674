// The kernels, written once: each instruction set's translation unit includes this after its
// simd_*.h. The formulas are in ../math; here is only how they are fed.
//
// Lambdas capture by value: a vector store may alias anything, so what is captured by reference
// would be read again after each store.
#pragma once

#include <cmath>
#include <type_traits>

#include "../math/diffuse.h"
#include "../math/pgd.h"
#include "../math/quantize.h"
#include "attention.h"
#include "conv3x3.h"
#include "geglu.h"
#include "group_norm.h"
#include "noise.h"
#include "rows.h"

namespace udp {
namespace UDP_ISA {
namespace {

// --- pgd_step ------------------------------------------------------------------------------------

// delta after the step and before any projection, and how many elements of the gradient were
// finite. D, G: storage types. mask may be null.
template <class D, class G>
struct Stepper {
    const D* delta;
    const G* gradient;
    const float* mask;
    float size;
    bool sign;
    SignStep by_sign = SignStep(size);

    bool usual() const { return sign && mask == nullptr; }

    // kUsual: the step is known to be.
    template <bool kUsual, class Lanes>
    F at(int64_t i, Lanes lanes, Count& finite) const {
        const F d = load(delta + i, lanes);
        if constexpr (kStepsBy16Bits && kUsual && sizeof(G) == 2 && std::is_same_v<Lanes, Full>) {
            return sign_step(by_sign, d, gradient + i, finite);
        }
        const F g = load(gradient + i, lanes);
        finite.add(is_finite(g));
        const F s = kUsual || mask == nullptr ? F(size) : F(size) * load(mask + i, lanes);
        return step(d, kUsual || sign ? finite_sign(g) : finite_or_zero(g), s);
    }
};

double gradient_square(const PgdStep& a, const Plan& plan, int64_t image, int64_t chunk) {
    Sums sums;
    Buffer buffer;
    for_rows(plan, image, chunk, [&](const Row& row) {
        const float* gradient = read(a.gradient, row, buffer);
        for_lanes(row.size(), [&sums, gradient](int64_t i, auto lanes) {
            sums.add_square(finite_or_zero(load(gradient + i, lanes)));
        });
    });
    return total(sums);
}

double stepped_square(const PgdStep& a, const Plan& plan, int64_t image, int64_t chunk) {
    Sums sums;
    Count finite;
    Buffer buffers[3];
    for_rows(plan, image, chunk, [&](const Row& row) {
        const float* mask = a.mask.data == nullptr ? nullptr : read(a.mask, row, buffers[2]);
        const Stepper<float, float> s{read(a.delta, row, buffers[0]),
                                      read(a.gradient, row, buffers[1]), mask, a.size[image],
                                      a.sign};
        for_lanes(row.size(), [&sums, &finite, s](int64_t i, auto lanes) {
            sums.add_square(at_most(abs(s.at<false>(i, lanes, finite)), F(kLargest)));
        });
    });
    return total(sums);
}

// Sixteen values of the original, and where the second loop below finds them again: where they
// were, or, of bytes, in `kept`.
template <class Lanes>
UDP_HD F original_value(const float* p, Lanes lanes, const Range&, float*) {
    return from_float(load(p, lanes));
}
template <class Lanes>
UDP_HD F original_value(const uint8_t* p, Lanes lanes, const Range& range, float* kept) {
    const F x = from_byte(load(p, lanes), range);
    store(kept, x, lanes, false);
    return x;
}
template <class Lanes>
UDP_HD F value_again(const float* original, const float*, Lanes lanes) {
    return from_float(load(original, lanes));
}
template <class Lanes>
UDP_HD F value_again(const uint8_t*, const float* kept, Lanes lanes) {
    return load(kept, lanes);
}

// -(byte / 255), the quotient as `from_byte` finds it; no zero is negative.
UDP_HD F minus_unit_from_byte(const F& byte) {
    return fma(byte, F(-0x1.010102p-8f), byte * F(0x1.fdfdfep-33f));
}
// a and b into 0 .. 1. They are sums of a byte / 255 and a D.
template <class D, class Adv>
UDP_HD void store_unit(Adv* p, const F& a, const F& b, bool stream) {
    if constexpr (std::is_same_v<D, Float16> && std::is_same_v<Adv, BFloat16>) {
        if (store_unit32(p, a, b, stream)) return;
    }
    const F zero(0.0f), one(1.0f);
    store32(p, at_most(at_least(a, zero), one), at_most(at_least(b, zero), one), stream);
}

// D, G, X, Adv: storage types. Returns how many elements of the gradient were finite, the zeros
// that stand for elements past the end of the row included.
//
// Where something is converted, two loops over kRow elements at a time: the second finds delta in
// the first cache as it was rounded. One loop's chain of dependent instructions would be so long
// that the processor cannot hold enough iterations at once to hide it, nor see the next lines in
// time: two short chains take a tenth less, and fetching ahead a tenth again.
template <bool kUsual, bool kScales, class D, class G, class X, class Adv>
int64_t pgd_row(const PgdStep& a, const Row& row, const Stepper<D, G> s, const X* original,
                D* delta, Adv* adv, bool stream) {
    constexpr bool kBytes = std::is_same_v<X, uint8_t>;
    const float bound = a.bound[row.image], scale = kScales ? a.scale[row.image] : 1.0f;
    const Range range = a.range;
    const auto projected = [=](const F& d, const F& x, const F& nothing) {
        const F inside = within(d, F(bound));
        return project(kScales ? inside * F(scale) : inside, x, nothing, range);
    };
    const bool maps = a.maps_range;
    const auto result = [=](const F& x, const F& d) { return adversarial(x, d, maps, range); };
    Count finite;
    if constexpr (std::is_same_v<D, float> && std::is_same_v<X, float>) {
        // The processor by itself does not see as far ahead in three streams at once.
        constexpr int64_t kAhead = 256;
        for_lanes(row.size(), [=, &finite](int64_t i, auto lanes) {
            fetch(s.delta + i + kAhead);
            fetch(s.gradient + i + kAhead);
            fetch(original + i + kAhead);
            const F x = from_float(load(original + i, lanes));
            const F stepped = s.template at<kUsual>(i, lanes, finite);
            const F d = projected(stepped, x, nothing_or_nan(x));
            store(delta + i, d, lanes, false);
            store(adv + i, result(x, d), lanes, stream);
        });
        return finite.total();
    }
    Buffer buffer;
    float* kept = buffer.data;
    for (int64_t begin = 0; begin < row.size(); begin += kRow) {
        const int64_t end = begin + kRow < row.size() ? begin + kRow : row.size();
        for_lanes(begin, end, [=, &finite](int64_t i, auto lanes) {
            // With bytes all operands are where the caller has them.
            if (kBytes) {
                fetch(s.delta + i + kRow);
                fetch(s.gradient + i + kRow);
                fetch(original + i + kRow);
            }
            const F x = original_value(original + i, lanes, range, kept + (i - begin));
            const F stepped = s.template at<kUsual>(i, lanes, finite);
            const F nothing = kBytes ? F(0.0f) : nothing_or_nan(x);
            store(delta + i, projected(stepped, x, nothing), lanes, false);
        });
        store_lanes(adv, begin, end, stream, [=](int64_t i, auto lanes) {
            const F x = value_again(original + i, kept + (i - begin), lanes);
            return result(x, load(delta + i, lanes));
        });
    }
    return finite.total();
}

int64_t lanes_in(const Row& row) {
    return (row.size() + 15) / 16 * 16;
}

// Any call. delta keeps its type, whose rounding matters; all else is made float32 row by row.
template <class D>
int64_t pgd_step_rows(const PgdStep& a, const Plan& plan, int64_t image, int64_t chunk) {
    Buffer buffers[3], original_buffer, adv_buffer;
    D delta_buffer[kRow];
    int64_t skipped = 0;
    for_rows(plan, image, chunk, [&](const Row& row) {
        const Place place = locate(a.delta, row);
        const bool dense = place.dense(row);
        D* delta = dense ? reinterpret_cast<D*>(place.data) : delta_buffer;
        if (!dense) gather(place, row, delta);

        const float* gradient = read(a.gradient, row, buffers[0]);
        const float* mask = a.mask.data == nullptr ? nullptr : read(a.mask, row, buffers[1]);
        const Stepper<D, float> s{delta, gradient, mask, a.size[image], a.sign};
        const float* original = read(a.original, row, original_buffer);
        if (a.original.type == DType::uint8) {
            float* values = original_buffer.data;
            const Range range = a.range;
            for_lanes(row.size(), [=](int64_t i, auto lanes) {
                store(values + i, from_byte(load(values + i, lanes), range), lanes, false);
            });
        }
        const Output adv = open(a.adversarial, row, adv_buffer, a.stream);
        skipped += lanes_in(row);
        // In 16 bits the conversions take the longest, and knowing saves next to nothing.
        constexpr bool kKnows = std::is_same_v<D, float>;
        choose(kKnows && s.usual(), [&](auto usual) {
            constexpr bool kUsual = kKnows && decltype(usual)::value;
            skipped -= pgd_row<kUsual, true>(a, row, s, original, delta, adv.data, adv.stream);
        });
        close(a.adversarial, adv, row, a.stream);
        if (!dense) scatter(delta, row, place);
    });
    return skipped;
}

// pgd_row where both ranges are [0, 1] and the original has bytes, for the first row.size() / 32 *
// 32 elements: the same bits in four fifths of the instructions. With -x in place of x, one bound
// is there already and the other takes one addition; no map, and no zero that could be negative.
template <class D, class G>
int64_t pgd_unit_row(const PgdStep& a, const Row& row, const Stepper<D, G> s,
                     const uint8_t* original, D* delta, G* adv, bool stream) {
    const F bound(a.bound[row.image]);
    const int64_t size = row.size() / 32 * 32;
    Count finite;
    Buffer buffer;
    float* kept = buffer.data;
    for (int64_t begin = 0; begin < size; begin += kRow) {
        const int64_t end = begin + kRow < size ? begin + kRow : size;
        const auto take_step = [=, &finite](int64_t i) {
            const F minus_x = minus_unit_from_byte(load(original + i, Full{}));
            store(kept + (i - begin), minus_x, Full{}, false);
            const F d = within(s.template at<true>(i, Full{}, finite), bound);
            store(delta + i, at_most(at_least(d, minus_x), F(1.0f) + minus_x), Full{}, false);
        };
        const auto result = [=](int64_t i) {
            return load(delta + i, Full{}) - load(kept + (i - begin), Full{});
        };
        for (int64_t i = begin; i < end; i += 16) {
            fetch(original + i + kRow);
            fetch(s.gradient + i + kRow);
            fetch(s.delta + i + kRow);
            take_step(i);
        }
        for (int64_t i = begin; i < end; i += 32) {
            store_unit<D>(adv + i, result(i), result(i + 16), stream);
        }
    }
    return finite.total();
}

// The usual call (a sign step under the linf norm, no mask) on operands of one dense order, where a
// chunk is one row: everything is converted in registers.
template <class D, class G>
int64_t pgd_step_direct(const PgdStep& a, const Plan& plan, int64_t image, int64_t chunk) {
    const float size = a.size[image];
    // What a SignStep cannot take.
    if (size != 0.0f && std::abs(size) < 0x1p-125f) return pgd_step_rows<D>(a, plan, image, chunk);
    const int64_t pixel = chunk * plan.chunk_pixels, rest = plan.shape.pixels - pixel;
    Row row{image, 0, pixel, 1, rest < plan.chunk_pixels ? rest : plan.chunk_pixels, false};
    D* delta = reinterpret_cast<D*>(locate(a.delta, row).data);
    const G* gradient = reinterpret_cast<const G*>(locate(a.gradient, row).data);
    const uint8_t* original = reinterpret_cast<const uint8_t*>(locate(a.original, row).data);
    G* adv = reinterpret_cast<G*>(locate(a.adversarial, row).data);
    const bool stream = a.stream && aligned(adv);
    int64_t skipped = lanes_in(row), done = 0;
    if constexpr (kStepsBy16Bits) {
        if (!a.maps_range && a.range.lo == 0.0f && a.range.hi == 1.0f) {
            const Stepper<D, G> s{delta, gradient, nullptr, size, true};
            skipped -= pgd_unit_row(a, row, s, original, delta, adv, stream);
            done = row.inner / 32 * 32;
            row.inner -= done;
        }
    }
    const Stepper<D, G> s{delta + done, gradient + done, nullptr, size, true};
    return skipped -
           pgd_row<true, false>(a, row, s, original + done, delta + done, adv + done, stream);
}

using PgdKernel = int64_t (*)(const PgdStep&, const Plan&, int64_t, int64_t);

// Directly for the types of a run in 16 bits: a byte original, gradient and result of one 16-bit
// type. Not where a vector of them is converted number by number.
template <bool kConverts>
PgdKernel pgd_kernel(const PgdStep& a, const Plan& plan) {
    const DType delta = a.delta.type, gradient = a.gradient.type;
    if constexpr (kConverts) {
        const bool usual = plan.single_run && a.sign && a.linf && a.mask.data == nullptr &&
                           a.original.type == DType::uint8 && a.adversarial.type == gradient;
        const bool half = delta == DType::float16, wide = delta == DType::float32;
        if (usual && gradient == DType::bfloat16) {
            if (half) return pgd_step_direct<Float16, BFloat16>;
            if (wide) return pgd_step_direct<float, BFloat16>;
        }
        if (usual && gradient == DType::float16) {
            if (half) return pgd_step_direct<Float16, Float16>;
            if (wide) return pgd_step_direct<float, Float16>;
        }
    }
    if (delta == DType::float16) return pgd_step_rows<Float16>;
    if (delta == DType::bfloat16) return pgd_step_rows<BFloat16>;
    return pgd_step_rows<float>;
}

int64_t pgd_step(const PgdStep& a, const Plan& plan, int64_t image, int64_t chunk) {
    const int64_t skipped = pgd_kernel<kConvertsVectors>(a, plan)(a, plan, image, chunk);
    stream_fence();
    return skipped;
}

// --- q_sample ------------------------------------------------------------------------------------

void q_sample(const QSample& a, const Plan& plan, int64_t image, int64_t chunk) {
    Buffer x_buffer, n_buffer, noisy_buffer, copy_buffer;
    NoiseBuffer noise_buffer;
    const F signal(a.signal[image]), level(a.level[image]);
    for_rows(plan, image, chunk, [&](const Row& row) {
        const float* n = noise_row(a.noise, a.keys, plan, row, noise_buffer, n_buffer, a.x);
        const float* x = read(a.x, row, x_buffer);
        const Output noisy = open(a.noisy, row, noisy_buffer, a.stream);
        for_lanes(row.size(), [=](int64_t i, auto lanes) {
            const F y = diffuse(load(x + i, lanes), load(n + i, lanes), signal, level);
            store(noisy.data + i, y, lanes, noisy.stream);
        });
        close(a.noisy, noisy, row, a.stream);
        if (a.noise_out.data == nullptr) return;
        const Output out = open(a.noise_out, row, copy_buffer, a.stream);
        for_lanes(row.size(), [=](int64_t i, auto lanes) {
            store(out.data + i, load(n + i, lanes), lanes, out.stream);
        });
        close(a.noise_out, out, row, a.stream);
    });
    stream_fence();
}

// --- denoising_loss ------------------------------------------------------------------------------

// What the prediction is compared with, from what the row has of target, x and noise.
template <Target kKind>
struct Targets {
    const float *target, *x, *n;
    F signal, level;

    template <class Lanes>
    F at(int64_t i, Lanes lanes) const {
        switch (kKind) {
            case Target::given:
                return load(target + i, lanes);
            case Target::epsilon:
                return load(n + i, lanes);
            case Target::sample:
                return load(x + i, lanes);
            case Target::flow:
                return load(n + i, lanes) - load(x + i, lanes);
            case Target::velocity:
                return velocity(load(x + i, lanes), load(n + i, lanes), signal, level);
        }
        return signal;
    }
};

template <Target kKind>
double denoising_loss_of(const DenoisingLoss& a, const Plan& plan, int64_t image, int64_t chunk) {
    constexpr bool kNoise =
        kKind == Target::epsilon || kKind == Target::velocity || kKind == Target::flow;
    constexpr bool kX =
        kKind == Target::sample || kKind == Target::velocity || kKind == Target::flow;
    Buffer p_buffer, t_buffer, x_buffer, n_buffer, gradient_buffer;
    NoiseBuffer noise_buffer;
    Sums sums;
    const F scale(a.gradient_scale[image]);
    for_rows(plan, image, chunk, [&](const Row& row) {
        Targets<kKind> t{};
        if (kNoise) {
            t.n = noise_row(a.noise, a.keys, plan, row, noise_buffer, n_buffer, a.prediction);
        }
        const float* p = read(a.prediction, row, p_buffer);
        if (kKind == Target::given) t.target = read(a.target, row, t_buffer);
        if (kX) t.x = read(a.x, row, x_buffer);
        if (kKind == Target::velocity) {
            t.signal = F(a.signal[image]);
            t.level = F(a.level[image]);
        }
        if (a.gradient.data == nullptr) {
            for_lanes(row.size(), [&sums, t, p](int64_t i, auto lanes) {
                sums.add_square(load(p + i, lanes) - t.at(i, lanes));
            });
            return;
        }
        const Output gradient = open(a.gradient, row, gradient_buffer, a.stream);
        // A copy that nothing points to stays in registers: each store might change another.
        Sums of_row = sums;
        for_lanes(row.size(), [&of_row, t, p, scale, gradient](int64_t i, auto lanes) {
            if (kKind == Target::given) {  // half a row ahead; the other kinds have more to compute
                fetch(p + i + kRow / 2);
                fetch(t.target + i + kRow / 2);
            }
            const F difference = load(p + i, lanes) - t.at(i, lanes);
            of_row.add_square(difference);
            store(gradient.data + i, scale * difference, lanes, gradient.stream);
        });
        sums = of_row;
        close(a.gradient, gradient, row, a.stream);
    });
    stream_fence();
    return total(sums);
}

double denoising_loss(const DenoisingLoss& a, const Plan& plan, int64_t image, int64_t chunk) {
    switch (a.kind) {
        case Target::given:
            return denoising_loss_of<Target::given>(a, plan, image, chunk);
        case Target::epsilon:
            return denoising_loss_of<Target::epsilon>(a, plan, image, chunk);
        case Target::velocity:
            return denoising_loss_of<Target::velocity>(a, plan, image, chunk);
        case Target::sample:
            return denoising_loss_of<Target::sample>(a, plan, image, chunk);
        case Target::flow:
            return denoising_loss_of<Target::flow>(a, plan, image, chunk);
    }
    return 0.0;
}

// --- quantize ------------------------------------------------------------------------------------

template <bool kIsImage, bool kStochastic>
void quantize_row(const Quantize& a, const Row& row, const float* value, const float* original,
                  const float* u, float* out) {
    const F lo(a.is_image ? a.lo : 0.0f), to_levels(a.to_levels), levels(a.levels[row.image]);
    for_lanes(row.size(), [=](int64_t i, auto lanes) {
        const F o = load(original + i, lanes);
        F change = (load(value + i, lanes) - lo) * to_levels;
        if (kIsImage) change = change - o;
        change = select(change <= change, change, F(0.0f));  // a NaN changes nothing
        change = kStochastic ? floor(change + load(u + i, lanes)) : round_half_even(change);
        store(out + i, bounded_byte(o, change, levels), lanes, false);
    });
}

void quantize(const Quantize& a, const Plan& plan, int64_t image, int64_t chunk) {
    Buffer value_buffer, original_buffer, u_buffer, out_buffer;
    NoiseBuffer noise_buffer;
    for_rows(plan, image, chunk, [&](const Row& row) {
        const float* u = nullptr;
        if (a.keys != nullptr) {
            u = draw<Uniforms>(a.keys[image], plan, row, noise_buffer, u_buffer, a.value);
        }
        const float* value = read(a.value, row, value_buffer);
        const float* original = read(a.original, row, original_buffer);
        const Output out = open(a.out, row, out_buffer, false);
        choose(a.is_image, [&](auto is_image) {
            choose(u != nullptr, [&](auto stochastic) {
                quantize_row<decltype(is_image)::value, decltype(stochastic)::value>(
                    a, row, value, original, u, out.data);
            });
        });
        close(a.out, out, row, a.stream);
    });
    stream_fence();
}

// --- image_scale ---------------------------------------------------------------------------------

void image_scale(const ImageScale& a, const Plan& plan, int64_t image, int64_t chunk) {
    Buffer x_buffer, out_buffer;
    const F scale(a.scale[image]);
    for_rows(plan, image, chunk, [&](const Row& row) {
        const float* x = read(a.x, row, x_buffer);
        const Output out = open(a.out, row, out_buffer, a.stream);
        for_lanes(row.size(), [=](int64_t i, auto lanes) {
            store(out.data + i, load(x + i, lanes) * scale, lanes, out.stream);
        });
        close(a.out, out, row, a.stream);
    });
    stream_fence();
}

// --- copy: the machine's limit, for benchmarks ---------------------------------------------------

void copy(float* to, const float* from, int64_t n, bool stream) {
    for_lanes(n, [=](int64_t i, auto lanes) {
        store(to + i, load(from + i, lanes), lanes, stream && aligned(to));
    });
    stream_fence();
}

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = {UDP_ISA_NAME,
                          gradient_square,
                          stepped_square,
                          pgd_step,
                          q_sample,
                          denoising_loss,
                          quantize,
                          image_scale,
                          conv_tiles,
                          conv_block,
                          geglu,
                          geglu_backward,
                          copy,
                          attention_floats,
                          attention,
                          attention_backward_floats,
                          attention_backward,
                          attention_sum,
                          kGroupNorm};

}  // namespace UDP_ISA
}  // namespace udp
