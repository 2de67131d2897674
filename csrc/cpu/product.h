// Products of small float32 matrices that lie in the caches: C = A B or C += A B.
//
// A tile of C stays in registers while the sum over k runs: each step loads a few registers of B's
// row k and multiplies them with one number of A at a time. Every element of C is thus one chain of
// fma in the order of k, whatever the tile's size, and all instruction sets give equal bits.
#pragma once

#include <utility>

#include "ops.h"

#if defined(__GNUC__) && !defined(__clang__)
#define UDP_UNROLL _Pragma("GCC unroll 16")
#elif defined(__clang__)
#define UDP_UNROLL _Pragma("unroll")
#else
#define UDP_UNROLL
#endif

namespace udp {
namespace UDP_ISA {
namespace {

enum class Start { zero, sum, scaled_sum };  // what a tile's sums start from

struct Operands {
    int64_t n;       // terms of each sum
    const float* a;  // a[i * kAcross + k * a_step]
    int64_t a_step;
    const float* b;  // b[k * b_step + column]
    int64_t b_step;
    float* c;  // c[i * c_step + column]
    int64_t c_step;
    const float* factor;  // [columns], for scaled_sum
};

// Rows of a tile of so many columns: as many as leave registers for a row of B and a number of A.
constexpr int tile_rows(int groups, bool half) {
    const int registers = groups * kRegistersOfF + (half ? 1 : 0);
    const int rows = (kRegisters - registers - 1) / registers;
    return rows > 14 ? 14 : rows;
}

// kGroups * 16 columns, and 8 more if kHalf.
template <int kRows, int kGroups, bool kHalf, int64_t kAcross>
UDP_NOINLINE void tile(const Operands& o, Start start) {
    constexpr int kF = kGroups > 0 ? kGroups : 1;  // no array is empty
    F sum[kRows][kF];
    Half half[kHalf ? kRows : 1];
    UDP_UNROLL for (int i = 0; i < kRows; ++i) {
        UDP_UNROLL for (int g = 0; g < kGroups; ++g) {
            sum[i][g] = F(0.0f);
            if (start != Start::zero) sum[i][g] = load16(o.c + i * o.c_step + 16 * g);
            if (start == Start::scaled_sum) sum[i][g] = sum[i][g] * load16(o.factor + 16 * g);
        }
        if (kHalf) {
            half[i] = Half(0.0f);
            if (start != Start::zero) half[i] = load8(o.c + i * o.c_step + 16 * kGroups);
        }
    }
    const float *a = o.a, *b = o.b;
    const int64_t a_step = o.a_step, b_step = o.b_step;
    for (int64_t k = 0; k < o.n; ++k) {
        F row[kF];
        Half last;
        UDP_UNROLL for (int g = 0; g < kGroups; ++g) row[g] = load16(b + 16 * g);
        if (kHalf) last = load8(b + 16 * kGroups);
        UDP_UNROLL for (int i = 0; i < kRows; ++i) {
            if (kGroups > 0) {
                const F x(a[i * kAcross]);
                UDP_UNROLL for (int g = 0; g < kGroups; ++g) sum[i][g] = fma(x, row[g], sum[i][g]);
            }
            if (kHalf) half[i] = fma(Half(a[i * kAcross]), last, half[i]);
        }
        a += a_step;
        b += b_step;
    }
    UDP_UNROLL for (int i = 0; i < kRows; ++i) {
        UDP_UNROLL for (int g = 0; g < kGroups; ++g) {
            store16(o.c + i * o.c_step + 16 * g, sum[i][g]);
        }
        if (kHalf) store8(o.c + i * o.c_step + 16 * kGroups, half[i]);
    }
}

// --- columns are queries: a block of kBlock of them, or its first panels -------------------------

constexpr int kPanelGroups = kRegistersOfF == 1 ? 2 : 1;
constexpr int64_t kPanel = 16 * kPanelGroups;
constexpr int kMostRows = tile_rows(kPanelGroups, false);

using Tile = void (*)(const Operands&, Start);
template <size_t... kIndex>
Tile panel_tile(int64_t rows, std::index_sequence<kIndex...>) {
    static constexpr Tile kTiles[] = {
        tile<static_cast<int>(kIndex) + 1, kPanelGroups, false, 1>...};
    return kTiles[rows - 1];
}

// body(first row, rows) for tiles as equal as can be.
template <class Body>
UDP_HD void for_tiles(int64_t rows, Body body) {
    const int64_t tiles = (rows + kMostRows - 1) / kMostRows;
    for (int64_t t = 0, first = 0; t < tiles; ++t) {
        const int64_t end = rows * (t + 1) / tiles;
        body(first, end - first);
        first = end;
    }
}

// A as `product` reads it: rows [rows, n] or, kPacked, what pack_tiles made of it; else [n, rows].
struct Left {
    const float* data;
    int64_t step;  // from k to k + 1 where it is not packed
    bool packed;
};

// c [rows, kBlock] from b [n, kBlock], the first `lanes` columns.
void product(int64_t rows, int64_t n, Left a, const float* b, float* c, int64_t lanes, Start start,
             const float* factor = nullptr) {
    for_tiles(rows, [=](int64_t first, int64_t count) {
        const Tile run = panel_tile(count, std::make_index_sequence<kMostRows>{});
        const float* left = a.data + first * (a.packed ? n : 1);
        for (int64_t lane = 0; lane < lanes; lane += kPanel) {
            run({n, left, a.packed ? count : a.step, b + lane, kBlock, c + first * kBlock + lane,
                 kBlock, factor + (factor == nullptr ? 0 : lane)},
                start);
        }
    });
}

// --- columns are numbers of a head: sums over the queries of a block -----------------------------

// So many rows more than are asked for may be read from a and written to c.
constexpr int64_t kSpareRows = 16;

template <int kGroups, bool kHalf>
void product_columns(int64_t rows, Operands o, Start start) {
    constexpr int kRows = tile_rows(kGroups, kHalf);
    for (int64_t first = 0; first < rows; first += kRows) {
        tile<kRows, kGroups, kHalf, kBlock>(o, start);
        o.a += kRows * kBlock;
        o.c += kRows * o.c_step;
    }
}

// c [rows, columns] from a [rows, kBlock], of which n columns count, and b [n, columns]; columns is
// a multiple of 8.
void product_over_queries(int64_t rows, int64_t n, const float* a, const float* b, float* c,
                          int64_t columns, Start start) {
    int64_t groups = columns / 16;
    bool half = columns % 16 != 0;
    Operands o{n, a, 1, b, columns, c, columns, nullptr};
    const auto advance = [&](int64_t taken) {
        groups -= taken;
        o.b += 16 * taken;
        o.c += 16 * taken;
    };
    while (groups > 0 || half) {
        if (half && groups == 0) {
            half = false;
            product_columns<0, true>(rows, o, start);
        } else if (half && groups == 1) {
            half = false;
            product_columns<1, true>(rows, o, start);
            advance(1);
        } else if (kRegistersOfF > 1 || groups == 1) {
            product_columns<1, false>(rows, o, start);
            advance(1);
        } else if (half && groups == 2) {
            half = false;
            product_columns<kRegistersOfF == 1 ? 2 : 1, true>(rows, o, start);
            advance(2);
        } else if (!half && groups % 2 == 1) {
            product_columns<kRegistersOfF == 1 ? 3 : 1, false>(rows, o, start);
            advance(3);
        } else {
            product_columns<kRegistersOfF == 1 ? 2 : 1, false>(rows, o, start);
            advance(2);
        }
    }
}

}  // namespace
}  // namespace UDP_ISA
}  // namespace udp
