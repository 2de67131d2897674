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

// What a call or a tuple holds, taken in its order. All kernels have one signature so: what
// pybind11 makes of a dozen takes a third as long to compile as a whole instruction set.
class Arguments {
  public:
    Arguments(const char* name, py::handle tuple, Py_ssize_t count) : tuple_(tuple.ptr()) {
        if (!PyTuple_Check(tuple_) || PyTuple_GET_SIZE(tuple_) != count) {
            throw py::type_error(std::string(name) + ": got " + std::string(py::repr(tuple)) +
                                 ", expected a tuple of " + std::to_string(count));
        }
    }

    py::handle next() { return PyTuple_GET_ITEM(tuple_, next_++); }
    int64_t integer() {
        const int64_t value = PyLong_AsLongLong(next().ptr());
        if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
        return value;
    }
    int small() { return static_cast<int>(integer()); }
    bool flag() { return integer() != 0; }
    double number() {
        const double value = PyFloat_AsDouble(next().ptr());
        if (value == -1.0 && PyErr_Occurred()) throw py::error_already_set();
        return value;
    }
    template <class T>
    T* address() {
        return pointer<T>(integer());
    }

    template <size_t count>
    std::array<int64_t, count> integers() {
        Arguments of("integers", next(), count);
        std::array<int64_t, count> found;
        for (int64_t& one : found) one = of.integer();
        return found;
    }
    // make(integers) of a tuple, or of None what nothing makes.
    template <size_t count, class Make>
    auto made_of(Make make) -> decltype(make({})) {
        if (PyTuple_GET_ITEM(tuple_, next_) != Py_None) return make(integers<count>());
        ++next_;
        return {};
    }

    // (images, channels, pixels)
    udp::Shape shape() {
        const auto [images, channels, pixels] = integers<3>();
        return {images, channels, pixels};
    }
    // (address, dtype, image stride, channel stride, pixel stride) or None
    Operand operand() {
        return made_of<5>([](const std::array<int64_t, 5>& t) -> Operand {
            return {pointer<void>(t[0]), static_cast<udp::DType>(t[1]), t[2], t[3], t[4]};
        });
    }
    // (address, stride) or None
    template <class T>
    PerImage<T> per_image() {
        return made_of<2>([](const std::array<int64_t, 2>& t) -> PerImage<T> {
            return {pointer<const T>(t[0]), t[1]};
        });
    }
    // (dtype, image stride, head stride, row stride) or None
    udp::Heads heads() {
        return made_of<4>([](const std::array<int64_t, 4>& t) -> udp::Heads {
            return {nullptr, static_cast<udp::DType>(t[0]), t[1], t[2], t[3]};
        });
    }
    // (image stride, head stride, query stride, key stride) or None
    udp::Bias bias() {
        return made_of<4>([](const std::array<int64_t, 4>& t) -> udp::Bias {
            return {nullptr, t[0], t[1], t[2], t[3]};
        });
    }

  private:
    template <class T>
    static T* pointer(int64_t address) {
        return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
    }

    PyObject* tuple_;
    Py_ssize_t next_ = 0;
};

// From the address of int64 [images, 3] rows (key, draw | step << 32, stream), or 0.
class NoiseKeys {
  public:
    NoiseKeys(const uint64_t* row, int64_t images) {
        const auto low = [](uint64_t word) { return static_cast<uint32_t>(word); };
        for (int64_t b = 0; row != nullptr && b < images; ++b, row += 3) {
            keys_.push_back(
                {low(row[0]), low(row[0] >> 32), low(row[1]), low(row[1] >> 32), low(row[2])});
        }
    }
    const udp::NoiseKey* data() const { return keys_.empty() ? nullptr : keys_.data(); }

  private:
    std::vector<udp::NoiseKey> keys_;
};

// (shape, delta, gradient, original, mask, adversarial, alpha, eps, step, norm, maximize, lo, hi,
// out_lo, out_hi, skipped, threads)
void pgd_step(Arguments& given) {
    udp::PgdStep args{};
    const udp::Shape shape = given.shape();
    for (Operand* operand :
         {&args.delta, &args.gradient, &args.original, &args.mask, &args.adversarial}) {
        *operand = given.operand();
    }
    const auto alpha = given.per_image<float>(), eps = given.per_image<float>();
    const auto step = static_cast<udp::Step>(given.integer());
    const auto norm = static_cast<udp::Norm>(given.integer());
    const bool maximize = given.flag();
    const double lo = given.number(), hi = given.number();
    const double out_lo = given.number(), out_hi = given.number();
    const auto narrow = [](double a) { return static_cast<float>(a); };
    args.range = {narrow(lo),     narrow(hi),     narrow(hi - lo),
                  narrow(out_lo), narrow(out_hi), narrow((out_hi - out_lo) / (hi - lo))};
    args.maps_range = lo != out_lo || hi != out_hi;
    int64_t* skipped = given.address<int64_t>();
    const int threads = given.small();
    py::gil_scoped_release release;
    udp::pgd_step(args, shape, alpha, eps, step, norm, maximize, skipped, threads);
}

