// udp_fast._native: the kernels for Python. Tensors come as addresses, sizes and strides, so this
// needs no torch to build and serves any torch. udp_fast/backends/cpu prepares the arguments and
// has checked them; nothing is checked here but what would not parse. For attention these are
// functions that take the addresses alone (prepared.h).
#include <pybind11/pybind11.h>

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/launch.h"
#include "cpu/pages.h"
#include "cpu/parallel.h"
#include "prepared.h"
#include "remembered.h"

namespace py = pybind11;

namespace {

using udp::Operand;
using udp::PerImage;

// So many numbers. (What pybind11 has for arrays takes longer to compile than a kernel.)
template <size_t count, class T = int64_t>
std::array<T, count> numbers(const py::tuple& t) {
    std::array<T, count> found;
    for (size_t i = 0; i < count; ++i) found[i] = t[i].cast<T>();
    return found;
}

// (images, channels, pixels)
udp::Shape shape_of(const py::tuple& t) {
    const auto [images, channels, pixels] = numbers<3>(t);
    return {images, channels, pixels};
}

// (address, dtype, image stride, channel stride, pixel stride) or None
Operand operand(const py::object& object) {
    if (object.is_none()) return {};
    const py::tuple t = py::reinterpret_borrow<py::tuple>(object);
    return {reinterpret_cast<void*>(t[0].cast<uintptr_t>()),
            static_cast<udp::DType>(t[1].cast<int>()), t[2].cast<int64_t>(), t[3].cast<int64_t>(),
            t[4].cast<int64_t>()};
}

// (address, stride) or None
template <class T>
PerImage<T> per_image(const py::object& object) {
    if (object.is_none()) return {};
    const py::tuple t = py::reinterpret_borrow<py::tuple>(object);
    return {reinterpret_cast<const T*>(t[0].cast<uintptr_t>()), t[1].cast<int64_t>()};
}

// Address of int64 [images, 3] rows (key, draw | step << 32, stream), or 0.
std::vector<udp::NoiseKey> noise_keys(uintptr_t address, int64_t images) {
    std::vector<udp::NoiseKey> keys;
    const uint64_t* row = reinterpret_cast<const uint64_t*>(address);
    for (int64_t b = 0; row != nullptr && b < images; ++b, row += 3) {
        const auto low = [](uint64_t word) { return static_cast<uint32_t>(word); };
        keys.push_back(
            {low(row[0]), low(row[0] >> 32), low(row[1]), low(row[1] >> 32), low(row[2])});
    }
    return keys;
}

const udp::NoiseKey* data(const std::vector<udp::NoiseKey>& keys) {
    return keys.empty() ? nullptr : keys.data();
}

void pgd_step(const py::tuple& shape, const py::object& delta, const py::object& gradient,
              const py::object& original, const py::object& mask, const py::object& adversarial,
              const py::object& alpha, const py::object& eps, int step, int norm, bool maximize,
              double lo, double hi, double out_lo, double out_hi, uintptr_t skipped, int threads) {
    udp::PgdStep args{};
    args.delta = operand(delta);
    args.gradient = operand(gradient);
    args.original = operand(original);
    args.mask = operand(mask);
    args.adversarial = operand(adversarial);
    const auto narrow = [](double a) { return static_cast<float>(a); };
    args.range = {narrow(lo),     narrow(hi),     narrow(hi - lo),
                  narrow(out_lo), narrow(out_hi), narrow((out_hi - out_lo) / (hi - lo))};
    args.maps_range = lo != out_lo || hi != out_hi;
    const udp::Shape sizes = shape_of(shape);
    const auto alphas = per_image<float>(alpha), bounds = per_image<float>(eps);
    py::gil_scoped_release release;
    udp::pgd_step(args, sizes, alphas, bounds, static_cast<udp::Step>(step),
                  static_cast<udp::Norm>(norm), maximize, reinterpret_cast<int64_t*>(skipped),
                  threads);
}

udp::Schedule schedule(const py::object& t, uintptr_t table, bool flow) {
    return {per_image<int64_t>(t), reinterpret_cast<const float*>(table), flow};
}

void q_sample(const py::tuple& shape, const py::object& x, const py::object& t, uintptr_t table,
              bool flow, const py::object& noise, uintptr_t keys, const py::object& noisy,
              const py::object& noise_out, int threads) {
    udp::QSample args{};
    args.x = operand(x);
    args.noise = operand(noise);
    args.noisy = operand(noisy);
    args.noise_out = operand(noise_out);
    const udp::Shape sizes = shape_of(shape);
    const std::vector<udp::NoiseKey> rows = noise_keys(keys, sizes.images);
    args.keys = data(rows);
    const udp::Schedule levels = schedule(t, table, flow);
    py::gil_scoped_release release;
    udp::q_sample(args, sizes, levels, threads);
}

void denoising_loss(const py::tuple& shape, const py::object& prediction, const py::object& target,
                    const py::object& x, const py::object& t, uintptr_t table,
                    const py::object& noise, uintptr_t keys, const py::object& weight, int kind,
                    const py::object& gradient, double grad_scale, uintptr_t loss, int threads) {
    udp::DenoisingLoss args{};
    args.prediction = operand(prediction);
    args.target = operand(target);
    args.x = operand(x);
    args.noise = operand(noise);
    args.gradient = operand(gradient);
    args.kind = static_cast<udp::Target>(kind);
    const udp::Shape sizes = shape_of(shape);
    const std::vector<udp::NoiseKey> rows = noise_keys(keys, sizes.images);
    args.keys = data(rows);
    const udp::Schedule levels = schedule(t, table, false);
    const auto weights = per_image<float>(weight);
    py::gil_scoped_release release;
    udp::denoising_loss(args, sizes, levels, weights, grad_scale, reinterpret_cast<float*>(loss),
                        threads);
}

void quantize(const py::tuple& shape, const py::object& value, const py::object& original,
              const py::object& eps, uintptr_t keys, bool is_image, double lo, double hi,
              const py::object& out, int threads) {
    udp::Quantize args{};
    args.value = operand(value);
    args.original = operand(original);
    args.out = operand(out);
    args.is_image = is_image;
    args.lo = static_cast<float>(lo);
    args.to_levels = static_cast<float>(255.0 / (hi - lo));
    const udp::Shape sizes = shape_of(shape);
    const std::vector<udp::NoiseKey> rows = noise_keys(keys, sizes.images);
    args.keys = data(rows);
    const auto bounds = per_image<float>(eps);
    py::gil_scoped_release release;
    udp::quantize(args, sizes, bounds, threads);
}

void image_scale(const py::tuple& shape, const py::object& x, const py::object& scale,
                 const py::object& out, int threads) {
    udp::ImageScale args{};
    args.x = operand(x);
    args.out = operand(out);
    args.scale = per_image<float>(scale);
    const udp::Shape sizes = shape_of(shape);
    py::gil_scoped_release release;
    udp::image_scale(args, sizes, threads);
}

// (rows, columns of y)
void geglu(const py::tuple& shape, uintptr_t x, uintptr_t grad, uintptr_t y, int threads) {
    const auto [rows, columns] = numbers<2>(shape);
    const udp::Geglu args{reinterpret_cast<const float*>(x), reinterpret_cast<const float*>(grad),
                          reinterpret_cast<float*>(y), rows, columns};
    py::gil_scoped_release release;
    udp::geglu(args, threads);
}

// sizes: (images, height, width, in, out); x_strides: (image, row, pixel); strides: (out, in), the
// weight's.
void conv3x3(const py::tuple& sizes, uintptr_t x, uintptr_t weight, const py::tuple& x_strides,
             const py::tuple& strides, bool flipped, uintptr_t bias, uintptr_t y, int threads) {
    udp::Conv3x3 args{};
    const auto [images, height, width, in, out] = numbers<5>(sizes);
    args.images = images;
    args.height = height;
    args.width = width;
    args.in = in;
    args.out = out;
    args.x = reinterpret_cast<const float*>(x);
    args.weight = reinterpret_cast<const float*>(weight);
    args.bias = reinterpret_cast<const float*>(bias);
    args.y = reinterpret_cast<float*>(y);
    const auto [image, row, pixel] = numbers<3>(x_strides);
    args.x_image = image;
    args.x_row = row;
    args.x_pixel = pixel;
    const auto [out_stride, in_stride] = numbers<2>(strides);
    args.out_stride = out_stride;
    args.in_stride = in_stride;
    args.flipped = flipped;
    py::gil_scoped_release release;
    udp::conv3x3(args, threads);
}

// (images, heads, queries, keys, size of a head)
udp::AttentionShape attention_shape(const py::tuple& t) {
    const auto [images, heads, queries, keys, size] = numbers<5>(t);
    return {images, heads, queries, keys, size};
}

// (dtype, image stride, head stride, row stride) or None
udp::Heads heads(const py::object& object) {
    if (object.is_none()) return {};
    const auto [type, image, head, row] = numbers<4>(py::reinterpret_borrow<py::tuple>(object));
    return {nullptr, static_cast<udp::DType>(type), image, head, row};
}

// (image stride, head stride, query stride, key stride) or None
udp::Bias bias_of(const py::object& object) {
    if (object.is_none()) return {};
    const auto [image, head, query, key] = numbers<4>(py::reinterpret_borrow<py::tuple>(object));
    return {nullptr, image, head, query, key};
}

py::object owned(PyObject* made) {
    if (made == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(made);
}

py::object attention_kernel(const py::tuple& shape, const py::object& q, const py::object& k,
                            const py::object& v, const py::object& bias, double scale,
                            const py::object& out) {
    return owned(udp::prepared(udp::Attention{attention_shape(shape), heads(q), heads(k), heads(v),
                                              heads(out), bias_of(bias), static_cast<float>(scale),
                                              nullptr}));
}

py::object attention_backward_kernel(const py::tuple& shape, const py::object& grad_out,
                                     const py::object& q, const py::object& k, const py::object& v,
                                     const py::object& bias, const py::object& out, double scale,
                                     const py::object& dq, const py::object& dk,
                                     const py::object& dv) {
    return owned(udp::prepared(udp::AttentionBackward{
        attention_shape(shape), heads(grad_out), heads(q), heads(k), heads(v), heads(out),
        heads(dq), heads(dk), heads(dv), bias_of(bias), static_cast<float>(scale), nullptr}));
}

const float* floats(uintptr_t address) {
    return reinterpret_cast<const float*>(address);
}
float* floats_to_write(uintptr_t address) {
    return reinterpret_cast<float*>(address);
}

udp::GroupNorm group_norm_args(const py::tuple& shape, const py::object& x, const py::object& out,
                               int64_t groups, bool interleaved, uintptr_t weight, uintptr_t bias,
                               bool silu) {
    udp::GroupNorm args{};
    args.x = operand(x);
    args.out = operand(out);
    args.shape = shape_of(shape);
    args.groups = groups;
    args.interleaved = interleaved;
    args.silu = silu;
    args.weight = floats(weight);
    args.bias = floats(bias);
    return args;
}

// Addresses: weight, bias [channels] or 0; mean, rstd [images, groups], written.
void group_norm(const py::tuple& shape, const py::object& x, const py::object& y, int64_t groups,
                bool interleaved, uintptr_t weight, uintptr_t bias, bool silu, double eps,
                uintptr_t mean, uintptr_t rstd, int threads) {
    const udp::GroupNorm args =
        group_norm_args(shape, x, y, groups, interleaved, weight, bias, silu);
    py::gil_scoped_release release;
    udp::group_norm(args, eps, floats_to_write(mean), floats_to_write(rstd), threads);
}

// dx may be None, dweight and dbias 0.
void group_norm_backward(const py::tuple& shape, const py::object& x, const py::object& gradient,
                         const py::object& dx, int64_t groups, bool interleaved, uintptr_t weight,
                         uintptr_t bias, bool silu, uintptr_t mean, uintptr_t rstd,
                         uintptr_t dweight, uintptr_t dbias, int threads) {
    udp::GroupNorm args = group_norm_args(shape, x, dx, groups, interleaved, weight, bias, silu);
    args.gradient = operand(gradient);
    args.mean = floats(mean);
    args.rstd = floats(rstd);
    py::gil_scoped_release release;
    udp::group_norm_backward(args, floats_to_write(dweight), floats_to_write(dbias), threads);
}

py::tuple philox(const py::tuple& counter, const py::tuple& key) {
    const auto [c0, c1, c2, c3] = numbers<4, uint32_t>(counter);
    uint32_t words[4] = {c0, c1, c2, c3};
    const auto [low, high] = numbers<2, uint32_t>(key);
    udp::philox4x32_10(words, low, high);
    return py::make_tuple(words[0], words[1], words[2], words[3]);
}

py::list isa_names(bool supported_only) {
    py::list names;
    for (const udp::Isa& isa : udp::isas()) {
        if (isa.supported || !supported_only) names.append(isa.kernels->isa);
    }
    return names;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native CPU kernels of udp_fast; called through udp_fast.backends.cpu.";
    m.attr("__version__") = UDP_VERSION;

    m.def("pgd_step_", &pgd_step);
    m.def("q_sample", &q_sample);
    m.def("denoising_loss", &denoising_loss);
    m.def("quantize", &quantize);
    m.def("image_scale", &image_scale);
    m.def("conv3x3", &conv3x3);
    m.def("geglu", &geglu);
    m.def("attention_kernel", &attention_kernel);
    m.def("attention_backward_kernel", &attention_backward_kernel);
    m.def("group_norm", &group_norm);
    m.def("group_norm_backward", &group_norm_backward);

    m.def(
        "compiled_isas", [] { return isa_names(false); },
        "Instruction sets in this build, plainest first.");
    m.def(
        "supported_isas", [] { return isa_names(true); },
        "Those of them that this processor runs.");
    m.def("isa", [] { return std::string(udp::kernels().isa); }, "The one in use.");
    m.def("use_isa", &udp::use_isa, py::arg("name"),
          "Use another from now on; '' goes back to UDP_FAST_CPU_ISA or the best.");
    m.def("threading_runtime", &udp::threading_runtime, "Whose threads the kernels run on.");
    m.def(
        "prefer_large_pages",
        [](uintptr_t data, int64_t bytes) {
            udp::prefer_large_pages(reinterpret_cast<void*>(data), bytes);
        },
        py::arg("data"), py::arg("bytes"), "For memory that is written for the first time.");
    m.def(
        "remembered", [](const py::tuple& asked) { return owned(udp::remembered(asked.ptr())); },
        py::arg("asked"), "For udp_fast.ops.remembered.");
    m.def("philox4x32_10", &philox, py::arg("counter"), py::arg("key"),
          "The four output words of one block.");
    m.def(
        "copy",
        [](uintptr_t to, uintptr_t from, int64_t n, bool stream, int threads) {
            py::gil_scoped_release release;
            udp::copy(reinterpret_cast<float*>(to), reinterpret_cast<const float*>(from), n, stream,
                      threads);
        },
        py::arg("to"), py::arg("from"), py::arg("n"), py::arg("stream"), py::arg("threads"),
        "Copies n float32 values: the memory bandwidth that benchmarks compare with.");
}
