// geglu and its backward: a row of x is the values, then as many gates.
#pragma once

#include "../math/gelu.h"
#include "rows.h"

namespace udp {
namespace UDP_ISA {
namespace {

void geglu(const Geglu& a, int64_t row) {
    const float *values = a.x + row * 2 * a.columns, *gates = values + a.columns;
    float* y = a.y + row * a.columns;
    for (int64_t c = 0; c < a.columns; c += 16) {
        const int64_t n = a.columns - c;
        store_some(y + c, gated<F, U>(load_some(values + c, n), load_some(gates + c, n)), n,
                   a.stream);
    }
    if (a.stream) stream_fence();
}

void geglu_backward(const Geglu& a, int64_t row) {
    const float *values = a.x + row * 2 * a.columns, *gates = values + a.columns;
    const float* grad = a.grad + row * a.columns;
    float *d_values = a.y + row * 2 * a.columns, *d_gates = d_values + a.columns;
    for (int64_t c = 0; c < a.columns; c += 16) {
        const int64_t n = a.columns - c;
        F d_value, d_gate;
        gated_slopes<F, U>(load_some(grad + c, n), load_some(values + c, n),
                           load_some(gates + c, n), d_value, d_gate);
        store_some(d_values + c, d_value, n, a.stream);
        store_some(d_gates + c, d_gate, n, a.stream);
    }
    if (a.stream) stream_fence();
}

}  // namespace
}  // namespace UDP_ISA
}  // namespace udp