// t, table, flow
udp::Schedule schedule(Arguments& given, bool may_flow) {
    udp::Schedule found;
    found.t = given.per_image<int64_t>();
    found.table = given.address<const float>();
    found.flow = may_flow && given.flag();
    return found;
}

// (shape, x, t, table, flow, noise, keys, noisy, noise_out, threads)
void q_sample(Arguments& given) {
    udp::QSample args{};
    const udp::Shape shape = given.shape();
    args.x = given.operand();
    const udp::Schedule levels = schedule(given, true);
    args.noise = given.operand();
    const NoiseKeys keys(given.address<const uint64_t>(), shape.images);
    args.keys = keys.data();
    args.noisy = given.operand();
    args.noise_out = given.operand();
    const int threads = given.small();
    py::gil_scoped_release release;
    udp::q_sample(args, shape, levels, threads);
}

// (shape, prediction, target, x, t, table, noise, keys, weight, kind, gradient, grad_scale, loss,
// threads)
void denoising_loss(Arguments& given) {
    udp::DenoisingLoss args{};
    const udp::Shape shape = given.shape();
    args.prediction = given.operand();
    args.target = given.operand();
    args.x = given.operand();
    const udp::Schedule levels = schedule(given, false);
    args.noise = given.operand();
    const NoiseKeys keys(given.address<const uint64_t>(), shape.images);
    args.keys = keys.data();
    const auto weight = given.per_image<float>();
    args.kind = static_cast<udp::Target>(given.integer());
    args.gradient = given.operand();
    const double grad_scale = given.number();
    float* loss = given.address<float>();
    const int threads = given.small();
    py::gil_scoped_release release;
    udp::denoising_loss(args, shape, levels, weight, grad_scale, loss, threads);
}

// (shape, value, original, eps, keys, is_image, lo, hi, out, threads)
void quantize(Arguments& given) {
    udp::Quantize args{};
    const udp::Shape shape = given.shape();
    args.value = given.operand();
    args.original = given.operand();
    const auto eps = given.per_image<float>();
    const NoiseKeys keys(given.address<const uint64_t>(), shape.images);
    args.keys = keys.data();
    args.is_image = given.flag();
    const double lo = given.number(), hi = given.number();
    args.lo = static_cast<float>(lo);
    args.to_levels = static_cast<float>(255.0 / (hi - lo));
    args.out = given.operand();
    const int threads = given.small();
    py::gil_scoped_release release;
    udp::quantize(args, shape, eps, threads);
}

// (shape, x, scale, out, threads)
void image_scale(Arguments& given) {
    udp::ImageScale args{};
    const udp::Shape shape = given.shape();
    args.x = given.operand();
    args.scale = given.per_image<float>();
    args.out = given.operand();
    const int threads = given.small();
    py::gil_scoped_release release;
    udp::image_scale(args, shape, threads);
}

// ((rows, columns of y), x, grad, y, threads)
void geglu(Arguments& given) {
    udp::Geglu args{};
    const auto [rows, columns] = given.integers<2>();
    args.rows = rows;
    args.columns = columns;
    args.x = given.address<const float>();
    args.grad = given.address<const float>();
    args.y = given.address<float>();
    const int threads = given.small();
    py::gil_scoped_release release;
    udp::geglu(args, threads);
}

// ((images, height, width, in, out), x, weight, strides of x: (image, row, pixel), of the weight:
// (out, in), flipped, bias, y, threads)
void conv3x3(Arguments& given) {
    udp::Conv3x3 args{};
    const auto [images, height, width, in, out] = given.integers<5>();
    args.images = images;
    args.height = height;
    args.width = width;
    args.in = in;
    args.out = out;
    args.x = given.address<const float>();
    args.weight = given.address<const float>();
    const auto [image, row, pixel] = given.integers<3>();
    args.x_image = image;
    args.x_row = row;
    args.x_pixel = pixel;
    const auto [out_stride, in_stride] = given.integers<2>();
    args.out_stride = out_stride;
    args.in_stride = in_stride;
    args.flipped = given.flag();
    args.bias = given.address<const float>();
    args.y = given.address<float>();
    const int threads = given.small();
    py::gil_scoped_release release;
    udp::conv3x3(args, threads);
}

// (images, heads, queries, keys, size of a head)
udp::AttentionShape attention_shape(Arguments& given) {
    const auto [images, heads, queries, keys, size] = given.integers<5>();
    return {images, heads, queries, keys, size};
}

