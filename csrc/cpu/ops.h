// The arguments of the CPU kernels, and the table of kernels that each instruction set provides.
#pragma once

#include <cstdint>

#include "../math/pgd.h"
#include "../math/philox.h"

namespace udp {

enum class DType : int { float32, float16, bfloat16, uint8 };

inline int64_t size_of(DType type) {
    return type == DType::float32 ? 4 : type == DType::uint8 ? 1 : 2;
}

// A batch of images [images, channels, pixels], height and width (or whatever there is) as one.
struct Shape {
    int64_t images, channels, pixels;
};

// A tensor of that shape: strides in elements, any of them 0 where it is broadcast.
struct Operand {
    void* data = nullptr;  // null: absent
    DType type = DType::float32;
    int64_t image = 0, channel = 0, pixel = 0;
};

// How the elements of an image are walked: in chunks, the unit of work of a thread, and within a
// chunk in rows of at most kRow elements, the unit of conversion. Planar: a row is pixels of one
// channel. Interleaved: a row is pixels with all their channels, channel fastest. It depends on
// shape and layout alone, so sums come out the same for any number of threads and any split of the
// batch.
constexpr int64_t kRow = 1024;
constexpr int64_t kChunk = 16384;

struct Plan {
    Shape shape;
    bool interleaved;
    bool single_run;  // all operands have one dense order: an image is one channel
    int64_t chunk_channels, chunk_pixels;

    int64_t pixel_chunks() const { return (shape.pixels + chunk_pixels - 1) / chunk_pixels; }
    int64_t chunks() const {  // of one image
        return (shape.channels + chunk_channels - 1) / chunk_channels * pixel_chunks();
    }
};

// An argument that is one number or one for each image.
template <class T>
struct PerImage {
    const T* data = nullptr;
    int64_t stride = 0;  // 0 or 1
    T operator[](int64_t image) const { return data[image * stride]; }
};

struct PgdStep {
    Operand delta, gradient, original, mask;  // delta is updated in place; mask may be absent
    Operand adversarial;
    bool sign;           // else the step is linear in the gradient
    bool linf;           // else the l2 ball
    const float* size;   // [images] +-alpha, divided by the gradient's norm for an l2 step
    const float* scale;  // [images] 1, or what brings the stepped delta into the l2 ball
    const float* bound;  // [images] of |delta|: eps, or the largest float for the l2 ball
    Range range;
    bool maps_range;  // adversarial's range differs from the original's
    bool stream;      // write `adversarial` past the caches
};

struct QSample {
    Operand x, noise;  // noise absent: drawn from keys
    const NoiseKey* keys;
    const float *signal, *level;  // [images]
    Operand noisy, noise_out;     // noise_out may be absent
    bool stream;
};

enum class Target : int { given, epsilon, velocity, sample, flow };

struct DenoisingLoss {
    Operand prediction, target, x, noise;  // absent where the target does not need them
    Target kind;
    const NoiseKey* keys;
    const float *signal, *level;  // [images], for Target::velocity
    const float*
        gradient_scale;  // [images] dL/d(prediction) = gradient_scale * (prediction - target)
    Operand gradient;    // absent: not wanted
    bool stream;
};

struct Quantize {
    Operand value, original, out;
    const NoiseKey* keys;  // null: to nearest
    const float* levels;   // [images]
    bool is_image;         // value is the protected image, not the perturbation
    float lo, to_levels;   // 255 / (hi - lo)
    bool stream;
};

struct ImageScale {
    Operand x, out;
    PerImage<float> scale;
    bool stream;
};

// A 3x3 convolution of stride 1 with a frame of zeros, channel fastest in memory; see conv3x3.h.
struct Conv3x3 {
    const float *x, *weight,
        *bias;  // [images, height, width, in], nine taps together, [out] or null
    float* y;   // [images, height, width, out]
    int64_t images, height, width, in, out;
    int64_t x_image, x_row, x_pixel;  // strides of x in elements; its channels lie side by side
    int64_t out_stride, in_stride;    // of the weight, in elements
    bool flipped;                     // the taps in reverse order: the gradient with respect to x
    int64_t tile_rows, tile_columns;  // of one image, in tiles of 4x4 results
    float* tiles;                     // [36][band's tiles][tiles_pitch], slices tiles_slice apart
    int64_t tiles_pitch, tiles_slice;
};
// Output channels that a thread takes at a time, and input channels whose transformed taps it keeps
// (36 * 128 * 32 floats are 0.6 MB).
constexpr int64_t kConvBlock = 32, kConvDepth = 128;
// Of each of the 36 points, what lies apart by a power of two would share a set of the caches with
// all others: each stored line of taps drove out another, and that took two thirds of the time.
constexpr int64_t kConvTapsSlice = kConvDepth * kConvBlock + 16;
inline int64_t conv_products_slice(int64_t tiles) {
    return tiles * kConvBlock + 16;
}

// geglu: x [rows, 2 * columns], grad [rows, columns], all dense. y: the results [rows, columns], or
// of the backward dL/dx, like x.
struct Geglu {
    const float *x, *grad;
    float* y;
    int64_t rows, columns;
    bool stream = false;
};

// --- attention -----------------------------------------------------------------------------------

struct AttentionShape {
    int64_t images, heads, queries, keys, size;  // size: of a head
};

// A tensor [images, heads, rows, size]: strides in elements, the last one 1. All of a call are of
// one type.
struct Heads {
    void* data = nullptr;  // null: not wanted
    DType type = DType::float32;
    int64_t image = 0, head = 0, row = 0;
};

// Added to the scores, [images, heads, queries, keys]: strides, any of them 0.
struct Bias {
    const float* data = nullptr;
    int64_t image = 0, head = 0, query = 0, key = 0;
};

struct Attention {
    AttentionShape shape;
    Heads q, k, v, out;
    Bias bias;
    float scale;
    float* lse;  // [images, heads, queries], or null
};

struct AttentionBackward {
    AttentionShape shape;
    Heads grad_out, q, k, v, out, dq, dk, dv;
    Bias bias;
    float scale;
    const float* lse;  // null, as is out: the rows' sums are formed again
};

// How the work is cut. `rows` queries of one head are an item of work, and go through the keys in
// `keys` of them at a time. Where gradients of the keys are wanted and a head has several items,
// `parts` of them, each leaves its sum in `partial`, to be added up in their order. keys and parts
// depend on the shape alone, and with them every bit of the results; rows changes none where parts
// is 1.
struct AttentionPlan {
    int64_t rows, keys, parts;
    float* partial;  // [images, heads, parts, dk and dv, keys, size]

