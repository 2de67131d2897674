// Attention to keys that one tile holds, such as the words of a text: forward, and the gradient of
// q alone. Scores lie in rows, [queries, kRowStep]: q and the gradient are read and dq is written
// in the order of memory, and only keys and values, which all queries share, are transposed. That
// pads the keys to whole half-vectors, and a row's sums run across the lanes: of sixteen rows at
// once, through a transposition, so that all instruction sets give equal bits here as well.
#pragma once

#include <algorithm>

#include "../math/bias.h"
#include "../math/exp.h"
#include "../math/normal.h"
#include "attention_packing.h"
#include "ops.h"
#include "product.h"
#include "rows.h"

namespace udp {
namespace UDP_ISA {
namespace {

constexpr int64_t kMostTileKeys = 128, kMostTileSize = 160;
// From row to row of a block of anything: one for all, as what tiles of products step by is
// compiled.
constexpr int64_t kRowStep = 160;

// Whether all keys make a tile, of which padding is at most an eighth.
bool fits_one_tile(const AttentionShape& s) {
    const auto is_filled = [](int64_t n) { return in_whole(n, 8) * 8 <= n * 9; };
    return s.keys <= kMostTileKeys && s.size <= kMostTileSize && is_filled(s.keys) &&
           is_filled(s.size);
}

struct TileFloats {
    float *k_lanes, *v_lanes, *rows, *q, *grad, *p, *ds, *out, *bias, *most, *sum, *room;
    int64_t used;
    TileFloats(const AttentionShape& shape, DType type, bool backward, float* base) {
        Floats floats{base};
        const int64_t columns = in_whole(shape.size, 8), lanes = in_whole(shape.keys, 16);
        const int64_t block = kBlock * kRowStep;
        k_lanes = floats.take(shape.size * lanes);
        v_lanes = floats.take(backward ? shape.size * lanes : 0);
        rows = floats.take(shape.keys * columns);  // v or, backward, k
        q = floats.take(block);
        grad = floats.take(backward ? block : 0);
        p = floats.take(block);
        ds = floats.take(backward ? block : 0);
        out = floats.take(kBlock * columns);
        bias = floats.take(lanes);
        most = floats.take(kBlock);
        sum = floats.take(kBlock);
        room = floats.take(room_for(type, std::max(shape.keys, kBlock), shape.size));
        used = floats.used;
    }
};

// --- sixteen rows --------------------------------------------------------------------------------

// Lane i: the lanes of r[i] put together by `join`, a commutative one, in an order of their own.
template <class Join>
UDP_HD F across(F (&r)[16], Join join) {
    transpose16(r);
    for (int width = 8; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) r[i] = join(r[i], r[i + width]);
    }
    return r[0];
}

// The first n lanes of a, `other` in those behind them.
UDP_HD F first_lanes(F a, int64_t n, float other) {
    alignas(64) static constexpr float kLane[16] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                    8, 9, 10, 11, 12, 13, 14, 15};
    return select(load16(kLane) < F(static_cast<float>(n)), a, F(other));
}

// Beyond the last key: -inf, so that nothing is left of them.
UDP_HD void mask_beyond(float* s, int64_t keys) {
    const int64_t whole = keys / 16 * 16;
    if (whole == keys) return;
    for (int i = 0; i < 16; ++i, s += kRowStep) {
        store16(s + whole, first_lanes(load16(s + whole), keys - whole, -kInfinity));
    }
}

// s becomes 2^(s - most), and lane i of `most` and `sum` what they are of row i.
UDP_NOINLINE void softmax_rows(float* s, int64_t keys, float* most, float* sum) {
    F r[16];
    mask_beyond(s, keys);
    for (int i = 0; i < 16; ++i) {
        const float* row = s + i * kRowStep;
        r[i] = load16(row);
        for (int64_t c = 16; c < keys; c += 16) r[i] = at_least(load16(row + c), r[i]);
    }
    const F now = across(r, [](F a, F b) { return at_least(a, b); });
    store16(most, now);
    // Where all keys are masked, -inf - 0 and not -inf - -inf.
    float base[16];
    store16(base, select(now < F(-kLargest), F(0.0f), now));
    for (int i = 0; i < 16; ++i) {
        float* row = s + i * kRowStep;
        const F from(base[i]);
        r[i] = F(0.0f);
        for (int64_t c = 0; c < keys; c += 16) {
            const F p = exp2_or_zero<F, U>(load16(row + c) - from);
            store16(row + c, p);
            r[i] = r[i] + p;
        }
    }
    store16(sum, across(r, [](F a, F b) { return a + b; }));
}

// From p, 2^(s - most), and dp in the place of ds.
UDP_NOINLINE void differentiate_rows(const float* p, float* ds, int64_t keys, const float* sum) {
    F r[16];
    const int64_t whole = keys / 16 * 16;
    for (int i = 0; i < 16; ++i) {
        const float *a = p + i * kRowStep, *b = ds + i * kRowStep;
        r[i] = F(0.0f);
        for (int64_t c = 0; c < whole; c += 16) r[i] = fma(load16(a + c), load16(b + c), r[i]);
        if (whole < keys) {
            const F last = first_lanes(load16(b + whole), keys - whole, 0.0f);
            r[i] = fma(load16(a + whole), last, r[i]);
        }
    }
    const F inverse = inverse_or_zero(load16(sum));
    float delta[16], scale[16];
    store16(delta, across(r, [](F a, F b) { return a + b; }) * inverse);
    store16(scale, inverse);
    for (int i = 0; i < 16; ++i) {
        const F d(delta[i]), f(scale[i]);
        for (int64_t c = 0; c < keys; c += 16) {
            const F probability = load16(p + i * kRowStep + c) * f;
            float* at = ds + i * kRowStep + c;
            store16(at, probability * (load16(at) - d));
        }
    }
}

// --- blocks --------------------------------------------------------------------------------------

// What is added to every query's scores, times log2 e.
void pack_bias(const float* from, int64_t step, int64_t keys, float* to) {
    for (int64_t c = 0; c < in_whole(keys, 16); ++c) {
        to[c] = c < keys ? limited_bias(from[c * step]) * kLog2E : 0.0f;
    }
}

// `shared` is what pack_bias made, where the bias is one for all queries.
UDP_NOINLINE void add_bias_rows(const Bias& bias, const float* from, const float* shared,
                                int64_t rows, int64_t keys, float* s) {
    for (int64_t i = 0; i < rows; ++i, s += kRowStep, from += bias.query) {
        for_lanes(keys, [=](int64_t c, auto lanes) {
            const F score = load16(s + c);
            // The backend sees to it that the keys' stride is 1 where queries have rows.
            store16(s + c, bias.query == 0
                               ? score + load16(shared + c)
                               : fma(limited_bias(load(from + c, lanes)), F(kLog2E), score));
        });
    }
}

// The rows of a block of an operand, a few of them fetched after each tile of a product, before
// they are read or written: short and far apart as they are, no processor foresees them.
class Ahead {
  public:
    Ahead(const Heads& x, const AttentionItem& item, int64_t row, int64_t size)
        : size_(size * size_of(x.type)), step_(x.row * size_of(x.type)) {
        const int64_t end = item.first + item.rows;
        left_ = std::max<int64_t>(0, std::min(kBlock, end - row));
        const int64_t at = item.image * x.image + item.head * x.head + row * x.row;
        next_ = static_cast<const char*>(x.data) + at * size_of(x.type);
    }
    void fetch_some() {
        for (int i = 0; i < 3 && left_ > 0; ++i, --left_, next_ += step_) {
            for (int64_t b = 0; b < size_; b += 64) fetch(next_ + b);
        }
    }

