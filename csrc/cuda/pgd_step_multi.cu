// The multi-tensor form of pgd_step: many images of different sizes in one launch. What differs
// between images travels as a kernel argument, which needs no copy and can be captured.
#include "pgd.cuh"

namespace udp {
namespace {

constexpr int kImages = 64;  // 64 * 48 bytes, within the 4 KiB of arguments that any driver takes

struct Arguments {
    Image image[kImages];
    int64_t first_chunk[kImages + 1];  // of an image, counted through all of them
    int64_t first_image;               // of this launch
    PerImage alpha, eps;
    DType delta, original, gradient, adversarial;
    Direction direction;
    bool maximize, maps;
    Range range;
    int64_t* skipped;
};

constexpr int64_t kChunk = 4 * kThreads * 8;

template <class T>
__device__ Row<T> row_over(const void* data, DType type) {
    return {Tensor{const_cast<void*>(data), type, 0, 0, 1}, 0, 0};
}

template <class D, class X, class G>
__global__ void __launch_bounds__(kThreads) step_images(const Arguments a, int64_t chunks) {
    int i = 0;
    for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
        while (chunk >= a.first_chunk[i + 1]) ++i;
        const Image& image = a.image[i];
        StepBody<Flat<8>, D, X, G, false> body;
        body.delta = row_over<D>(image.delta, a.delta);
        body.original = row_over<X>(image.original, a.original);
        body.gradient = row_over<G>(image.gradient, a.gradient);
        body.adversarial = row_over<G>(image.adversarial, a.adversarial);
        const float alpha = number_of(a.alpha, a.first_image + i);
        body.step.size = a.maximize ? alpha : -alpha;
        body.step.bound = at_most_in(a.delta, number_of(a.eps, a.first_image + i));
        body.step.scale = 1.0f;
        body.range = a.range;
        body.direction = a.direction;
        body.maps = a.maps;
        body.skipped = 0;
        body.skipped_total = a.skipped;

        const int64_t first = (chunk - a.first_chunk[i]) * kChunk, left = image.elements - first;
        const uint32_t n = static_cast<uint32_t>(left < kChunk ? left : kChunk);
        const bool wide = body.aligned(first);
        body.move(first);
        for_groups_of_chunk<Flat<8>>(body, n, wide);
        body.end_row(a.first_image + i);
    }
}

template <class D, class X, class G>
int step_chunks(const Arguments& a, int64_t chunks, void* stream) {
    return launch_over<step_images<D, X, G>>(chunks, 1, kThreads, stream, a, chunks);
}

}  // namespace
}  // namespace udp

int udp_pgd_step_multi(const udp::Image* images, int64_t count, const udp::DType* types,
                       const udp::PerImage* alpha, const udp::PerImage* eps, int step, int maximize,
                       const udp::Bounds* bounds, int64_t* skipped, void* stream) {
    using namespace udp;
    Arguments a{};
    a.alpha = *alpha;
    a.eps = *eps;
    a.delta = types[0];
    a.gradient = types[1];
    a.original = types[2];
    a.adversarial = types[3];
    a.direction = static_cast<Step>(step) == Step::sign ? kSign : kGradient;
    a.maximize = maximize != 0;
    a.maps = maps_range(*bounds);
    a.range = range_of(*bounds);
    a.skipped = skipped;
    for (int64_t first = 0; first < count; first += kImages) {
        const int n = static_cast<int>(std::min<int64_t>(count - first, kImages));
        a.first_image = first;
        for (int i = 0; i < n; ++i) {
            a.image[i] = images[first + i];
            a.first_chunk[i + 1] = a.first_chunk[i] + (a.image[i].elements + kChunk - 1) / kChunk;
        }
        const int64_t chunks = a.first_chunk[n];
        const auto all = [&](DType d, DType x, DType g) {
            return a.delta == d && a.original == x && a.gradient == g && a.adversarial == g;
        };
        int error = cudaSuccess;
        if (all(DType::float32, DType::float32, DType::float32)) {
            error = step_chunks<float, float, float>(a, chunks, stream);
        } else if (all(DType::float32, DType::uint8, DType::float32)) {
            error = step_chunks<float, uint8_t, float>(a, chunks, stream);
        } else if (all(DType::float16, DType::uint8, DType::bfloat16)) {
            error = step_chunks<Float16, uint8_t, BFloat16>(a, chunks, stream);
        } else {
            error = step_chunks<AnyFloat, AnyPixel, AnyFloat>(a, chunks, stream);
        }
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}