py::object owned(PyObject* made) {
    if (made == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(made);
}

// (shape, q, k, v, bias, scale, out)
py::object attention_kernel(Arguments& given) {
    udp::Attention args{};
    args.shape = attention_shape(given);
    for (udp::Heads* heads : {&args.q, &args.k, &args.v}) *heads = given.heads();
    args.bias = given.bias();
    args.scale = static_cast<float>(given.number());
    args.out = given.heads();
    return owned(udp::prepared(args));
}

// (shape, grad_out, q, k, v, bias, out, scale, dq, dk, dv)
py::object attention_backward_kernel(Arguments& given) {
    udp::AttentionBackward args{};
    args.shape = attention_shape(given);
    for (udp::Heads* heads : {&args.grad_out, &args.q, &args.k, &args.v}) *heads = given.heads();
    args.bias = given.bias();
    args.out = given.heads();
    args.scale = static_cast<float>(given.number());
    for (udp::Heads* heads : {&args.dq, &args.dk, &args.dv}) *heads = given.heads();
    return owned(udp::prepared(args));
}

// groups, interleaved, weight [channels] or 0, bias, silu
void read_group_norm(Arguments& given, udp::GroupNorm& args) {
    args.groups = given.integer();
    args.interleaved = given.flag();
    args.weight = given.address<const float>();
    args.bias = given.address<const float>();
    args.silu = given.flag();
}

// (shape, x, y, groups, interleaved, weight, bias, silu, eps, mean, rstd, threads); mean and rstd
// [images, groups] are written.
void group_norm(Arguments& given) {
    udp::GroupNorm args{};
    args.shape = given.shape();
    args.x = given.operand();
    args.out = given.operand();
    read_group_norm(given, args);
    const double eps = given.number();
    float *mean = given.address<float>(), *rstd = given.address<float>();
    const int threads = given.small();
    py::gil_scoped_release release;
    udp::group_norm(args, eps, mean, rstd, threads);
}

// (shape, x, gradient, dx, groups, interleaved, weight, bias, silu, mean, rstd, dweight, dbias,
// threads); dx may be None, dweight and dbias 0.
void group_norm_backward(Arguments& given) {
    udp::GroupNorm args{};
    args.shape = given.shape();
    args.x = given.operand();
    args.gradient = given.operand();
    args.out = given.operand();
    read_group_norm(given, args);
    args.mean = given.address<const float>();
    args.rstd = given.address<const float>();
    float *dweight = given.address<float>(), *dbias = given.address<float>();
    const int threads = given.small();
    py::gil_scoped_release release;
    udp::group_norm_backward(args, dweight, dbias, threads);
}

// (to, from, n, stream, threads): n float32 values, for the memory bandwidth that benchmarks
// compare with.
void copy(Arguments& given) {
    float* to = given.address<float>();
    const float* from = given.address<const float>();
    const int64_t n = given.integer();
    const bool stream = given.flag();
    const int threads = given.small();
    py::gil_scoped_release release;
    udp::copy(to, from, n, stream, threads);
}

// (address, bytes) of memory that is written for the first time
void prefer_large_pages(Arguments& given) {
    void* data = given.address<void>();
    udp::prefer_large_pages(data, given.integer());
}

// (counter, key) -> the four output words of one block
py::object philox(Arguments& given) {
    uint32_t words[4];
    const auto counter = given.integers<4>();
    for (size_t i = 0; i < 4; ++i) words[i] = static_cast<uint32_t>(counter[i]);
    const auto [low, high] = given.integers<2>();
    udp::philox4x32_10(words, static_cast<uint32_t>(low), static_cast<uint32_t>(high));
    return owned(Py_BuildValue("(IIII)", words[0], words[1], words[2], words[3]));
}

py::list isa_names(bool supported_only) {
    py::list names;
    for (const udp::Isa& isa : udp::isas()) {
        if (isa.supported || !supported_only) names.append(isa.kernels->isa);
    }
    return names;
}

// A function of `count` arguments, by position.
template <class Function>
void define(py::module_& m, const char* name, Py_ssize_t count, Function function) {
    m.def(name, [=](const py::args& given) {
        Arguments arguments(name, given, count);
        return function(arguments);
    });
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native CPU kernels of udp_fast; called through udp_fast.backends.cpu.";
    m.attr("__version__") = UDP_VERSION;

    define(m, "pgd_step_", 17, &pgd_step);
    define(m, "q_sample", 10, &q_sample);
    define(m, "denoising_loss", 14, &denoising_loss);
    define(m, "quantize", 10, &quantize);
    define(m, "image_scale", 5, &image_scale);
    define(m, "conv3x3", 9, &conv3x3);
    define(m, "geglu", 5, &geglu);
    define(m, "attention_kernel", 7, &attention_kernel);
    define(m, "attention_backward_kernel", 11, &attention_backward_kernel);
    define(m, "group_norm", 12, &group_norm);
    define(m, "group_norm_backward", 14, &group_norm_backward);
    define(m, "copy", 5, &copy);
    define(m, "prefer_large_pages", 2, &prefer_large_pages);
    define(m, "philox4x32_10", 2, &philox);

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
        "remembered", [](const py::tuple& asked) { return owned(udp::remembered(asked.ptr())); },
        py::arg("asked"), "For udp_fast.ops.remembered.");
}
