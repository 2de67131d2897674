// The ops, whole: how each is cut into chunks, and the passes and sums between kernels.
#pragma once

#include <vector>

#include "ops.h"

namespace udp {

enum class Step : int { sign, l2, raw };
enum class Norm : int { linf, l2 };

// Every function writes each image's result whatever the number of threads, with equal bits.

// skipped: [images], non-finite elements of each gradient.
void pgd_step(PgdStep args, Shape shape, PerImage<float> alpha, PerImage<float> eps, Step step,
              Norm norm, bool maximize, int64_t* skipped, int threads);

// Image b's levels come from table[t[b]]; flow: the table holds sigma, else the cumulative alpha.
struct Schedule {
    PerImage<int64_t> t;
    const float* table = nullptr;
    bool flow = false;
};
void q_sample(QSample args, Shape shape, const Schedule& schedule, int threads);

// loss[b] = weight[b] * mean (prediction - target)^2, and with args.gradient, grad_scale times
// dL/d(prediction). weight may be absent (null).
void denoising_loss(DenoisingLoss args, Shape shape, const Schedule& schedule,
                    PerImage<float> weight, double grad_scale, float* loss, int threads);

void quantize(Quantize args, Shape shape, PerImage<float> eps, int threads);

void image_scale(ImageScale args, Shape shape, int threads);

// x, weight, bias, y and the sizes given.
void conv3x3(Conv3x3 args, int threads);

// The backward where args.grad is given.
void geglu(Geglu args, int threads);

// Every operand, shape, groups, layout, weight and bias are the caller's; all else is set here.
// mean, rstd: [images, groups], written.
void group_norm(GroupNorm args, double eps, float* mean, float* rstd, int threads);
// With args.mean and args.rstd. dx is args.out, dweight and dbias [channels]; null: not wanted.
void group_norm_backward(GroupNorm args, float* dweight, float* dbias, int threads);

// Whether to write an output past the caches. It saves reading each line before it is overwritten,
// which pays once the result is too large to be found in the last cache anyway.
bool worth_streaming(const Shape& shape, const Operand& out);

void copy(float* to, const float* from, int64_t n, bool stream, int threads);

}  // namespace udp
