// Looks up how an earlier call like this one was run. Beside a small attention, which leaves the
// caches to nobody else, each step of Python takes about a microsecond; these here take one
// together.
#include "remembered.h"

#include "fastcall.h"

namespace udp {

namespace {

// What both functions look at: a tuple, their `self`.
enum Asked : Py_ssize_t {
    kRuns,           // dict: key -> list of (function that says whether tensors are alike, run)
    kCount,          // int: how many of a call's arguments, the first ones, are no tensors
    kTensorType,     // the type of a tensor to be looked at at all
    kPlain,          // tuple of types beside float, int, str and None: constants with a hash
    kIsGradEnabled,  // torch.is_grad_enabled
    kCountModes,     // torch._C._len_torch_dispatch_stack
    kForwardAd,      // the names of torch.autograd.forward_ad, one of which is its level
    kEnvironment,    // the dict behind os.environ
    kVariables,      // tuple of its keys that steer dispatch
    kIntercepting,   // context variable: somebody only wants to know who would take a call
    kAsked
};

// Made once: a name from a C string is a string made and looked up.
PyObject* const kShape = PyUnicode_InternFromString("shape");
PyObject* const kLevel = PyUnicode_InternFromString("_current_level");

PyObject* asked(PyObject* self, Asked what) {
    return PyTuple_GET_ITEM(self, what);
}

// A new reference to what stands for a value in a key; null without an error where nothing can.
// Equal ones must mean the same, and True is 1: so a bool is a pair of its type, which nothing else
// in a key has, and itself.
PyObject* constant(PyObject* self, PyObject* value) {
    PyTypeObject* type = Py_TYPE(value);
    if (value == Py_None || type == &PyFloat_Type || type == &PyLong_Type ||
        type == &PyUnicode_Type) {
        return Py_NewRef(value);
    }
    if (type == &PyBool_Type) return PyTuple_Pack(2, reinterpret_cast<PyObject*>(type), value);
    if (type == &PyTuple_Type) {
        const Py_ssize_t n = PyTuple_GET_SIZE(value);
        PyObject* items = PyTuple_New(n);
        for (Py_ssize_t i = 0; items != nullptr && i < n; ++i) {
            PyObject* item = constant(self, PyTuple_GET_ITEM(value, i));
            if (item == nullptr) Py_CLEAR(items);
            if (items != nullptr) PyTuple_SET_ITEM(items, i, item);
        }
        return items;
    }
    PyObject* plain = asked(self, kPlain);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(plain); ++i) {
        if (PyTuple_GET_ITEM(plain, i) == reinterpret_cast<PyObject*>(type)) {
            return Py_NewRef(value);
        }
    }
    return nullptr;
}

// Whether a choice made once holds, as far as the surroundings go: 1, 0, or -1 with an error. What
// is not asked here, autocast, inference mode, tracing and transforms, is in a tensor's dispatch
// keys, and so in the question whether tensors are alike.
int is_unsteered(PyObject* self) {
    PyObject* variables = asked(self, kVariables);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(variables); ++i) {
        const int set = PyDict_Contains(asked(self, kEnvironment), PyTuple_GET_ITEM(variables, i));
        if (set != 0) return set < 0 ? -1 : 0;
    }
    PyObject* intercepting = nullptr;
    if (PyContextVar_Get(asked(self, kIntercepting), nullptr, &intercepting) < 0) return -1;
    const bool only_asked = intercepting != Py_False;
    Py_XDECREF(intercepting);
    if (only_asked) return 0;
    PyObject* modes = PyObject_CallNoArgs(asked(self, kCountModes));
    if (modes == nullptr) return -1;
    const bool seen = PyLong_AsLong(modes) != 0;
    Py_DECREF(modes);
    if (seen) return 0;
    PyObject* level = PyDict_GetItemWithError(asked(self, kForwardAd), kLevel);
    if (level == nullptr) return PyErr_Occurred() ? -1 : 0;
    return PyLong_AsLong(level) < 0;
}

// (shape of the first tensor, how many, whether autograd records, the rest); null without an error
// where a call can neither be found nor kept.
PyObject* key_of(PyObject* self, PyObject* const* args, Py_ssize_t n) {
    const Py_ssize_t count = PyLong_AsSsize_t(asked(self, kCount));
    if (n <= count || reinterpret_cast<PyObject*>(Py_TYPE(args[count])) != asked(self, kTensorType))
        return nullptr;
    if (is_unsteered(self) != 1) return nullptr;
    PyObject* key = PyTuple_New(3 + count);
    if (key == nullptr) return nullptr;
    for (Py_ssize_t i = 0; i < 3 + count; ++i) {
        PyObject* part = i == 0   ? PyObject_GetAttr(args[count], kShape)
                         : i == 1 ? PyLong_FromSsize_t(n - count)
                         : i == 2 ? PyObject_CallNoArgs(asked(self, kIsGradEnabled))
                                  : constant(self, args[i - 3]);
        if (part == nullptr) {
            Py_DECREF(key);
            return nullptr;
        }
        PyTuple_SET_ITEM(key, i, part);
    }
    return key;
}

PyObject* none_unless_error() {
    return PyErr_Occurred() ? nullptr : Py_NewRef(Py_None);
}

PyObject* key(PyObject* self, PyObject* const* args, Py_ssize_t n) {
    PyObject* found = key_of(self, args, n);
    return found != nullptr ? found : none_unless_error();
}

PyObject* find(PyObject* self, PyObject* const* args, Py_ssize_t n) {
    PyObject* sought = key_of(self, args, n);
    if (sought == nullptr) return none_unless_error();
    PyObject* of_key = PyDict_GetItemWithError(asked(self, kRuns), sought);
    Py_DECREF(sought);
    if (of_key == nullptr) return none_unless_error();
    const Py_ssize_t count = PyLong_AsSsize_t(asked(self, kCount));
    Py_INCREF(of_key);  // a question runs code that may forget it
    PyObject* run = nullptr;
    for (Py_ssize_t i = 0; run == nullptr && i < PyList_GET_SIZE(of_key); ++i) {
        PyObject* entry = Py_NewRef(PyList_GET_ITEM(of_key, i));
        PyObject* alike =
            PyObject_Vectorcall(PyTuple_GET_ITEM(entry, 0), args + count, n - count, nullptr);
        if (alike == Py_True) run = Py_NewRef(PyTuple_GET_ITEM(entry, 1));
        Py_DECREF(entry);
        Py_XDECREF(alike);
        if (alike == nullptr) break;
    }
    Py_DECREF(of_key);
    return run != nullptr ? run : none_unless_error();
}

PyMethodDef methods[] = {
    {"find", fastcall(&find), METH_FASTCALL,
     "The run of an earlier call like this one, or None; values first, tensors last."},
    {"key", fastcall(&key), METH_FASTCALL, "What such a call is looked for by, or None."},
};

}  // namespace

PyObject* remembered(PyObject* self) {
    if (!PyTuple_CheckExact(self) || PyTuple_GET_SIZE(self) != kAsked) {
        PyErr_SetString(PyExc_TypeError, "remembered: expected a tuple of all that is asked");
        return nullptr;
    }
    PyObject* both[] = {PyCFunction_New(&methods[0], self), PyCFunction_New(&methods[1], self)};
    PyObject* result = both[0] && both[1] ? PyTuple_Pack(2, both[0], both[1]) : nullptr;
    for (PyObject* one : both) Py_XDECREF(one);
    return result;
}

}  // namespace udp
