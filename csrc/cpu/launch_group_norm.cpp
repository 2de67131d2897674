// group_norm_silu, whole. What is summed together and in what order depends on shape and layout
// alone; how the pieces are spread over threads, and what is still in a cache when it is read
// again, may depend on anything.
#include <algorithm>
#include <cmath>

#include "caches.h"
#include "isa.h"
#include "launch.h"
#include "parallel.h"

namespace udp {
namespace {

int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}
int64_t parts(int64_t whole, int64_t part) {
    return (whole + part - 1) / part;
}
size_t at(int64_t i) {
    return static_cast<size_t>(i);
}

// Whether each thread is to take whole groups, which it finds in a nearer cache when it reads them
// again: unless the last round would leave more than an eighth of the threads' time unused.
bool by_group(const GroupNorm& a, int threads) {
    const int64_t groups = a.shape.images * a.groups;
    return parts(groups, threads) * threads <= groups + groups / 8;
}

// All of a group.
Tile whole(const GroupNorm& a, int64_t group) {  // of all images
    return {group / a.groups, group % a.groups * a.group_channels(), a.group_channels(), 0,
            a.shape.pixels};
}

// A planar channel or several, or part of one, `most` elements: how a group is cut for `slopes`,
// where that decides about bits, and for any pass.
struct Cut {
    int64_t channels, pixels;  // of a piece
    int64_t across, along;     // pieces of a group

    Cut(const GroupNorm& a, int64_t most)
        : channels(least(a.group_channels(), most / least(a.shape.pixels, most))),
          pixels(least(a.shape.pixels, most)),
          across(parts(a.group_channels(), channels)),
          along(parts(a.shape.pixels, pixels)) {}

    int64_t pieces() const { return across * along; }
    Tile tile(const GroupNorm& a, int64_t group, int64_t piece) const {  // group: of all images
        const int64_t channel = piece / along * channels, pixel = piece % along * pixels;
        return {group / a.groups, group % a.groups * a.group_channels() + channel,
                least(channels, a.group_channels() - channel), pixel,
                least(pixels, a.shape.pixels - pixel)};
    }
};

// An interleaved image in pieces of pixels with some of its channels, a multiple of 16: all of them
// unless that would leave threads without work.
struct Grid {
    int64_t channels, pixels;
    int64_t across, along;

    Grid(const GroupNorm& a, int64_t piece_pixels, int threads)
        : channels(a.padded()),
          pixels(piece_pixels),
          across(1),
          along(parts(a.shape.pixels, pixels)) {
        while (channels > 64 && a.shape.images * along * across < 2 * threads) {
            channels = parts(channels / 16, 2) * 16;
            across = parts(a.shape.channels, channels);
        }
    }
    int64_t tiles() const { return across * along; }
    Tile tile(const GroupNorm& a, int64_t image, int64_t index) const {
        const int64_t channel = index % across * channels, pixel = index / across * pixels;
        return {image, channel, least(channels, a.shape.channels - channel), pixel,
                least(pixels, a.shape.pixels - pixel)};
    }
};

// Interleaved pixels that a thread takes at a time: about kChunk elements.
int64_t strip(const GroupNorm& a) {
    return parts(kChunk, 4 * a.shape.channels) * 4;
}

float scale_of(const GroupNorm& a, int64_t channel, int64_t row) {
    return a.weight == nullptr ? a.rstd[row] : a.rstd[row] * a.weight[channel];
}

// --- forward -------------------------------------------------------------------------------------

// Moments of parts, put together. each(body) calls body(moments, elements) for all of them.
struct Fold {
    double count = 0.0, mean = 0.0, square = 0.0;

