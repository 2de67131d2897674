// udp_fast._native_cuda: the CUDA kernels for Python. Tensors come as addresses, sizes and strides,
// as in bindings.cpp; udp_fast/backends/cuda prepares the arguments and has checked them.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/ops.h"

namespace py = pybind11;

namespace {

// (images, channels, pixels)
udp::Shape shape_of(const py::tuple& t) {
    return {t[0].cast<int64_t>(), t[1].cast<int64_t>(), t[2].cast<int64_t>()};
}

// (address, dtype, image stride, channel stride, pixel stride) or None
udp::Tensor operand(const py::object& object) {
    if (object.is_none()) return {};
    const py::tuple t = py::reinterpret_borrow<py::tuple>(object);
    return {reinterpret_cast<void*>(t[0].cast<uintptr_t>()),
            static_cast<udp::DType>(t[1].cast<int>()), t[2].cast<int64_t>(), t[3].cast<int64_t>(),
            t[4].cast<int64_t>()};
}

// (address, stride, value): the value where the address is 0
udp::PerImage per_image(const py::tuple& t) {
    return {reinterpret_cast<const float*>(t[0].cast<uintptr_t>()), t[1].cast<int64_t>(),
            t[2].cast<float>()};
}

// (address, dtype) or None
udp::Vector vector(const py::object& object) {
    if (object.is_none()) return {};
    const py::tuple t = py::reinterpret_borrow<py::tuple>(object);
    return {reinterpret_cast<void*>(t[0].cast<uintptr_t>()),
            static_cast<udp::DType>(t[1].cast<int>())};
}

template <class T>
T* address(uintptr_t a) {
    return reinterpret_cast<T*>(a);
}

// Throws what CUDA answered, with the op and what it was called with: the words that `arguments`
// makes, which a call that succeeds shall not pay for.
template <class Arguments>
void check(const char* op, int code, const Arguments& arguments) {
    if (code == cudaSuccess) return;
    const cudaError_t error = static_cast<cudaError_t>(code);
    (void)cudaGetLastError();  // or the next call of anyone in this process would report it again
    throw std::runtime_error(std::string(op) + ": CUDA says \"" + cudaGetErrorString(error) +
                             "\" (" + cudaGetErrorName(error) + ", " + std::to_string(code) +
                             ") for " + arguments());
}

// A dtype as torch names it.
std::string words(udp::DType type) {
    static const char* const names[] = {"float32", "float16", "bfloat16", "uint8"};
    const size_t code = static_cast<size_t>(type);
    return code < std::size(names) ? names[code]
                                   : "dtype " + std::to_string(static_cast<int>(type));
}

std::string words(const udp::Shape& s) {
    return std::to_string(s.images) + " images of " + std::to_string(s.channels) + " x " +
           std::to_string(s.pixels) + " elements";
}
std::string words(const char* name, const udp::Tensor& t) {
    if (t.data == nullptr) return "";
    return std::string(", ") + name + " " + words(t.type) + " with strides (" +
           std::to_string(t.image) + ", " + std::to_string(t.channel) + ", " +
           std::to_string(t.pixel) + ")";
}

void pgd_step(const py::tuple& shape, const py::object& delta, const py::object& gradient,
              const py::object& original, const py::object& mask, const py::object& adversarial,
              const py::tuple& alpha, const py::tuple& eps, int step, int norm, bool maximize,
              double lo, double hi, double out_lo, double out_hi, uintptr_t skipped,
              uintptr_t workspace, uintptr_t stream) {
    const udp::Shape s = shape_of(shape);
    const udp::Tensor d = operand(delta), g = operand(gradient), x = operand(original),
                      m = operand(mask), adv = operand(adversarial);
    const udp::PerImage a = per_image(alpha), e = per_image(eps);
    const udp::Bounds bounds{lo, hi, out_lo, out_hi};
    const int error =
        udp_pgd_step(&s, &d, &g, &x, &m, &adv, &a, &e, step, norm, maximize, &bounds,
                     address<int64_t>(skipped), address<void>(workspace), address<void>(stream));
    check("pgd_step_", error, [&] {
        return words(s) + words("delta", d) + words("grad", g) + words("x", x) + words("mask", m);
    });
}

// images: (delta, grad, x, adv, elements) each, addresses but the last.
void pgd_step_multi(const py::list& images, const py::tuple& types, const py::tuple& alpha,
                    const py::tuple& eps, int step, bool maximize, double lo, double hi,
                    double out_lo, double out_hi, uintptr_t skipped, uintptr_t stream) {
    std::vector<udp::Image> list;
    for (const py::handle& item : images) {
        const py::tuple t = py::reinterpret_borrow<py::tuple>(item);
        udp::Image image{};
        image.delta = address<void>(t[0].cast<uintptr_t>());
        image.gradient = address<void>(t[1].cast<uintptr_t>());
        image.original = address<void>(t[2].cast<uintptr_t>());
        image.adversarial = address<void>(t[3].cast<uintptr_t>());
        image.elements = t[4].cast<int64_t>();
        list.push_back(image);
    }
    udp::DType dtypes[4];
    for (size_t i = 0; i < 4; ++i) dtypes[i] = static_cast<udp::DType>(types[i].cast<int>());
    const udp::PerImage a = per_image(alpha), e = per_image(eps);
    const udp::Bounds bounds{lo, hi, out_lo, out_hi};
    const int64_t count = static_cast<int64_t>(list.size());
    const int error = udp_pgd_step_multi(list.data(), count, dtypes, &a, &e, step, maximize,
                                         &bounds, address<int64_t>(skipped), address<void>(stream));
    check("pgd_step_multi_", error, [&] { return std::to_string(count) + " images"; });
}

udp::Schedule schedule(uintptr_t t, uintptr_t table, bool flow) {
    return {address<const int64_t>(t), address<const float>(table), flow};
}

void q_sample(const py::tuple& shape, const py::object& x, uintptr_t t, uintptr_t table, bool flow,
              const py::object& noise, uintptr_t keys, const py::object& noisy,
              const py::object& noise_out, uintptr_t stream) {
    const udp::Shape s = shape_of(shape);
    const udp::Tensor in = operand(x), n = operand(noise), out = operand(noisy),
                      copy = operand(noise_out);
    const udp::Schedule levels = schedule(t, table, flow);
    const int error = udp_q_sample(&s, &in, &levels, &n, address<const int64_t>(keys), &out, &copy,
                                   address<void>(stream));
    check("q_sample", error,
          [&] { return words(s) + words("x", in) + words("noise", n) + words("x_t", out); });
}

void denoising_loss(const py::tuple& shape, const py::object& prediction, const py::object& target,
                    const py::object& x, uintptr_t t, uintptr_t table, const py::object& noise,
                    uintptr_t keys, const py::tuple& weight, int kind, const py::object& gradient,
                    double gradient_scale, uintptr_t loss, uintptr_t workspace, uintptr_t stream) {
    const udp::Shape s = shape_of(shape);
    const udp::Tensor p = operand(prediction), given = operand(target), clean = operand(x),
                      n = operand(noise), g = operand(gradient);
    const udp::Schedule levels = schedule(t, table, false);
    const udp::PerImage w = per_image(weight);
    const int error = udp_denoising_loss(
        &s, &p, &given, &clean, &levels, &n, address<const int64_t>(keys), &w, kind, &g,
        gradient_scale, address<float>(loss), address<void>(workspace), address<void>(stream));
    check("denoising_loss", error,
          [&] { return words(s) + words("pred", p) + words("target", given) + words("x", clean); });
}

void group_norm_silu(const py::tuple& shape, int64_t groups, const py::object& x,
                     const py::object& weight, const py::object& bias, double eps, bool silu,
                     const py::object& y, uintptr_t mean, uintptr_t rstd, uintptr_t workspace,
                     uintptr_t stream) {
    const udp::Shape s = shape_of(shape);
    const udp::Tensor in = operand(x), out = operand(y);
    const udp::Vector w = vector(weight), b = vector(bias);
    const int error =
        udp_group_norm_silu(&s, groups, &in, &w, &b, eps, silu, &out, address<float>(mean),
                            address<float>(rstd), address<void>(workspace), address<void>(stream));
    check("group_norm_silu", error,
          [&] { return words(s) + " in " + std::to_string(groups) + " groups" + words("x", in); });
}

void group_norm_silu_backward(const py::tuple& shape, int64_t groups, const py::object& gradient,
                              const py::object& x, uintptr_t mean, uintptr_t rstd,
                              const py::object& weight, const py::object& bias, bool silu,
                              const py::object& dx, const py::object& dweight,
                              const py::object& dbias, uintptr_t workspace, uintptr_t stream) {
    const udp::Shape s = shape_of(shape);
    const udp::Tensor g = operand(gradient), in = operand(x), out = operand(dx);
    const udp::Vector w = vector(weight), b = vector(bias), dw = vector(dweight),
                      db = vector(dbias);
    const int error = udp_group_norm_silu_backward(
        &s, groups, &g, &in, address<const float>(mean), address<const float>(rstd), &w, &b, silu,
        &out, &dw, &db, address<void>(workspace), address<void>(stream));
    check("group_norm_silu_backward", error, [&] {
        return words(s) + " in " + std::to_string(groups) + " groups" + words("grad_y", g) +
               words("x", in);
    });
}

void quantize(const py::tuple& shape, const py::object& value, const py::object& original,
              const py::tuple& eps, uintptr_t keys, bool is_image, double lo, double hi,
              const py::object& out, uintptr_t stream) {
    const udp::Shape s = shape_of(shape);
    const udp::Tensor v = operand(value), o = operand(original), q = operand(out);
    const udp::PerImage e = per_image(eps);
    const int error = udp_quantize(&s, &v, &o, &e, address<const int64_t>(keys), is_image, lo, hi,
                                   &q, address<void>(stream));
    check("quantize", error, [&] { return words(s) + words("value", v) + words("original", o); });
}

void image_scale(const py::tuple& shape, const py::object& x, const py::tuple& scale,
                 const py::object& out, uintptr_t stream) {
    const udp::Shape s = shape_of(shape);
    const udp::Tensor in = operand(x), y = operand(out);
    const udp::PerImage factors = per_image(scale);
    const int error = udp_image_scale(&s, &in, &factors, &y, address<void>(stream));
    check("image_scale", error, [&] { return words(s) + words("x", in); });
}

void image_scale_in_place(const py::tuple& shape, const py::object& x, const py::tuple& scale,
                          uintptr_t stream) {
    const udp::Shape s = shape_of(shape);
    const udp::Tensor in = operand(x);
    const udp::PerImage factors = per_image(scale);
    const int error = udp_image_scale_in_place(&s, &in, &factors, address<void>(stream));
    check("image_scale_", error, [&] { return words(s) + words("x", in); });
}

std::string words(int64_t rows, int64_t columns, int type) {
    return std::to_string(rows) + " rows of twice " + std::to_string(columns) + " " +
           words(static_cast<udp::DType>(type));
}

// shape: (rows, columns of y)
void geglu(const py::tuple& shape, int type, uintptr_t x, uintptr_t y, uintptr_t stream) {
    const int64_t rows = shape[0].cast<int64_t>(), columns = shape[1].cast<int64_t>();
    const int error = udp_geglu(rows, columns, type, address<const void>(x), address<void>(y),
                                address<void>(stream));
    check("geglu", error, [&] { return words(rows, columns, type); });
}

void geglu_backward(const py::tuple& shape, int type, uintptr_t gradient, uintptr_t x, uintptr_t dx,
                    uintptr_t stream) {
    const int64_t rows = shape[0].cast<int64_t>(), columns = shape[1].cast<int64_t>();
    const int error =
        udp_geglu_backward(rows, columns, type, address<const void>(gradient),
                           address<const void>(x), address<void>(dx), address<void>(stream));
    check("geglu_backward", error, [&] { return words(rows, columns, type); });
}

// (address, batch stride, head stride, row stride) or None
udp::Heads heads_of(const py::object& object) {
    if (object.is_none()) return {};
    const py::tuple t = py::reinterpret_borrow<py::tuple>(object);
    return {address<void>(t[0].cast<uintptr_t>()), t[1].cast<int64_t>(), t[2].cast<int64_t>(),
            t[3].cast<int64_t>()};
}

// (address, strides of batch, head, query and key) or None
udp::Bias bias_of(const py::object& object) {
    if (object.is_none()) return {};
    const py::tuple t = py::reinterpret_borrow<py::tuple>(object);
    return {address<const float>(t[0].cast<uintptr_t>()), t[1].cast<int64_t>(),
            t[2].cast<int64_t>(), t[3].cast<int64_t>(), t[4].cast<int32_t>()};
}

// (batch, heads, queries, keys, dim, dtype, scale)
udp::AttentionShape attention_shape(const py::tuple& t) {
    return {t[0].cast<int32_t>(), t[1].cast<int32_t>(), t[2].cast<int32_t>(),
            t[3].cast<int32_t>(), t[4].cast<int32_t>(), static_cast<udp::DType>(t[5].cast<int>()),
            t[6].cast<float>()};
}

std::string words(const udp::AttentionShape& s) {
    return std::to_string(s.batch) + " x " + std::to_string(s.heads) + " heads of " +
           std::to_string(s.queries) + " queries, " + std::to_string(s.keys) +
           " keys and head dim " + std::to_string(s.dim);
}

// Of an attention launcher's three kinds, the one for the shape; see ops.h.
template <class Launcher>
Launcher* launcher_for(const udp::AttentionShape& s, Launcher* narrow, Launcher* wide,
                       Launcher* of_float) {
    if (s.type == udp::DType::float32) return of_float;
    return s.dim > 160 ? wide : narrow;
}

void attention_one_tile(const py::tuple& shape, const py::tuple& grad_out, const py::tuple& q,
                        const py::tuple& k, const py::tuple& v, const py::object& bias,
                        const py::tuple& dq, uintptr_t stream) {
    const udp::AttentionShape s = attention_shape(shape);
    const udp::Heads go = heads_of(grad_out), from_q = heads_of(q), from_k = heads_of(k),
                     from_v = heads_of(v), to = heads_of(dq);
    const udp::Bias b = bias_of(bias);
    const auto launch = launcher_for(s, udp_attention_one_tile, udp_attention_wide_one_tile,
                                     udp_attention_float_one_tile);
    const int error = launch(&s, &go, &from_q, &from_k, &from_v, &b, &to, address<void>(stream));
    check("attention_backward", error, [&] { return words(s); });
}

void attention(const py::tuple& shape, const py::tuple& q, const py::tuple& k, const py::tuple& v,
               const py::object& bias, const py::tuple& out, uintptr_t lse, uintptr_t stream) {
    const udp::AttentionShape s = attention_shape(shape);
    const udp::Heads from_q = heads_of(q), from_k = heads_of(k), from_v = heads_of(v),
                     to = heads_of(out);
    const udp::Bias b = bias_of(bias);
    const auto launch = launcher_for(s, udp_attention, udp_attention_wide, udp_attention_float);
    const int error =
        launch(&s, &from_q, &from_k, &from_v, &b, &to, address<float>(lse), address<void>(stream));
    check("attention", error, [&] { return words(s); });
}

void attention_backward(const py::tuple& shape, const py::tuple& grad_out, const py::tuple& q,
                        const py::tuple& k, const py::tuple& v, const py::object& bias,
                        const py::tuple& out, uintptr_t lse, const py::object& dq,
                        const py::object& dk, const py::object& dv, uintptr_t workspace,
                        uintptr_t stream) {
    const udp::AttentionShape s = attention_shape(shape);
    const udp::Heads go = heads_of(grad_out), from_q = heads_of(q), from_k = heads_of(k),
                     from_v = heads_of(v), o = heads_of(out), to_q = heads_of(dq),
                     to_k = heads_of(dk), to_v = heads_of(dv);
    const udp::Bias b = bias_of(bias);
    const auto launch = launcher_for(s, udp_attention_backward, udp_attention_wide_backward,
                                     udp_attention_float_backward);
    const int error = launch(&s, &go, &from_q, &from_k, &from_v, &b, &o, address<const float>(lse),
                             &to_q, &to_k, &to_v, address<void>(workspace), address<void>(stream));
    check("attention_backward", error, [&] { return words(s); });
}

// How many GPUs there are, and if none, CUDA's words for why. Without a driver the call may answer
// any of several errors and leave its output as it was.
py::tuple devices() {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess) return py::make_tuple(count, "");
    (void)cudaGetLastError();
    return py::make_tuple(0, std::string(cudaGetErrorString(error)) + " (" +
                                 cudaGetErrorName(error) + ", " +
                                 std::to_string(static_cast<int>(error)) + ")");
}

}  // namespace

