// What attention's kernels bring operands into and results out of, and the memory they work in.
//
// Operands become float32, in the order in which they are read, a block at a time:
//   lanes  [size, kBlock]  a block of queries, transposed
//   tiles  [keys, size]    for sums over the size: the rows of a tile side by side (product.h)
//   rows   [rows, columns] for sums over keys or queries; columns is the size in whole half-vectors
#pragma once

#include <algorithm>
#include <limits>

#include "../math/exp.h"
#include "../math/normal.h"
#include "ops.h"
#include "product.h"
#include "rows.h"

namespace udp {
namespace UDP_ISA {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// One head of one image, from some row on, as float32.
template <class T>
struct HeadRows {
    T* data;
    int64_t step;
    T* row(int64_t i) const { return data + i * step; }
};

// Which rows of an operand.
struct HeadPart {
    int64_t image, head, row, count;
};

template <class T>
HeadRows<T> rows_of(const Heads& x, const HeadPart& part) {
    return {static_cast<T*>(x.data) + part.image * x.image + part.head * x.head + part.row * x.row,
            x.row};
}

// body(column, Full or Part) for the groups of sixteen columns. The last one overlaps the one
// before it rather than being a part, where there is one before it: what is done twice is the same.
template <class Body>
UDP_HD void for_columns(int64_t size, Body body) {
    if (size < 16) return body(int64_t{0}, Part{size});
    for (int64_t d = 0; d + 16 <= size; d += 16) body(d, Full{});
    if (size % 16 != 0) body(size - 16, Full{});
}
UDP_HD int64_t count_of(Full) {
    return 16;
}
UDP_HD int64_t count_of(Part part) {
    return part.n;
}

template <class From, class To>
UDP_NOINLINE void convert_rows(HeadRows<const From> from, HeadRows<To> to, int64_t count,
                               int64_t size) {
    for (int64_t i = 0; i < count; ++i) {
        const From* row = from.row(i);
        To* at = to.row(i);
        for_columns(size,
                    [=](int64_t d, auto part) { store(at + d, load(row + d, part), part, false); });
    }
}

// Rows as float32: in place where they are that already, else brought into the room.
HeadRows<const float> read(const Heads& x, const HeadPart& part, int64_t size, float* room) {
    if (x.type == DType::float32) return rows_of<const float>(x, part);
    const HeadRows<float> to{room, size};
    if (x.type == DType::float16) {
        convert_rows(rows_of<const Float16>(x, part), to, part.count, size);
    } else {
        convert_rows(rows_of<const BFloat16>(x, part), to, part.count, size);
    }
    return {room, size};
}
// The other way: where a kernel is to write rows, and what is left to do once it has.
HeadRows<float> open(const Heads& x, const HeadPart& part, int64_t size, float* room) {
    if (x.type == DType::float32) return rows_of<float>(x, part);
    return {room, size};
}
void close(const Heads& x, const HeadPart& part, int64_t size, const float* room) {
    const HeadRows<const float> from{room, size};
    if (x.type == DType::float16) {
        convert_rows(from, rows_of<Float16>(x, part), part.count, size);
    } else if (x.type == DType::bfloat16) {
        convert_rows(from, rows_of<BFloat16>(x, part), part.count, size);
    }
}

// Sixteen columns of up to sixteen rows, transposed; rows that are missing read zero.
template <class Lanes>
UDP_HD void load_transposed(HeadRows<const float> x, int64_t count, int64_t column, Lanes lanes,
                            F scale, F (&r)[16]) {
    if (count >= 16) {
        for (int i = 0; i < 16; ++i) r[i] = load(x.row(i) + column, lanes) * scale;
    } else {
        for (int i = 0; i < 16; ++i) {
            r[i] = i < count ? load(x.row(i) + column, lanes) * scale : F(0.0f);
        }
    }
    transpose16(r);
}

// to [size, step]: `count` rows times scale, transposed; the lanes beyond them up to `lanes` are 0.
UDP_NOINLINE void pack_lanes(HeadRows<const float> x, int64_t count, int64_t size, float scale,
                             int64_t lanes, float* to, int64_t step = kBlock) {
    const F factor(scale);
    for (int64_t lane = 0; lane < lanes; lane += 16) {
        for_columns(size, [=](int64_t column, auto part) {
            F r[16];
            load_transposed(HeadRows<const float>{x.row(lane), x.step}, count - lane, column, part,
                            factor, r);
            float* at = to + column * step + lane;
            for (int64_t i = 0; i < count_of(part); ++i) store16(at + i * step, r[i]);
        });
    }
}

// What `product` calls a packed A: tile after tile, [size, rows of the tile]. Up to fifteen floats
// behind it are written.
UDP_NOINLINE void pack_tiles(HeadRows<const float> x, int64_t count, int64_t size, float* to) {
    for_tiles(count, [=](int64_t first, int64_t rows) {
        for_columns(size, [=](int64_t column, auto part) {
            F r[16];
            load_transposed(HeadRows<const float>{x.row(first), x.step}, rows, column, part,
                            F(1.0f), r);
            float* at = to + first * size + column * rows;
            // Each store's surplus lanes are overwritten by the next one.
            for (int64_t i = 0; i < count_of(part); ++i) store16(at + i * rows, r[i]);
        });
    });
}

// to [count, columns], rows `step` apart; columns beyond the size are 0.
UDP_NOINLINE void pack_rows(HeadRows<const float> x, int64_t count, int64_t size, int64_t columns,
                            float* to, int64_t step) {
    for (int64_t i = 0; i < count; ++i, to += step) {
        const float* row = x.row(i);
        for (int64_t d = size; d < columns; ++d) to[d] = 0.0f;
        for_columns(size,
                    [=](int64_t d, auto part) { store(to + d, load(row + d, part), part, false); });
    }
}

// The way back: `count` rows from [count, columns], row i times scale[i * each].
UDP_NOINLINE void unpack_rows(const float* from, int64_t count, int64_t size, int64_t columns,
                              const float* scale, int64_t each, HeadRows<float> x) {
    for (int64_t i = 0; i < count; ++i, from += columns) {
        const F factor(scale[i * each]);
        float* row = x.row(i);
        for_columns(size, [=](int64_t d, auto part) {
            store(row + d, load(from + d, part) * factor, part, false);
        });
    }
}

// `count` rows from lanes [size, kBlock], each lane times its factor.
UDP_NOINLINE void unpack_lanes(const float* from, const float* factor, int64_t count, int64_t size,
                               HeadRows<float> x) {
    for (int64_t lane = 0; lane < count; lane += 16) {
        const F scale = load16(factor + lane);
        const int64_t rows = count - lane < 16 ? count - lane : 16;
        for_columns(size, [=](int64_t column, auto part) {
            F r[16];
            const float* at = from + column * kBlock + lane;
            for (int64_t i = 0; i < 16; ++i) {
                r[i] = i < count_of(part) ? load16(at + i * kBlock) * scale : F(0.0f);
            }
            transpose16(r);
            for (int64_t i = 0; i < rows; ++i) {
                store(x.row(lane + i) + column, r[i], part, false);
            }
        });
    }
}

// sums[i] = the product of row i of x with row i of y, in an order that the size alone decides.
UDP_NOINLINE void row_products(HeadRows<const float> x, HeadRows<const float> y, int64_t count,
                               int64_t size, float* sums) {
    for (int64_t i = 0; i < count; ++i) {
        F sum(0.0f);
        const float *a = x.row(i), *b = y.row(i);
        for_lanes(size, [a, b, &sum](int64_t d, auto lanes) {
            sum = fma(load(a + d, lanes), load(b + d, lanes), sum);
        });
        float lane[16];
        store16(lane, sum);
        for (int width = 8; width > 0; width /= 2) {
            for (int j = 0; j < width; ++j) lane[j] += lane[j + width];
        }
        sums[i] = lane[0];
    }
}

// From the largest score of each row, times log2 e, and the sum of 2^(s - most).
void store_lse(const float* most, const float* sum, int64_t count, float* lse) {
    for_lanes(count, [=](int64_t r, auto part) {
        const F total = load16(sum + r);
        const F log = F(-0.5f) * minus_two_log<F, U>(total);
        const F value = fma(load16(most + r), F(kLn2), log);
        store(lse + r, select(total != F(0.0f), value, F(-kInfinity)), part, false);
    });
}

// 1 / sum; 0 for a query that attends to nothing.
UDP_HD F inverse_or_zero(F sum) {
    return select(sum != F(0.0f), F(1.0f) / sum, F(0.0f));
}
// The same of a block.
void invert(const float* sum, float* inverse) {
    for (int64_t r = 0; r < kBlock; r += 16) {
        store16(inverse + r, inverse_or_zero(load16(sum + r)));
    }
}

// --- work ----------------------------------------------------------------------------------------

// The queries of an item of work; `first` counts from the head's.
struct AttentionItem {
    int64_t image, head, first, rows;
    AttentionItem(const AttentionShape& shape, const AttentionPlan& plan, int64_t item) {
        const int64_t items = plan.items(shape);
        image = item / items / shape.heads;
        head = item / items % shape.heads;
        first = item % items * plan.rows;
        rows = std::min(plan.rows, shape.queries - first);
    }
};

// --- memory --------------------------------------------------------------------------------------

// Memory of one item of work, handed out in cache lines; from null, only counted.
struct Floats {
    float* base;
    int64_t used = 0;
    float* take(int64_t n) {
        float* p = base == nullptr ? nullptr : base + used;
        used += (n + 15) / 16 * 16;
        return p;
    }
};

int64_t in_whole(int64_t n, int64_t unit) {
    return (n + unit - 1) / unit * unit;
}

// Floats that `read` and `open` need for so many rows.
int64_t room_for(DType type, int64_t rows, int64_t size) {
    return type == DType::float32 ? 0 : rows * size;
}

// body(first, count) for the pieces of at most `size` of 0 .. n.
template <class Body>
UDP_HD void for_blocks(int64_t n, int64_t size, Body body) {
    for (int64_t first = 0; first < n; first += size) {
        body(first, n - first < size ? n - first : size);
    }
}

}  // namespace
}  // namespace UDP_ISA
}  // namespace udp
