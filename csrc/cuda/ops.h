// The CUDA launchers: plain addresses and sizes, so that neither torch nor a CUDA header is needed
// to call them. Each returns a cudaError_t (0: success), launches on `stream`, waits for nothing
// and allocates nothing: it may be captured into a CUDA graph. Arguments are as checked by
// udp_fast/backends/cuda; a null pointer to an optional operand means that it is absent.
#pragma once

#include <cstdint>

namespace udp {

enum class DType : int { float32, float16, bfloat16, uint8 };

// A batch of images [images, channels, pixels], height and width (or whatever there is) as one.
struct Shape {
    int64_t images, channels, pixels;
};

// A tensor of that shape in device memory: strides in elements, 0 where it is broadcast.
struct Tensor {
    void* data;
    DType type;
    int64_t image, channel, pixel;
};

// One number for each channel, in device memory; absent where data is null.
struct Vector {
    void* data;
    DType type;
};

// One number for all images, known to the host (data is null), or in device memory one for all
// (stride 0) or one each.
struct PerImage {
    const float* data;
    int64_t stride;
    float value;
};

// Image b's levels come from table[t[b]]; flow: the table holds sigma, else the cumulative alpha.
struct Schedule {
    const int64_t* t;
    const float* table;
    int flow;
};

struct Bounds {
    double lo, hi, out_lo, out_hi;
};

enum class Step : int { sign, l2, raw };
enum class Norm : int { linf, l2 };
enum class Target : int { given, epsilon, velocity, sample, flow };

// A tensor [batch, heads, rows, dim]: strides in elements, multiples of 16 bytes, the last
// dimension's is 1; data is aligned to 16 bytes. A row's stride is less than 2^24.
struct Heads {
    void* data;
    int64_t batch, head, row;
};

// Added to the scaled scores; data is null where there is none. Strides may be 0: that of queries
// is where the bias is one of keys.
struct Bias {
    const float* data;
    int64_t batch, head, query;
    int32_t key;
};

// All > 0; batch and heads at most 65535, queries and keys 2^30; scale from 2^-20 to 2^20; dim: of
// 40, 64, 80, 128, 160, 512. type: float32, float16 or bfloat16.
struct AttentionShape {
    int32_t batch, heads, queries, keys, dim;
    DType type;
    float scale;
};

// One of the images of `udp_pgd_step_multi`: `elements` in any one dense order, the same for all.
struct Image {
    void *delta, *adversarial;
    const void *gradient, *original;
    int64_t elements;
};

}  // namespace udp