PYBIND11_MODULE(_native_cuda, m) {
    m.doc() = "CUDA kernels of udp_fast; called through udp_fast.backends.cuda.";
    m.attr("__version__") = UDP_VERSION;
    m.attr("cuda_version") = UDP_CUDA_VERSION;
    m.attr("architectures") = UDP_CUDA_ARCHITECTURES;

    m.def("pgd_step_", &pgd_step);
    m.def("pgd_step_multi", &pgd_step_multi);
    m.def("q_sample", &q_sample);
    m.def("denoising_loss", &denoising_loss);
    m.def("group_norm_silu", &group_norm_silu);
    m.def("group_norm_silu_backward", &group_norm_silu_backward);
    m.def("attention", &attention);
    m.def("attention_backward", &attention_backward);
    m.def("attention_backward_workspace", [](const py::tuple& shape) {
        const udp::AttentionShape s = attention_shape(shape);
        return udp_attention_backward_workspace(&s);
    });
    m.def("attention_one_tile", &attention_one_tile);
    m.def("quantize", &quantize);
    m.def("image_scale", &image_scale);
    m.def("image_scale_", &image_scale_in_place);
    m.def("geglu", &geglu);
    m.def("geglu_backward", &geglu_backward);
    m.def("pgd_step_workspace", [](const py::tuple& shape, int step, int norm) {
        const udp::Shape s = shape_of(shape);
        return udp_pgd_step_workspace(&s, step, norm);
    });
    m.def("denoising_loss_workspace", [](const py::tuple& shape) {
        const udp::Shape s = shape_of(shape);
        return udp_denoising_loss_workspace(&s);
    });
    m.def("group_norm_silu_workspace", [](const py::tuple& shape, int64_t groups) {
        const udp::Shape s = shape_of(shape);
        return udp_group_norm_silu_workspace(&s, groups);
    });
    m.def("devices", &devices, "(number of GPUs, why there are none).");
}
