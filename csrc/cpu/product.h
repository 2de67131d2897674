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

using TileProduct = void (*)(const Operands&, Start);
template <size_t... kIndex>
TileProduct panel_tile(int64_t rows, std::index_sequence<kIndex...>) {
    static constexpr TileProduct kTiles[] = {
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
        const TileProduct run = panel_tile(count, std::make_index_sequence<kMostRows>{});
        const float* left = a.data + first * (a.packed ? n : 1);
        for (int64_t lane = 0; lane < lanes; lane += kPanel) {
            run({n, left, a.packed ? count : a.step, b + lane, kBlock, c + first * kBlock + lane,
                 kBlock, factor + (factor == nullptr ? 0 : lane)},
                start);
        }
    });
}

// --- rows and columns as they lie in memory ------------------------------------------------------

template <int kGroupsOf16, bool kAndHalf>
struct TileOf {
    static constexpr int kGroups = kGroupsOf16;
    static constexpr bool kHalf = kAndHalf;
    static constexpr int kRows = tile_rows(kGroups, kHalf);
};

// body(first column, TileOf) for the columns, a multiple of 8, of tiles that fill the registers.
template <class Body>
UDP_HD void for_column_tiles(int64_t columns, Body body) {
    int64_t first = 0;
    for (int64_t groups = columns / 16; groups > 0;) {
        const bool half = columns % 16 != 0;
        int64_t taken = 1;
        if (half && groups == 1) {
            return body(first, TileOf<1, true>{});
        } else if (kRegistersOfF > 1 || groups == 1) {
            body(first, TileOf<1, false>{});
        } else if (half && groups == 2) {
            return body(first, TileOf<kRegistersOfF == 1 ? 2 : 1, true>{});
        } else if (!half && groups % 2 == 1) {
            body(first, TileOf<kRegistersOfF == 1 ? 3 : 1, false>{});
            taken = 3;
        } else {
            body(first, TileOf<kRegistersOfF == 1 ? 2 : 1, false>{});
            taken = 2;
        }
        groups -= taken;
        first += 16 * taken;
    }
    if (first < columns) body(first, TileOf<0, true>{});
}

// after() follows each tile.
template <int kRows, int64_t kAcross, class Kind, class After>
void product_of_columns(int64_t rows, Operands o, Start start, Kind, After after) {
    for (int64_t first = 0; first < rows; first += kRows) {
        tile<kRows, Kind::kGroups, Kind::kHalf, kAcross>(o, start);
        after();
        o.a += kRows * kAcross;
        o.c += kRows * o.c_step;
    }
}

// So many rows more than are asked for may be read from a and written to c.
constexpr int64_t kSpareRows = 16;

// Sums over the queries of a block: c [rows, columns] from a [rows, kBlock], of which n columns
// count, and b [n, columns].
void product_over_queries(int64_t rows, int64_t n, const float* a, const float* b, float* c,
                          int64_t columns, Start start) {
    for_column_tiles(columns, [=](int64_t first, auto kind) {
        const Operands o{n, a, 1, b + first, columns, c + first, columns, nullptr};
        product_of_columns<decltype(kind)::kRows, kBlock>(rows, o, start, kind, [] {});
    });
}

// c [rows, columns] from a [rows, kAcross], of which n columns count, and b [n, columns], the rows
// of b and c so many floats apart; rows is a multiple of 16.
template <int64_t kAcross, class After>
void product_of_rows(int64_t rows, int64_t n, const float* a, const float* b, int64_t b_step,
                     float* c, int64_t c_step, int64_t columns, After after) {
    for_column_tiles(columns, [=](int64_t first, auto kind) {
        // No row too many: high tiles, as long as low ones can do the rest.
        constexpr int kHigh = decltype(kind)::kRows;
        constexpr int kLow = kHigh >= 8 ? 8 : kHigh >= 4 ? 4 : 2;
        int64_t high = rows / kHigh * kHigh;
        while ((rows - high) % kLow != 0) high -= kHigh;
        Operands o{n, a, 1, b + first, b_step, c + first, c_step, nullptr};
        product_of_columns<kHigh, kAcross>(high, o, Start::zero, kind, after);
        o.a += high * kAcross;
        o.c += high * c_step;
        product_of_columns<kLow, kAcross>(rows - high, o, Start::zero, kind, after);
    });
}

}  // namespace
}  // namespace UDP_ISA
}  // namespace udp
