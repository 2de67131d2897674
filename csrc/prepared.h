// Kernels of which all is known but where their tensors lie, for calls like an earlier one.
#pragma once

#include <Python.h>

#include "cpu/ops.h"

namespace udp {

// A new function of Python's that takes addresses, 0 for what is not there, and a number of
// threads; null with Python's error set. What `args` says of addresses is not looked at.

// (q, k, v, bias, out, lse, threads)
PyObject* prepared(const Attention& args);
// (grad_out, q, k, v, bias, out, lse, dq, dk, dv, threads)
PyObject* prepared(const AttentionBackward& args);

}  // namespace udp
