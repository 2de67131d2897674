#include "launch.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <initializer_list>
#include <limits>

#include "../math/diffuse.h"
#include "../math/half.h"
#include "../math/quantize.h"
#include "caches.h"
#include "isa.h"
#include "parallel.h"
#include "workspace.h"

namespace udp {
namespace {

bool is_planar(const Operand& o, const Shape& s) {
    return (o.pixel == 1 || s.pixels == 1) && (o.channel == s.pixels || s.channels == 1);
}
bool is_interleaved(const Operand& o, const Shape& s) {
    return (o.channel == 1 || s.channels == 1) && (o.pixel == s.channels || s.pixels == 1);
}

// The walk over an image. `leading` is the operand whose memory order is worth following; the
// others may be absent. Where all of them have one dense order an image is a single run, unless
// noise, whose index is logical, would have to follow an order that is not.
Plan plan_for(const Shape& shape, const Operand& leading, std::initializer_list<Operand> others,
              bool draws_noise) {
    bool planar = is_planar(leading, shape), interleaved = is_interleaved(leading, shape);
    for (const Operand& o : others) {
        if (o.data == nullptr) continue;
        planar = planar && is_planar(o, shape);
        interleaved = interleaved && is_interleaved(o, shape);
    }
    if (planar || (interleaved && !draws_noise)) {
        return {{shape.images, 1, shape.channels * shape.pixels}, false, true, 1, kChunk};
    }
    // With many channels an interleaved row would have few pixels, and noise comes in runs of
    // pixels.
    const int64_t most_channels = draws_noise ? 16 : kRow;
    if (is_interleaved(leading, shape) && !is_planar(leading, shape) &&
        shape.channels <= most_channels) {
        return {shape, true, false, shape.channels, (kChunk + shape.channels - 1) / shape.channels};
    }
    const int64_t channels = shape.channels < 16 ? shape.channels : 16;
    return {shape, false, false, channels, kChunk / channels / kRow * kRow};
}

// The kernels read interleaved operands as [1, pixels * channels] when the plan is a single run.
Operand flattened(Operand o, const Plan& plan, const Shape& shape) {
    if (plan.single_run) {
        o.channel = 0;
        o.pixel = 1;
    }
    return o;
}

// body(image, chunk) for all of them.
template <class Body>
void for_chunks(const Plan& plan, int threads, const Body& body) {
    const int64_t chunks = plan.chunks();
    const int64_t elements = plan.shape.channels * plan.shape.pixels;
    const int64_t chunk_size = elements / chunks + 1;
    const int64_t grain = chunk_size < kChunk / 2 ? kChunk / chunk_size : 1;
    parallel_for(plan.shape.images * chunks, grain, threads,
                 [&](int64_t item) { body(item / chunks, item % chunks); });
}

// Sums over the chunks of each image, in their order.
template <class Body>
std::vector<double> image_sums(const Plan& plan, int threads, const Body& body) {
    const int64_t chunks = plan.chunks();
    std::vector<double> parts(static_cast<size_t>(plan.shape.images * chunks));
    for_chunks(plan, threads, [&](int64_t image, int64_t chunk) {
        parts[static_cast<size_t>(image * chunks + chunk)] = body(image, chunk);
    });
    std::vector<double> sums(static_cast<size_t>(plan.shape.images));
    for (size_t i = 0; i < parts.size(); ++i) sums[i / static_cast<size_t>(chunks)] += parts[i];
    return sums;
}

float at_most_in(DType type, float bound) {
    if (type == DType::float16) return float16_at_most(bound);
    if (type == DType::bfloat16) return bfloat16_at_most(bound);
    return bound;
}

void set_levels(const Schedule& s, int64_t images, std::vector<float>& signal,
                std::vector<float>& noise) {
    for (int64_t b = 0; b < images; ++b) {
        const float entry = s.table[s.t[b]];
        const Levels levels = s.flow ? flow_levels(entry) : diffusion_levels(entry);
        signal.push_back(levels.signal);
        noise.push_back(levels.noise);
    }
}

bool worth_streaming(int64_t bytes) {
    return bytes > last_cache() / 4;
}

}  // namespace

bool worth_streaming(const Shape& shape, const Operand& out) {
    return worth_streaming(shape.images * shape.channels * shape.pixels * size_of(out.type));
}

void pgd_step(PgdStep args, Shape shape, PerImage<float> alpha, PerImage<float> eps, Step step,
              Norm norm, bool maximize, int64_t* skipped, int threads) {
    const Kernels& k = kernels();
    const Plan plan = plan_for(shape, args.delta,
                               {args.gradient, args.original, args.mask, args.adversarial}, false);
    for (Operand* o :
         {&args.delta, &args.gradient, &args.original, &args.mask, &args.adversarial}) {
        *o = flattened(*o, plan, shape);
    }
    args.stream = worth_streaming(shape, args.adversarial);
    args.sign = step == Step::sign;
    args.linf = norm == Norm::linf;

    const size_t images = static_cast<size_t>(shape.images);
    std::vector<float> size(images), scale(images, 1.0f);
    std::vector<float> bound(images, kLargest);
    args.size = size.data();
    args.scale = scale.data();
    args.bound = bound.data();

    std::vector<double> squares;
    if (step == Step::l2) {
        squares = image_sums(plan, threads, [&](int64_t image, int64_t chunk) {
            return k.gradient_square(args, plan, image, chunk);
        });
    }
    for (size_t b = 0; b < images; ++b) {
        const int64_t image = static_cast<int64_t>(b);
        size[b] = maximize ? alpha[image] : -alpha[image];
        if (step == Step::l2) {
            const double length = std::sqrt(squares[b]);
            // Below the smallest normal float there is no direction to speak of.
            size[b] = length >= std::numeric_limits<float>::min()
                          ? static_cast<float>(size[b] / length)
                          : 0.0f;
        }
        if (args.linf) bound[b] = at_most_in(args.delta.type, eps[image]);
    }
    if (!args.linf) {
        squares = image_sums(plan, threads, [&](int64_t image, int64_t chunk) {
            return k.stepped_square(args, plan, image, chunk);
        });
        for (size_t b = 0; b < images; ++b) {
            const double length = std::sqrt(squares[b]), limit = eps[static_cast<int64_t>(b)];
            if (length > limit) scale[b] = static_cast<float>(limit / length);
        }
    }

    std::vector<std::atomic<int64_t>> counts(images);
    for_chunks(plan, threads, [&](int64_t image, int64_t chunk) {
        const int64_t n = k.pgd_step(args, plan, image, chunk);
        if (n > 0) counts[static_cast<size_t>(image)].fetch_add(n, std::memory_order_relaxed);
    });
    for (size_t b = 0; b < images; ++b) skipped[b] = counts[b];
}

void q_sample(QSample args, Shape shape, const Schedule& schedule, int threads) {
    const Kernels& k = kernels();
    const Plan plan = plan_for(shape, args.x, {args.noise, args.noisy, args.noise_out},
                               args.noise.data == nullptr);
    for (Operand* o : {&args.x, &args.noise, &args.noisy, &args.noise_out}) {
        *o = flattened(*o, plan, shape);
    }
    args.stream = worth_streaming(shape, args.noisy);
    std::vector<float> signal, noise;
    set_levels(schedule, shape.images, signal, noise);
    args.signal = signal.data();
    args.level = noise.data();
    for_chunks(plan, threads,
               [&](int64_t image, int64_t chunk) { k.q_sample(args, plan, image, chunk); });
}

void denoising_loss(DenoisingLoss args, Shape shape, const Schedule& schedule,
                    PerImage<float> weight, double grad_scale, float* loss, int threads) {
    const Kernels& k = kernels();
    const Plan plan =
        plan_for(shape, args.prediction, {args.target, args.x, args.noise, args.gradient},
                 args.keys != nullptr);
    for (Operand* o : {&args.prediction, &args.target, &args.x, &args.noise, &args.gradient}) {
        *o = flattened(*o, plan, shape);
    }
    args.stream = args.gradient.data != nullptr && worth_streaming(shape, args.gradient);
    std::vector<float> signal, noise;
    if (args.kind == Target::velocity) set_levels(schedule, shape.images, signal, noise);
    args.signal = signal.data();
    args.level = noise.data();

    const double elements = static_cast<double>(shape.channels * shape.pixels);
    std::vector<float> scale;
    for (int64_t b = 0; b < shape.images; ++b) {
        const double w = weight.data == nullptr ? 1.0 : weight[b];
        scale.push_back(static_cast<float>(grad_scale * w * 2.0 / elements));
    }
    args.gradient_scale = scale.data();

    const std::vector<double> squares = image_sums(
        plan, threads,
        [&](int64_t image, int64_t chunk) { return k.denoising_loss(args, plan, image, chunk); });
    for (int64_t b = 0; b < shape.images; ++b) {
        const double w = weight.data == nullptr ? 1.0 : weight[b];
        loss[b] = static_cast<float>(w * squares[static_cast<size_t>(b)] / elements);
    }
}

void quantize(Quantize args, Shape shape, PerImage<float> eps, int threads) {
    const Kernels& k = kernels();
    const Plan plan = plan_for(shape, args.value, {args.original, args.out}, args.keys != nullptr);
    for (Operand* o : {&args.value, &args.original, &args.out}) *o = flattened(*o, plan, shape);
    args.stream = worth_streaming(shape, args.out);
    std::vector<float> levels;
    for (int64_t b = 0; b < shape.images; ++b) levels.push_back(levels_in(eps[b]));
    args.levels = levels.data();
    for_chunks(plan, threads,
               [&](int64_t image, int64_t chunk) { k.quantize(args, plan, image, chunk); });
}

void image_scale(ImageScale args, Shape shape, int threads) {
    const Kernels& k = kernels();
    const Plan plan = plan_for(shape, args.x, {args.out}, false);
    for (Operand* o : {&args.x, &args.out}) *o = flattened(*o, plan, shape);
    args.stream = worth_streaming(shape, args.out);
    for_chunks(plan, threads,
               [&](int64_t image, int64_t chunk) { k.image_scale(args, plan, image, chunk); });
}

namespace {

// Tiles are transformed a band at a time, rows of them, all images' one after the other. Where
// weights are many a band is large, 16 MB, for each transforms them anew, and threads share its
// tiles and take its blocks of output channels. Where they are few there are too few blocks for
// that, and each thread takes bands of its own, 4 MB with their products, which stay in its caches.
struct ConvBands {
    bool own;
    int64_t rows, tiles_floats, scratch_floats;
};

constexpr int64_t kFewWeights = 640 * 320, kOwnFloats = 1 << 20, kSharedFloats = 4 << 20;
constexpr int64_t kLeastTiles = 8;  // each thread's, beside which the taps' transform is small

ConvBands conv_bands(Conv3x3& args, int threads) {
    args.tile_rows = (args.height + 3) / 4;
    args.tile_columns = (args.width + 3) / 4;
    args.tiles_pitch = (args.in + 15) / 16 * 16;
    const int64_t all = args.images * args.tile_rows;
    const int64_t pitch = args.tiles_pitch, points = 36 * args.tile_columns;
    const bool own = args.in * args.out <= kFewWeights && all >= threads &&
                     all * args.tile_columns >= kLeastTiles * threads &&
                     points * (pitch + kConvBlock) <= kOwnFloats;
    int64_t rows =
        own ? kOwnFloats / (points * (pitch + kConvBlock)) : kSharedFloats / (points * pitch);
    rows = std::max<int64_t>(std::min(rows, all), 1);
    if (own) {  // as many bands as divide evenly among the threads, nearly equal ones
        const int64_t turns = (all + rows * threads - 1) / (rows * threads);
        rows = (all + turns * threads - 1) / (turns * threads);
    }
    const int64_t tiles = rows * args.tile_columns;
    args.tiles_slice = tiles * args.tiles_pitch + 16;
    return {own, rows, 36 * args.tiles_slice, 36 * (conv_products_slice(tiles) + kConvTapsSlice)};
}

}  // namespace

void conv3x3(Conv3x3 args, int threads) {
    const Kernels& k = kernels();
    threads = std::max(threads, 1);
    const ConvBands bands = conv_bands(args, threads);
    const int64_t all = args.images * args.tile_rows;
    const int64_t blocks = (args.out + kConvBlock - 1) / kConvBlock;
    const int64_t shared = bands.own ? 0 : bands.tiles_floats;
    const int64_t each = bands.scratch_floats + (bands.own ? bands.tiles_floats : 0);
    const Block memory(static_cast<size_t>(shared + threads * each));
    Slots slots(memory.data() + shared, each, threads);
    const auto rows_from = [&](int64_t first) { return std::min(all - first, bands.rows); };
    if (bands.own) {
        parallel_for((all + bands.rows - 1) / bands.rows, 1, threads, [&](int64_t band) {
            slots.with_one([&](float* floats) {
                Conv3x3 own = args;
                own.tiles = floats;
                const int64_t first = band * bands.rows, rows = rows_from(first);
                for (int64_t row = 0; row < rows; ++row) k.conv_tiles(own, first + row, row);
                for (int64_t block = 0; block < blocks; ++block) {
                    k.conv_block(own, first, rows, block, floats + bands.tiles_floats);
                }
            });
        });
        return;
    }
    args.tiles = memory.data();
    for (int64_t first = 0; first < all; first += bands.rows) {
        const int64_t rows = rows_from(first);
        parallel_for(rows, 1, threads, [&](int64_t row) { k.conv_tiles(args, first + row, row); });
        parallel_for(blocks, 1, threads, [&](int64_t block) {
            slots.with_one(
                [&](float* scratch) { k.conv_block(args, first, rows, block, scratch); });
        });
    }
}

void geglu(Geglu args, int threads) {
    const bool backward = args.grad != nullptr;
    const bool whole_lines =
        args.columns % 16 == 0 && reinterpret_cast<uintptr_t>(args.y) % 64 == 0;
    const int64_t floats = args.rows * args.columns * (backward ? 2 : 1);
    args.stream = whole_lines && worth_streaming(floats * int64_t{sizeof(float)});
    const auto kernel = backward ? kernels().geglu_backward : kernels().geglu;
    const int64_t grain = args.columns < kChunk ? kChunk / (args.columns + 1) + 1 : 1;
    parallel_for(args.rows, grain, threads, [&](int64_t row) { kernel(args, row); });
}

void copy(float* to, const float* from, int64_t n, bool stream, int threads) {
    const Kernels& k = kernels();
    parallel_for((n + kChunk - 1) / kChunk, 1, threads, [&](int64_t item) {
        const int64_t begin = item * kChunk, rest = n - begin;
        k.copy(to + begin, from + begin, rest < kChunk ? rest : kChunk, stream);
    });
}

}  // namespace udp
