// Functions of Python's that are called with a C array of arguments.
#pragma once

#include <Python.h>

namespace udp {

// For a PyMethodDef with METH_FASTCALL, which has one type for functions of every kind.
inline PyCFunction fastcall(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

}  // namespace udp
