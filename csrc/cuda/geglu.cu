// geglu and its backward. A row of x is the values, then as many gates; one of y is half as long.
//
// A thread keeps to its columns and goes from row to row, as many rows at a step as make a grid
// that fills the GPU once: it divides once, whatever the width of a row, and no thread has less to
// do than another where rows are no multiple of a block.
#include <initializer_list>

#include "../math/gelu.h"
#include "walk.cuh"

namespace udp {
namespace {

// N neighbours of a row at a time.
struct Columns {
    int64_t rows, columns, groups;  // groups of N in a row
    int64_t step;                   // rows that the whole grid handles at once
};

// Where a thread begins.
struct Place {
    int64_t row, column;
};
template <int N>
__device__ __forceinline__ Place place_of(const Columns& c) {
    const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (thread >= c.step * c.groups) return {c.rows, 0};
    // In 32 bits, which is nearly always enough, a division takes a quarter of the time.
    const bool narrow = (thread | c.groups) >> 32 == 0;
    const int64_t row = narrow ? static_cast<uint32_t>(thread) / static_cast<uint32_t>(c.groups)
                               : thread / c.groups;
    return {row, (thread - row * c.groups) * N};
}

template <class T>
__device__ __forceinline__ Row<T> row_at(const T* data, int64_t element) {
    Row<T> row;
    row.data = const_cast<T*>(data) + element;
    row.pixel = 1;
    return row;
}

// One access where a group is wide, else one for its only element.
template <int N>
__device__ __forceinline__ auto here() {
    if constexpr (N == 1) {
        return Part{0, 1};
    } else {
        return Full{0};
    }
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads, 8) geglu_forward(const Columns c, const T* x, T* out) {
    const Place place = place_of<N>(c);
    Row<T> values = row_at(x, place.row * 2 * c.columns + place.column);
    Row<T> gates = row_at(x, (place.row * 2 + 1) * c.columns + place.column);
    Row<T> y = row_at(out, place.row * c.columns + place.column);
    for (int64_t row = place.row; row < c.rows; row += c.step) {
        float value[N], gate[N];
        load_typed<Cache::read_only>(values, here<N>(), value);
        load_typed<Cache::read_only>(gates, here<N>(), gate);
#pragma unroll
        for (int k = 0; k < N; ++k) value[k] = gated<float, uint32_t>(value[k], gate[k]);
        store_typed(y, here<N>(), value);
        values.move(2 * c.step * c.columns);
        gates.move(2 * c.step * c.columns);
        y.move(c.step * c.columns);
    }
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads, 8)
    geglu_backward(const Columns c, const T* gradient, const T* x, T* dx) {
    const Place place = place_of<N>(c);
    const int64_t first = place.row * 2 * c.columns + place.column;
    Row<T> values = row_at(x, first), gates = row_at(x, first + c.columns);
    Row<T> d_values = row_at(dx, first), d_gates = row_at(dx, first + c.columns);
    Row<T> dy = row_at(gradient, place.row * c.columns + place.column);
    for (int64_t row = place.row; row < c.rows; row += c.step) {
        float value[N], gate[N], grad[N];
        load_typed<Cache::read_only>(values, here<N>(), value);
        load_typed<Cache::read_only>(gates, here<N>(), gate);
        load_typed<Cache::read_only>(dy, here<N>(), grad);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            const float v = value[k], g = gate[k];
            gated_slopes<float, uint32_t>(grad[k], v, g, value[k], gate[k]);
        }
        store_typed(d_values, here<N>(), value);
        store_typed(d_gates, here<N>(), gate);
        values.move(2 * c.step * c.columns);
        gates.move(2 * c.step * c.columns);
        d_values.move(2 * c.step * c.columns);
        d_gates.move(2 * c.step * c.columns);
        dy.move(c.step * c.columns);
    }
}

template <auto kKernel, int N, class... Arguments>
int by_columns(int64_t rows, int64_t columns, void* stream, const Arguments&... arguments) {
    int64_t blocks = 0;
    const cudaError_t error = resident_blocks<kKernel>(kThreads, 0, blocks);
    if (error != cudaSuccess) return error;
    Columns c{rows, columns, columns / N, 0};
    // As many rows as fit, but in every round equally many.
    const int64_t most = std::max(blocks * kThreads / c.groups, int64_t{1});
    const int64_t rounds = (rows + most - 1) / most;
    c.step = (rows + rounds - 1) / rounds;
    const int64_t grid = (c.step * c.groups + kThreads - 1) / kThreads;
    return launch(kKernel, dim3(static_cast<unsigned>(grid)), dim3(kThreads), 0,
                  static_cast<cudaStream_t>(stream), c, arguments...);
}

// Whether every group of N of every row is aligned to its 16 bytes.
template <int N>
bool wide(int64_t columns, std::initializer_list<const void*> operands) {
    return columns % N == 0 && std::all_of(operands.begin(), operands.end(), [](const void* p) {
               return reinterpret_cast<uintptr_t>(p) % 16 == 0;
           });
}

}  // namespace
}  // namespace udp

int udp_geglu(int64_t rows, int64_t columns, int type, const void* x, void* y, void* stream) {
    using namespace udp;
    return with_float_type(static_cast<DType>(type), [&](auto element) {
        using T = decltype(element);
        constexpr int N = 16 / sizeof(T);
        const T* in = static_cast<const T*>(x);
        T* out = static_cast<T*>(y);
        return wide<N>(columns, {x, y})
                   ? by_columns<geglu_forward<T, N>, N>(rows, columns, stream, in, out)
                   : by_columns<geglu_forward<T, 1>, 1>(rows, columns, stream, in, out);
    });
}

int udp_geglu_backward(int64_t rows, int64_t columns, int type, const void* gradient, const void* x,
                       void* dx, void* stream) {
    using namespace udp;
    return with_float_type(static_cast<DType>(type), [&](auto element) {
        using T = decltype(element);
        constexpr int N = 16 / sizeof(T);
        const T *dy = static_cast<const T*>(gradient), *in = static_cast<const T*>(x);
        T* out = static_cast<T*>(dx);
        return wide<N>(columns, {gradient, x, dx})
                   ? by_columns<geglu_backward<T, N>, N>(rows, columns, stream, dy, in, out)
                   : by_columns<geglu_backward<T, 1>, 1>(rows, columns, stream, dy, in, out);
    });
}
