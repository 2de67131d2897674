// group_norm_silu, whole. What is summed together and in what order depends on shape and layout
// alone; how the pieces are spread over threads, and what is still in a cache when it is read
// again, may depend on anything.
#include <cmath>

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

// What of a group's operands leaves a core's second cache room for what comes next. Measured: at
// twice as much, two passes over the whole tensor are faster, each one long stream.
constexpr int64_t kCached = 256 << 10;

// Whether a thread is to take whole groups: they are small, and enough to go round.
bool by_group(const GroupNorm& a, int operands, int threads) {
    const int64_t group = a.group_channels() * a.shape.pixels * size_of(a.x.type);
    return group * operands <= kCached && a.shape.images * a.groups >= 2 * threads;
}

// A planar channel or several, or part of one: how a group is cut for `slopes`, and any pass.
struct Cut {
    int64_t channels, pixels;  // of a piece
    int64_t across, along;     // pieces of a group

    explicit Cut(const GroupNorm& a)
        : channels(least(a.group_channels(), kRunPiece / least(a.shape.pixels, kRunPiece))),
          pixels(least(a.shape.pixels, kRunPiece)),
          across(parts(a.group_channels(), channels)),
          along(parts(a.shape.pixels, pixels)) {}

    int64_t pieces() const { return across * along; }
    Tile tile(const GroupNorm& a, int64_t image, int64_t group, int64_t piece) const {
        const int64_t channel = piece / along * channels, pixel = piece % along * pixels;
        return {image, group * a.group_channels() + channel,
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

// Moments of parts, each of `count(i)` elements, put together.
struct Fold {
    double count = 0.0, mean = 0.0, square = 0.0;

    template <class Parts, class Count>
    Fold(int64_t n, const Parts& part, const Count& count_of) {
        for (int64_t i = 0; i < n; ++i) {
            count += static_cast<double>(count_of(i));
            mean += static_cast<double>(count_of(i)) * part(i).mean;
        }
        mean /= count;
        for (int64_t i = 0; i < n; ++i) {
            const double distance = part(i).mean - mean;
            square += part(i).square + static_cast<double>(count_of(i)) * distance * distance;
        }
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
        Fold(
            runs, [&](int64_t run) { return found[at(group * runs + run)]; },
            [&](int64_t run) { return least(kRunPiece, elements - run * kRunPiece); })
            .write(eps, mean[group], rstd[group]);
    };
    const Cut cut(a);
    const auto apply = [&](int64_t group, int64_t piece) {
        k.apply(a, cut.tile(a, group / a.groups, group % a.groups, piece));
    };
    const int64_t groups = a.shape.images * a.groups;
    if (by_group(a, 2, threads)) {
        parallel_for(groups, parts(kChunk, 4 * elements), threads, [&](int64_t group) {
            for (int64_t run = 0; run < runs; ++run) moments(group, run);
            fold(group);
            for (int64_t piece = 0; piece < cut.pieces(); ++piece) apply(group, piece);
        });
        return;
    }
    parallel_for(groups * runs, 1, threads, [&](int64_t i) { moments(i / runs, i % runs); });
    parallel_for(groups, parts(1024, runs), threads, fold);
    parallel_for(groups * cut.pieces(), 1, threads,
                 [&](int64_t i) { apply(i / cut.pieces(), i % cut.pieces()); });
}

// What each channel of an image takes from its group.
void fill_columns(const GroupNorm& a, int64_t image, float* columns) {
    const int64_t padded = a.padded();
    float* column = columns + image * GroupNorm::kColumns * padded;
    for (int64_t c = 0; c < a.shape.channels; ++c) {
        const int64_t row = image * a.groups + c / a.group_channels();
        column[GroupNorm::kMean * padded + c] = a.mean[row];
        column[GroupNorm::kScale * padded + c] = scale_of(a, c, row);
        column[GroupNorm::kBias * padded + c] = a.bias == nullptr ? 0.0f : a.bias[c];
        if (a.pull == nullptr) continue;
        column[GroupNorm::kPull * padded + c] = a.pull[row];
        column[GroupNorm::kTilt * padded + c] = a.tilt[row];
    }
}

void interleaved_forward(GroupNorm a, double eps, float* mean, float* rstd, int threads) {
    const GroupNormKernels& k = kernels().group_norm;
    const int64_t images = a.shape.images, channels = a.shape.channels;
    const Grid grid(a, kPixelPiece, threads);
    std::vector<Moments> found(at(images * grid.along * channels));
    parallel_for(images * grid.tiles(), 1, threads, [&](int64_t i) {
        const Tile tile = grid.tile(a, i / grid.tiles(), i % grid.tiles());
        const int64_t piece = tile.pixel / kPixelPiece;
        k.moments(a, tile, &found[at((tile.image * grid.along + piece) * channels + tile.channel)]);
    });
    std::vector<float> columns(at(images * GroupNorm::kColumns * a.padded()));
    a.columns = columns.data();
    parallel_for(images, 1, threads, [&](int64_t image) {
        const int64_t width = a.group_channels();
        for (int64_t g = 0; g < a.groups; ++g) {
            const Moments* first = &found[at(image * grid.along * channels + g * width)];
            Fold(
                grid.along * width,
                [&](int64_t i) { return first[i / width * channels + i % width]; },
                [&](int64_t i) {
                    return least(kPixelPiece, a.shape.pixels - i / width * kPixelPiece);
                })
                .write(eps, mean[image * a.groups + g], rstd[image * a.groups + g]);
        }
        fill_columns(a, image, columns.data());
    });
    const Grid strips(a, strip(a), threads);
    parallel_for(images * strips.tiles(), 1, threads, [&](int64_t i) {
        k.apply(a, strips.tile(a, i / strips.tiles(), i % strips.tiles()));
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
    a.keeps = wants_dx && a.silu && a.out.type == DType::float32;
    if (a.keeps) a.stream = false;  // it is read again
    const GroupNormKernels& k = kernels().group_norm;
    const Cut cut(a);
    const int64_t groups = a.shape.images * a.groups, pieces = cut.pieces();
    const bool by_channel = dweight != nullptr || dbias != nullptr;
    std::vector<Slopes> sums(at(groups * pieces));
    std::vector<Slopes> channels(by_channel ? at(a.shape.images * a.shape.channels * cut.along)
                                            : 0);
    std::vector<float> pull(at(groups)), tilt(at(groups));
    const auto slopes = [&](int64_t group, int64_t piece) {
        const Tile tile = cut.tile(a, group / a.groups, group % a.groups, piece);
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
    GroupNorm b = a;
    b.pull = pull.data();
    b.tilt = tilt.data();
    const auto dx = [&](int64_t group, int64_t piece) {
        k.dx(b, cut.tile(a, group / a.groups, group % a.groups, piece));
    };
    if (by_group(a, 3, threads)) {
        const int64_t elements = a.group_channels() * a.shape.pixels;
        parallel_for(groups, parts(kChunk, 4 * elements), threads, [&](int64_t group) {
            for (int64_t piece = 0; piece < pieces; ++piece) slopes(group, piece);
            if (!wants_dx) return;
            fold(group);
            for (int64_t piece = 0; piece < pieces; ++piece) dx(group, piece);
        });
    } else {
        parallel_for(groups * pieces, 1, threads,
                     [&](int64_t i) { slopes(i / pieces, i % pieces); });
        if (wants_dx) {
            parallel_for(groups, parts(1024, pieces), threads, fold);
            parallel_for(groups * pieces, 1, threads,
                         [&](int64_t i) { dx(i / pieces, i % pieces); });
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
    std::vector<float> columns(at(images * GroupNorm::kColumns * a.padded()));
    a.columns = columns.data();
    parallel_for(images, parts(kChunk, channels), threads,
                 [&](int64_t image) { fill_columns(a, image, columns.data()); });

    const Grid grid(a, kPixelPiece, threads);
    std::vector<Slopes> found(at(images * grid.along * channels));
    const auto slopes = [&](int64_t image, int64_t channel, int64_t piece) -> Slopes& {
        return found[at((image * grid.along + piece) * channels + channel)];
    };
    parallel_for(images * grid.tiles(), 1, threads, [&](int64_t i) {
        const Tile tile = grid.tile(a, i / grid.tiles(), i % grid.tiles());
        k.slopes(a, tile, &slopes(tile.image, tile.channel, tile.pixel / kPixelPiece));
    });
    if (a.out.data != nullptr) {
        std::vector<float> pull(at(images * a.groups)), tilt(at(images * a.groups));
        a.pull = pull.data();
        a.tilt = tilt.data();
        parallel_for(images, 1, threads, [&](int64_t image) {
            for (int64_t g = 0; g < a.groups; ++g) {
                const int64_t row = image * a.groups + g;
                Slopes sum{};
                for (int64_t i = 0; i < a.group_channels(); ++i) {
                    const int64_t channel = g * a.group_channels() + i;
                    Slopes of_channel{};
                    for (int64_t piece = 0; piece < grid.along; ++piece) {
                        of_channel.plain += slopes(image, channel, piece).plain;
                        of_channel.tilted += slopes(image, channel, piece).tilted;
                    }
                    const double scale = scale_of(a, channel, row);
                    sum.plain += scale * of_channel.plain;
                    sum.tilted += scale * of_channel.tilted;
                }
                write_pull(a, row, sum, pull.data(), tilt.data());
            }
            fill_columns(a, image, columns.data());
        });
        const Grid strips(a, strip(a), threads);
        parallel_for(images * strips.tiles(), 1, threads, [&](int64_t i) {
            k.dx(a, strips.tile(a, i / strips.tiles(), i % strips.tiles()));
        });
    }
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
    args.stream = args.out.data != nullptr && worth_streaming(args.shape, args.out);
    if (args.interleaved) {
        interleaved_backward(args, dweight, dbias, threads);
    } else {
        planar_backward(args, dweight, dbias, threads);
    }
}

}  // namespace udp
