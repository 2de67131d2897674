// The question that udp_fast/ops/remembered.py asks at each call of an op.
#pragma once

#include <Python.h>

namespace udp {

// New (find, key) for what `asked` names, see remembered.cpp; null with Python's error set.
PyObject* remembered(PyObject* asked);

}  // namespace udp
