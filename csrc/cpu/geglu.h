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
        const F gate = load_some(gates + c, n);
        F cdf, density;
        normal_distribution<F, U>(gate, cdf, density);
        store_some(y + c, load_some(values + c, n) * (gate * cdf), n);
    }
}

void geglu_backward(const Geglu& a, int64_t row) {
    const float *values = a.x + row * 2 * a.columns, *gates = values + a.columns;
    const float* grad = a.grad + row * a.columns;
    float *d_values = a.y + row * 2 * a.columns, *d_gates = d_values + a.columns;
    for (int64_t c = 0; c < a.columns; c += 16) {
        const int64_t n = a.columns - c;
        const F gate = load_some(gates + c, n), g = load_some(grad + c, n);
        F cdf, density;
        normal_distribution<F, U>(gate, cdf, density);
        store_some(d_values + c, g * (gate * cdf), n);
        store_some(d_gates + c, g * load_some(values + c, n) * fma(gate, density, cdf), n);
    }
}

}  // namespace
}  // namespace UDP_ISA
}  // namespace udp