extern "C" {

// Bytes of device memory, aligned to 8, that the op wants as `workspace`; 0: none (null will do).
int64_t udp_pgd_step_workspace(const udp::Shape* shape, int step, int norm);
int64_t udp_denoising_loss_workspace(const udp::Shape* shape);
int64_t udp_group_norm_silu_workspace(const udp::Shape* shape, int64_t groups);

// In place on delta. skipped: int64 [images], zero on entry.
int udp_pgd_step(const udp::Shape* shape, const udp::Tensor* delta, const udp::Tensor* gradient,
                 const udp::Tensor* original, const udp::Tensor* mask,
                 const udp::Tensor* adversarial, const udp::PerImage* alpha,
                 const udp::PerImage* eps, int step, int norm, int maximize,
                 const udp::Bounds* bounds, int64_t* skipped, void* workspace, void* stream);

// Images of different sizes in one launch for each 64 of them: sign or raw steps, linf budget, no
// mask. types: of delta, gradient, original and adversarial.
int udp_pgd_step_multi(const udp::Image* images, int64_t count, const udp::DType* types,
                       const udp::PerImage* alpha, const udp::PerImage* eps, int step, int maximize,
                       const udp::Bounds* bounds, int64_t* skipped, void* stream);

// Noise is given, or drawn from keys: int64 [images, 3] as udp_fast.ops.noise_key makes them.
int udp_q_sample(const udp::Shape* shape, const udp::Tensor* x, const udp::Schedule* schedule,
                 const udp::Tensor* noise, const int64_t* keys, const udp::Tensor* noisy,
                 const udp::Tensor* noise_out, void* stream);

// loss: float [images]; gradient may be absent, and so may what the target does not need.
int udp_denoising_loss(const udp::Shape* shape, const udp::Tensor* prediction,
                       const udp::Tensor* target, const udp::Tensor* x,
                       const udp::Schedule* schedule, const udp::Tensor* noise, const int64_t* keys,
                       const udp::PerImage* weight, int kind, const udp::Tensor* gradient,
                       double gradient_scale, float* loss, void* workspace, void* stream);

int udp_quantize(const udp::Shape* shape, const udp::Tensor* value, const udp::Tensor* original,
                 const udp::PerImage* eps, const int64_t* keys, int is_image, double lo, double hi,
                 const udp::Tensor* out, void* stream);

int udp_image_scale(const udp::Shape* shape, const udp::Tensor* x, const udp::PerImage* scale,
                    const udp::Tensor* out, void* stream);
int udp_image_scale_in_place(const udp::Shape* shape, const udp::Tensor* x,
                             const udp::PerImage* scale, void* stream);

// All tensors have one type, and one layout: a channel's pixels are neighbours, or a pixel's
// channels. mean, rstd: float [images, groups].
int udp_group_norm_silu(const udp::Shape* shape, int64_t groups, const udp::Tensor* x,
                        const udp::Vector* weight, const udp::Vector* bias, double eps, int silu,
                        const udp::Tensor* y, float* mean, float* rstd, void* workspace,
                        void* stream);

// Of dx, dweight and dbias those that are not absent.
int udp_group_norm_silu_backward(const udp::Shape* shape, int64_t groups,
                                 const udp::Tensor* gradient, const udp::Tensor* x,
                                 const float* mean, const float* rstd, const udp::Vector* weight,
                                 const udp::Vector* bias, int silu, const udp::Tensor* dx,
                                 const udp::Vector* dweight, const udp::Vector* dbias,
                                 void* workspace, void* stream);

// x: [rows, 2 * columns], the values and then the gates of a row; gradient and y: [rows, columns];
// all of one type and dense, with at least one element. type: of DType's floats.
int udp_geglu(int64_t rows, int64_t columns, int type, const void* x, void* y, void* stream);
int udp_geglu_backward(int64_t rows, int64_t columns, int type, const void* gradient, const void* x,
                       void* dx, void* stream);

// lse: [batch, heads, queries], natural logarithm, or null. Of float16 and bfloat16 with dim 160 or
// less; _wide: with dim 512; _float: of float32.
int udp_attention(const udp::AttentionShape* shape, const udp::Heads* q, const udp::Heads* k,
                  const udp::Heads* v, const udp::Bias* bias, const udp::Heads* out, float* lse,
                  void* stream);
int udp_attention_wide(const udp::AttentionShape* shape, const udp::Heads* q, const udp::Heads* k,
                       const udp::Heads* v, const udp::Bias* bias, const udp::Heads* out,
                       float* lse, void* stream);
int udp_attention_float(const udp::AttentionShape* shape, const udp::Heads* q, const udp::Heads* k,
                        const udp::Heads* v, const udp::Bias* bias, const udp::Heads* out,
                        float* lse, void* stream);

// Any number of keys; out and lse are the forward's. A gradient whose data is null is not wanted.
// workspace: as many bytes, aligned to 8, as the first function says.
int64_t udp_attention_backward_workspace(const udp::AttentionShape* shape);
int udp_attention_backward(const udp::AttentionShape* shape, const udp::Heads* grad_out,
                           const udp::Heads* q, const udp::Heads* k, const udp::Heads* v,
                           const udp::Bias* bias, const udp::Heads* out, const float* lse,
                           const udp::Heads* dq, const udp::Heads* dk, const udp::Heads* dv,
                           void* workspace, void* stream);

int udp_attention_wide_backward(const udp::AttentionShape* shape, const udp::Heads* grad_out,
                                const udp::Heads* q, const udp::Heads* k, const udp::Heads* v,
                                const udp::Bias* bias, const udp::Heads* out, const float* lse,
                                const udp::Heads* dq, const udp::Heads* dk, const udp::Heads* dv,
                                void* workspace, void* stream);
int udp_attention_float_backward(const udp::AttentionShape* shape, const udp::Heads* grad_out,
                                 const udp::Heads* q, const udp::Heads* k, const udp::Heads* v,
                                 const udp::Bias* bias, const udp::Heads* out, const float* lse,
                                 const udp::Heads* dq, const udp::Heads* dk, const udp::Heads* dv,
                                 void* workspace, void* stream);

// At most 128 keys, of float32 at most 80: the gradient of q from q, k, v
// and that of the output alone.
int udp_attention_one_tile(const udp::AttentionShape* shape, const udp::Heads* grad_out,
                           const udp::Heads* q, const udp::Heads* k, const udp::Heads* v,
                           const udp::Bias* bias, const udp::Heads* dq, void* stream);
int udp_attention_wide_one_tile(const udp::AttentionShape* shape, const udp::Heads* grad_out,
                                const udp::Heads* q, const udp::Heads* k, const udp::Heads* v,
                                const udp::Bias* bias, const udp::Heads* dq, void* stream);
int udp_attention_float_one_tile(const udp::AttentionShape* shape, const udp::Heads* grad_out,
                                 const udp::Heads* q, const udp::Heads* k, const udp::Heads* v,
                                 const udp::Bias* bias, const udp::Heads* dq, void* stream);
}