    int64_t items(const AttentionShape& s) const {  // of one head
        return (s.queries + rows - 1) / rows;
    }
};

// Queries that are worked on at once: the lanes of a block of scores.
constexpr int64_t kBlock = 64;

// A group norm is cut into pieces by its shape and layout alone, in which statistics and sums are
// taken before they are put together in order.
constexpr int64_t kRunPiece = 4096;   // elements: of a group, or of a planar channel
constexpr int64_t kPixelPiece = 256;  // pixels of an interleaved image

struct GroupNorm {
    Operand x, gradient, out;  // all planar, channels back to back, or all interleaved
    Shape shape;
    int64_t groups;
    bool interleaved, silu, stream;
    // float32 with a SiLU: `slopes` leaves h = dL/du in `out`. `dx` may then take that for the
    // gradient, without a SiLU, and needs no second exponential.
    bool keeps;
    const float *weight, *bias;  // [channels]; null: one and zero
    const float *mean, *rstd;    // [images, groups]
    const float *pull, *tilt;    // [images, groups], see ../math/group_norm.h
    // Interleaved: the above by channel, [images, kColumns, padded()], padded with zeros.
    const float* columns;

    enum Column { kMean, kScale, kBias, kPull, kTilt, kColumns };

    int64_t group_channels() const { return shape.channels / groups; }
    int64_t padded() const { return (shape.channels + 15) / 16 * 16; }
    const float* column(int64_t image, Column which) const {
        return columns + (image * kColumns + which) * padded();
    }
};

// Of some elements: their mean, and the sum of the squared distances from it.
struct Moments {
    double mean, square;
};
// Of h = dL/du: the sum, and the sum of h times x's distance from the mean of its group.
struct Slopes {
    double plain, tilted;
};
// Some channels and pixels of an image. Where they are interleaved, `channel` is a multiple of 16.
struct Tile {
    int64_t image, channel, channels, pixel, pixels;
};

struct GroupNormKernels {
    // Planar: of n elements from `first` of a group.
    Moments (*run_moments)(const GroupNorm&, int64_t image, int64_t group, int64_t first,
                           int64_t n);
    // Interleaved, at most kPixelPiece pixels: by channel.
    void (*moments)(const GroupNorm&, const Tile&, Moments*);
    void (*apply)(const GroupNorm&, const Tile&);
    // Planar: of channels of one group, the sum over them weighted by their scales. Either layout,
    // the interleaved one at most kPixelPiece pixels: by channel, unless `channels` is null.
    Slopes (*slopes)(const GroupNorm&, const Tile&, Slopes* channels);
    void (*dx)(const GroupNorm&, const Tile&);
};

// Each function serves one chunk of one image, or one item of one head with floats to work in.
struct Kernels {
    const char* isa;
    double (*gradient_square)(const PgdStep&, const Plan&, int64_t image, int64_t chunk);
    double (*stepped_square)(const PgdStep&, const Plan&, int64_t image, int64_t chunk);
    int64_t (*pgd_step)(const PgdStep&, const Plan&, int64_t image, int64_t chunk);  // skipped
    void (*q_sample)(const QSample&, const Plan&, int64_t image, int64_t chunk);
    double (*denoising_loss)(const DenoisingLoss&, const Plan&, int64_t image, int64_t chunk);
    void (*quantize)(const Quantize&, const Plan&, int64_t image, int64_t chunk);
    void (*image_scale)(const ImageScale&, const Plan&, int64_t image, int64_t chunk);
    void (*conv_tiles)(const Conv3x3&, int64_t row, int64_t local);
    void (*conv_block)(const Conv3x3&, int64_t first_row, int64_t rows, int64_t block,
                       float* scratch);
    void (*geglu)(const Geglu&, int64_t row);
    void (*geglu_backward)(const Geglu&, int64_t row);
    void (*copy)(float* to, const float* from, int64_t n, bool stream);
    int64_t (*attention_floats)(const Attention&, const AttentionPlan&);
    void (*attention)(const Attention&, const AttentionPlan&, int64_t item, float* floats);
    int64_t (*attention_backward_floats)(const AttentionBackward&, const AttentionPlan&);
    void (*attention_backward)(const AttentionBackward&, const AttentionPlan&, int64_t item,
                               float* floats);
    void (*attention_sum)(const AttentionBackward&, const AttentionPlan&, int64_t item);
    GroupNormKernels group_norm;
};

}  // namespace udp