    template <class Each>
    explicit Fold(const Each& each) {
        each([&](const Moments& part, int64_t elements) {
            count += static_cast<double>(elements);
            mean += static_cast<double>(elements) * part.mean;
        });
        mean /= count;
        each([&](const Moments& part, int64_t elements) {
            const double distance = part.mean - mean;
            square += part.square + static_cast<double>(elements) * distance * distance;
        });
    }
    void write(double eps, float& mean_out, float& rstd_out) const {
        mean_out = static_cast<float>(mean);
        rstd_out = static_cast<float>(1.0 / std::sqrt(square / count + eps));
    }
};

void planar_forward(const GroupNorm& a, double eps, float* mean, float* rstd, int threads) {
    const GroupNormKernels& k = kernels().group_norm;
    const int64_t elements = a.group_channels() * a.shape.pixels;
    const int64_t runs = parts(elements, kRunPiece);
    std::vector<Moments> found(at(a.shape.images * a.groups * runs));
    const auto moments = [&](int64_t group, int64_t run) {  // group: of all images
        const int64_t first = run * kRunPiece;
        found[at(group * runs + run)] = k.run_moments(a, group / a.groups, group % a.groups, first,
                                                      least(kRunPiece, elements - first));
    };
    const auto fold = [&](int64_t group) {
        Fold([&](auto body) {
            for (int64_t run = 0; run < runs; ++run) {
                body(found[at(group * runs + run)], least(kRunPiece, elements - run * kRunPiece));
            }
        }).write(eps, mean[group], rstd[group]);
    };
    const int64_t groups = a.shape.images * a.groups;
    if (by_group(a, threads)) {
        parallel_for(groups, parts(kChunk, 4 * elements), threads, [&](int64_t group) {
            for (int64_t run = 0; run < runs; ++run) moments(group, run);
            fold(group);
            k.apply(a, whole(a, group));
        });
        return;
    }
    parallel_for(groups * runs, 1, threads, [&](int64_t i) { moments(i / runs, i % runs); });
    parallel_for(groups, parts(1024, runs), threads, fold);
    const Cut cut(a, kChunk);
    parallel_for(groups * cut.pieces(), 1, threads,
                 [&](int64_t i) { k.apply(a, cut.tile(a, i / cut.pieces(), i % cut.pieces())); });
}

// What each channel of a group takes from it.
void fill_columns(const GroupNorm& a, int64_t group, float* columns) {  // group: of all images
    const int64_t width = a.group_channels(), padded = a.padded();
    const int64_t first = group % a.groups * width;
    float* column = columns + group / a.groups * GroupNorm::kColumns * padded;
    for (int64_t c = first; c < first + width; ++c) {
        column[GroupNorm::kMean * padded + c] = a.mean[group];
        column[GroupNorm::kScale * padded + c] = scale_of(a, c, group);
        column[GroupNorm::kBias * padded + c] = a.bias == nullptr ? 0.0f : a.bias[c];
        if (a.pull == nullptr) continue;
        column[GroupNorm::kPull * padded + c] = a.pull[group];
        column[GroupNorm::kTilt * padded + c] = a.tilt[group];
    }
}

// Groups whose few numbers a thread puts together at a time.
constexpr int64_t kFolds = 8;

// body(first, images): both passes over some images, before their operands have left the last
// cache. The second pass is to begin where the first one ended.
template <class Body>
void for_images(const GroupNorm& a, int operands, const Body& body) {
    const int64_t image = a.shape.channels * a.shape.pixels * size_of(a.x.type) * operands;
    const int64_t most = std::max<int64_t>(last_cache() / 2 / image, 1);
    for (int64_t first = 0; first < a.shape.images; first += most) {
        body(first, least(most, a.shape.images - first));
    }
}

void interleaved_forward(GroupNorm a, double eps, float* mean, float* rstd, int threads) {
    const GroupNormKernels& k = kernels().group_norm;
    const int64_t channels = a.shape.channels, width = a.group_channels();
    const Grid grid(a, kPixelPiece, threads), strips(a, strip(a), threads);
    std::vector<Moments> found(at(a.shape.images * grid.along * channels));
    std::vector<float> columns(at(a.shape.images * GroupNorm::kColumns * a.padded()));
    a.columns = columns.data();
    const auto fold = [&](int64_t group) {
        const Moments* first =
            &found[at(group / a.groups * grid.along * channels + group % a.groups * width)];
        Fold([&](auto body) {
            for (int64_t piece = 0; piece < grid.along; ++piece) {
                const int64_t pixels = least(kPixelPiece, a.shape.pixels - piece * kPixelPiece);
                for (int64_t i = 0; i < width; ++i) body(first[piece * channels + i], pixels);
            }
        }).write(eps, mean[group], rstd[group]);
        fill_columns(a, group, columns.data());
    };
    for_images(a, 1, [&](int64_t first, int64_t images) {
        parallel_for(images * grid.tiles(), 1, threads, [&](int64_t i) {
            const Tile tile = grid.tile(a, first + i / grid.tiles(), i % grid.tiles());
            const int64_t piece = tile.pixel / kPixelPiece;
            k.moments(a, tile,
                      &found[at((tile.image * grid.along + piece) * channels + tile.channel)]);
        });
        parallel_for(images * a.groups, kFolds, threads,
                     [&](int64_t i) { fold(first * a.groups + i); });
        const int64_t last = images * strips.tiles() - 1;
        parallel_for(last + 1, 1, threads, [&](int64_t i) {
            const int64_t index = last - i;
            k.apply(a, strips.tile(a, first + index / strips.tiles(), index % strips.tiles()));
        });
    });
}

// --- backward ------------------------------------------------------------------------------------

// pull and tilt of a group, from its sums weighted by the channels' scales
void write_pull(const GroupNorm& a, int64_t group, const Slopes& sum, float* pull, float* tilt) {
    const double count = static_cast<double>(a.group_channels() * a.shape.pixels);
    const double rstd = a.rstd[group];
    pull[group] = static_cast<float>(sum.plain / count);
    tilt[group] = static_cast<float>(rstd * rstd * sum.tilted / count);
}

// The arguments of `dx`, once `slopes` has had `a`.
GroupNorm for_dx(GroupNorm a, const float* pull, const float* tilt) {
    a.pull = pull;
    a.tilt = tilt;
    if (a.keeps) {
        a.gradient = a.out;
        a.silu = false;
    }
    return a;
}

// dweight and dbias from `pieces` sums of each channel: found[(image * pieces + piece) * channels +
// channel], or with pieces fastest.
template <class Found>
void weight_gradients(const GroupNorm& a, int64_t pieces, const Found& found, float* dweight,
                      float* dbias, int threads) {
    if (dweight == nullptr && dbias == nullptr) return;
    parallel_for(a.shape.channels, 64, threads, [&](int64_t channel) {
        double weight = 0.0, bias = 0.0;
        for (int64_t image = 0; image < a.shape.images; ++image) {
            double plain = 0.0, tilted = 0.0;
            for (int64_t piece = 0; piece < pieces; ++piece) {
                const Slopes& s = found(image, channel, piece);
                plain += s.plain;
                tilted += s.tilted;
            }
            bias += plain;
            weight += tilted * a.rstd[image * a.groups + channel / a.group_channels()];
        }
        if (dweight != nullptr) dweight[channel] = static_cast<float>(weight);
        if (dbias != nullptr) dbias[channel] = static_cast<float>(bias);
    });
}

void planar_backward(GroupNorm a, float* dweight, float* dbias, int threads) {
    const bool wants_dx = a.out.data != nullptr;
    const GroupNormKernels& k = kernels().group_norm;
    const Cut cut(a, kRunPiece);
    const int64_t groups = a.shape.images * a.groups, pieces = cut.pieces();
    const bool by_channel = dweight != nullptr || dbias != nullptr;
    std::vector<Slopes> sums(at(groups * pieces));
    std::vector<Slopes> channels(by_channel ? at(a.shape.images * a.shape.channels * cut.along)
                                            : 0);
    std::vector<float> pull(at(groups)), tilt(at(groups));
    const auto slopes = [&](int64_t group, int64_t piece) {
        const Tile tile = cut.tile(a, group, piece);
        // A piece of several channels is all of each: where there are more pieces along a channel,
        // it is one channel.
        const int64_t first =
            (tile.image * a.shape.channels + tile.channel) * cut.along + tile.pixel / cut.pixels;
        sums[at(group * pieces + piece)] =
            k.slopes(a, tile, by_channel ? &channels[at(first)] : nullptr);
    };
    const auto fold = [&](int64_t group) {
        Slopes sum{};
        for (int64_t piece = 0; piece < pieces; ++piece) {
            sum.plain += sums[at(group * pieces + piece)].plain;
            sum.tilted += sums[at(group * pieces + piece)].tilted;
        }
        write_pull(a, group, sum, pull.data(), tilt.data());
    };
    const GroupNorm b = for_dx(a, pull.data(), tilt.data());
    if (by_group(a, threads)) {
        const int64_t elements = a.group_channels() * a.shape.pixels;
        parallel_for(groups, parts(kChunk, 4 * elements), threads, [&](int64_t group) {
            for (int64_t piece = 0; piece < pieces; ++piece) slopes(group, piece);
            if (!wants_dx) return;
            fold(group);
            k.dx(b, whole(a, group));
        });
    } else {
        parallel_for(groups * pieces, 1, threads,
                     [&](int64_t i) { slopes(i / pieces, i % pieces); });
        if (wants_dx) {
            parallel_for(groups, parts(1024, pieces), threads, fold);
            const Cut pass(a, kChunk);
            parallel_for(groups * pass.pieces(), 1, threads, [&](int64_t i) {
                k.dx(b, pass.tile(a, i / pass.pieces(), i % pass.pieces()));
            });
        }
    }
    weight_gradients(
        a, cut.along,
        [&](int64_t image, int64_t channel, int64_t piece) -> const Slopes& {
            return channels[at((image * a.shape.channels + channel) * cut.along + piece)];
        },
        dweight, dbias, threads);
}

void interleaved_backward(GroupNorm a, float* dweight, float* dbias, int threads) {
    const GroupNormKernels& k = kernels().group_norm;
    const int64_t images = a.shape.images, channels = a.shape.channels;
    const int64_t width = a.group_channels(), groups = images * a.groups;
    std::vector<float> columns(at(images * GroupNorm::kColumns * a.padded()));
    a.columns = columns.data();
    parallel_for(groups, parts(1024, width), threads,
                 [&](int64_t group) { fill_columns(a, group, columns.data()); });

    const Grid grid(a, kPixelPiece, threads), strips(a, strip(a), threads);
    std::vector<Slopes> found(at(images * grid.along * channels));
    const auto slopes = [&](int64_t image, int64_t channel, int64_t piece) -> Slopes& {
        return found[at((image * grid.along + piece) * channels + channel)];
    };
    std::vector<float> pull(at(groups)), tilt(at(groups));
    const GroupNorm b = for_dx(a, pull.data(), tilt.data());
    const auto fold = [&](int64_t group) {
        Slopes sum{};
        for (int64_t i = 0; i < width; ++i) {
            const int64_t channel = group % a.groups * width + i;
            Slopes of_channel{};
            for (int64_t piece = 0; piece < grid.along; ++piece) {
                const Slopes& part = slopes(group / a.groups, channel, piece);
                of_channel.plain += part.plain;
                of_channel.tilted += part.tilted;
            }
            const double scale = scale_of(a, channel, group);
            sum.plain += scale * of_channel.plain;
            sum.tilted += scale * of_channel.tilted;
        }
        write_pull(a, group, sum, pull.data(), tilt.data());
        fill_columns(b, group, columns.data());
    };
    for_images(a, 2, [&](int64_t first, int64_t some) {
        parallel_for(some * grid.tiles(), 1, threads, [&](int64_t i) {
            const Tile tile = grid.tile(a, first + i / grid.tiles(), i % grid.tiles());
            k.slopes(a, tile, &slopes(tile.image, tile.channel, tile.pixel / kPixelPiece));
        });
        if (a.out.data == nullptr) return;
        parallel_for(some * a.groups, kFolds, threads,
                     [&](int64_t i) { fold(first * a.groups + i); });
        const int64_t last = some * strips.tiles() - 1;
        parallel_for(last + 1, 1, threads, [&](int64_t i) {
            const int64_t index = last - i;
            k.dx(b, strips.tile(a, first + index / strips.tiles(), index % strips.tiles()));
        });
    });
    weight_gradients(a, grid.along, slopes, dweight, dbias, threads);
}

}  // namespace

void group_norm(GroupNorm args, double eps, float* mean, float* rstd, int threads) {
    args.mean = mean;
    args.rstd = rstd;
    args.stream = worth_streaming(args.shape, args.out);
    if (args.interleaved) {
        interleaved_forward(args, eps, mean, rstd, threads);
    } else {
        planar_forward(args, eps, mean, rstd, threads);
    }
}

void group_norm_backward(GroupNorm args, float* dweight, float* dbias, int threads) {
    const bool wants_dx = args.out.data != nullptr;
    args.keeps = wants_dx && args.silu && args.out.type == DType::float32;
    args.stream = wants_dx && !args.keeps && worth_streaming(args.shape, args.out);
    if (args.interleaved) {
        interleaved_backward(args, dweight, dbias, threads);
    } else {
        planar_backward(args, dweight, dbias, threads);
    }
}

}  // namespace udp
