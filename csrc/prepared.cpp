// Calls of kernels that come again and again with other addresses alone. Taking sizes, strides and
// dtypes apart at each call, in Python and here, takes longer than a small latent's attention.
#include "prepared.h"

#include <new>
#include <stdexcept>

#include "cpu/attention_launch.h"
#include "fastcall.h"

namespace udp {

namespace {

constexpr Py_ssize_t kMost = 11;

// What a call gives, in its order, to be taken one by one.
class Given {
  public:
    // False with Python's error set where it is not `count` integers that fit an address.
    bool read(PyObject* const* args, Py_ssize_t n, Py_ssize_t count) {
        if (n != count) {
            PyErr_Format(PyExc_TypeError, "prepared kernel: got %zd arguments, expected %zd", n,
                         count);
            return false;
        }
        for (Py_ssize_t i = 0; i < n; ++i) {
            values_[i] = PyLong_AsUnsignedLongLong(args[i]);
            if (PyErr_Occurred()) return false;
        }
        return true;
    }

    void* address() { return reinterpret_cast<void*>(static_cast<uintptr_t>(values_[next_++])); }
    float* floats() { return static_cast<float*>(address()); }
    int threads() { return static_cast<int>(values_[next_++]); }

  private:
    unsigned long long values_[kMost];
    int next_ = 0;
};

void place(Attention& a, Given& given) {
    for (Heads* heads : {&a.q, &a.k, &a.v}) heads->data = given.address();
    a.bias.data = given.floats();
    a.out.data = given.address();
    a.lse = given.floats();
}

void place(AttentionBackward& a, Given& given) {
    for (Heads* heads : {&a.grad_out, &a.q, &a.k, &a.v}) heads->data = given.address();
    a.bias.data = given.floats();
    a.out.data = given.address();
    a.lse = given.floats();
    for (Heads* heads : {&a.dq, &a.dk, &a.dv}) heads->data = given.address();
}

// While it lives Python's other threads run; it has ended when an error is made Python's.
class WithoutPython {
  public:
    WithoutPython() : state_(PyEval_SaveThread()) {}
    ~WithoutPython() { PyEval_RestoreThread(state_); }
    WithoutPython(const WithoutPython&) = delete;

  private:
    PyThreadState* state_;
};

template <class Args, auto kernel, Py_ssize_t count>
PyObject* run(PyObject* self, PyObject* const* args, Py_ssize_t n) {
    static_assert(count <= kMost, "no room for so many");
    const auto* known = static_cast<const Args*>(PyCapsule_GetPointer(self, nullptr));
    Given given;
    if (known == nullptr || !given.read(args, n, count)) return nullptr;
    Args placed = *known;
    place(placed, given);
    const int threads = given.threads();
    try {
        const WithoutPython others_run;
        kernel(placed, threads);
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    } catch (const std::invalid_argument& error) {
        PyErr_SetString(PyExc_ValueError, error.what());
        return nullptr;
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
        return nullptr;
    }
    Py_RETURN_NONE;
}

template <class Args>
void forget(PyObject* capsule) {
    delete static_cast<Args*>(PyCapsule_GetPointer(capsule, nullptr));
}

template <class Args>
PyObject* function(PyMethodDef* method, const Args& args) {
    auto* known = new Args(args);
    PyObject* self = PyCapsule_New(known, nullptr, &forget<Args>);
    if (self == nullptr) {
        delete known;
        return nullptr;
    }
    PyObject* result = PyCFunction_New(method, self);
    Py_DECREF(self);
    return result;
}

PyMethodDef forward = {"attention", fastcall(&run<Attention, &attention, 7>), METH_FASTCALL,
                       "(q, k, v, bias, out, lse, threads)"};
PyMethodDef backward = {"attention_backward",
                        fastcall(&run<AttentionBackward, &attention_backward, 11>), METH_FASTCALL,
                        "(grad_out, q, k, v, bias, out, lse, dq, dk, dv, threads)"};

}  // namespace

PyObject* prepared(const Attention& args) {
    return function(&forward, args);
}

PyObject* prepared(const AttentionBackward& args) {
    return function(&backward, args);
}

}  // namespace udp