  private:
    const char* next_;
    int64_t size_, step_, left_;
};

// Rows of q or the gradient; those up to a multiple of sixteen are 0, since they are multiplied.
void pack_block(const Heads& x, const HeadPart& part, int64_t size, float* room, float* to) {
    const int64_t count = part.count;
    pack_rows(read(x, part, size, room), count, size, size, to, kRowStep);
    for (int64_t i = count; i < in_whole(count, 16); ++i) {
        memset(to + i * kRowStep, 0, static_cast<size_t>(size) * sizeof(float));
    }
}

// p = 2^(s - most) of a block, and each row's most and sum.
template <class After>
void softmax_block(const AttentionShape& shape, const Bias& bias, const AttentionItem& item,
                   int64_t row, int64_t count, const TileFloats& f, After after) {
    const int64_t all = in_whole(count, 16);
    product_of_rows<kRowStep>(all, shape.size, f.q, f.k_lanes, in_whole(shape.keys, 16), f.p,
                              kRowStep, in_whole(shape.keys, 8), after);
    if (bias.data != nullptr) {
        const float* from = bias.data + item.image * bias.image + item.head * bias.head;
        add_bias_rows(bias, from + row * bias.query, f.bias, count, shape.keys, f.p);
    }
    for (int64_t r = 0; r < all; r += 16) {
        softmax_rows(f.p + r * kRowStep, shape.keys, f.most + r, f.sum + r);
    }
}

// Keys, or values, as the columns of a product: transposed, times scale.
void pack_columns(const Heads& x, const AttentionItem& item, const AttentionShape& shape,
                  float scale, float* room, float* to) {
    const int64_t lanes = in_whole(shape.keys, 16);
    pack_lanes(read(x, {item.image, item.head, 0, shape.keys}, shape.size, room), shape.keys,
               shape.size, scale, lanes, to, lanes);
}

void pack_keys(const Heads& k, const Heads& rows, const Bias& bias, const AttentionItem& item,
               const AttentionShape& shape, float scale, const TileFloats& f) {
    const int64_t columns = in_whole(shape.size, 8);
    pack_columns(k, item, shape, scale * kLog2E, f.room, f.k_lanes);
    pack_rows(read(rows, {item.image, item.head, 0, shape.keys}, shape.size, f.room), shape.keys,
              shape.size, columns, f.rows, columns);
    if (bias.data != nullptr && bias.query == 0) {
        pack_bias(bias.data + item.image * bias.image + item.head * bias.head, bias.key, shape.keys,
                  f.bias);
    }
}

int64_t one_tile_floats(const AttentionShape& shape, DType type, bool backward) {
    return TileFloats(shape, type, backward, nullptr).used;
}

void attention_one_tile(const Attention& a, const AttentionPlan& plan, int64_t number,
                        float* base) {
    const AttentionShape& shape = a.shape;
    const TileFloats f(shape, a.q.type, false, base);
    const AttentionItem item(shape, plan, number);
    const int64_t size = shape.size, columns = in_whole(size, 8);
    pack_keys(a.k, a.v, a.bias, item, shape, a.scale, f);
    for_blocks(item.rows, kBlock, [&](int64_t row, int64_t count) {
        row += item.first;
        const HeadPart part{item.image, item.head, row, count};
        pack_block(a.q, part, size, f.room, f.q);
        Ahead q(a.q, item, row + kBlock, size);
        softmax_block(shape, a.bias, item, row, count, f, [&q] { q.fetch_some(); });
        Ahead out(a.out, item, row, size);
        product_of_rows<kRowStep>(in_whole(count, 16), shape.keys, f.p, f.rows, columns, f.out,
                                  columns, columns, [&out] { out.fetch_some(); });
        if (a.lse != nullptr) {
            float* lse = a.lse + (item.image * shape.heads + item.head) * shape.queries + row;
            store_lse(f.most, f.sum, count, lse);
        }
        float* inverse = f.sum;
        invert(f.sum, inverse);
        unpack_rows(f.out, count, size, columns, inverse, 1, open(a.out, part, size, f.room));
        close(a.out, part, size, f.room);
    });
}

void attention_backward_one_tile(const AttentionBackward& a, const AttentionPlan& plan,
                                 int64_t number, float* base) {
    const AttentionShape& shape = a.shape;
    const TileFloats f(shape, a.q.type, true, base);
    const AttentionItem item(shape, plan, number);
    const int64_t size = shape.size, columns = in_whole(size, 8), keys = shape.keys;
    pack_keys(a.k, a.k, a.bias, item, shape, a.scale, f);
    pack_columns(a.v, item, shape, 1.0f, f.room, f.v_lanes);
    for_blocks(item.rows, kBlock, [&](int64_t row, int64_t count) {
        row += item.first;
        const HeadPart part{item.image, item.head, row, count};
        const int64_t all = in_whole(count, 16);
        pack_block(a.q, part, size, f.room, f.q);
        pack_block(a.grad_out, part, size, f.room, f.grad);
        Ahead q(a.q, item, row + kBlock, size), grad(a.grad_out, item, row + kBlock, size);
        softmax_block(shape, a.bias, item, row, count, f, [&q] { q.fetch_some(); });
        product_of_rows<kRowStep>(all, size, f.grad, f.v_lanes, in_whole(keys, 16), f.ds, kRowStep,
                                  in_whole(keys, 8), [&grad] { grad.fetch_some(); });
        for (int64_t r = 0; r < all; r += 16) {
            differentiate_rows(f.p + r * kRowStep, f.ds + r * kRowStep, keys, f.sum + r);
        }
        Ahead dq(a.dq, item, row, size);
        product_of_rows<kRowStep>(all, keys, f.ds, f.rows, columns, f.out, columns, columns,
                                  [&dq] { dq.fetch_some(); });
        unpack_rows(f.out, count, size, columns, &a.scale, 0, open(a.dq, part, size, f.room));
        close(a.dq, part, size, f.room);
    });
}

}  // namespace
}  // namespace UDP_ISA
}  // namespace udp
