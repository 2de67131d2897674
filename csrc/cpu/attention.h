// Attention. Scores are held transposed, [keys, kBlock]: a lane is a query, so that the softmax
// needs no sum across lanes, no width of a head and no number of keys is padded, and all
// instruction sets give equal bits. Exponentials are powers of two: log2 e is in the scale of q.
//
// Forward and dq alone of keys that one tile holds: attention_one_tile.h, with scores in rows.
#pragma once

#include <type_traits>

#include "../math/bias.h"
#include "../math/exp.h"
#include "../math/normal.h"
#include "attention_one_tile.h"
#include "attention_packing.h"
#include "ops.h"
#include "product.h"
#include "rows.h"

namespace udp {
namespace UDP_ISA {
namespace {

// --- blocks of scores ----------------------------------------------------------------------------

// The scores of a block of queries with a block of keys, times log2 e.
struct Scores {
    int64_t image, head;
    int64_t row, rows;  // queries, at most kBlock
    int64_t key, keys;
    int64_t lanes;  // rows in whole panels
};

UDP_NOINLINE void add_bias(const Bias& bias, const Scores& at, float* s, float* transposed) {
    const float* from = bias.data + at.image * bias.image + at.head * bias.head +
                        at.row * bias.query + at.key * bias.key;
    if (bias.query == 0) {
        for (int64_t c = 0; c < at.keys; ++c, s += kBlock) {
            const F b(limited_bias(from[c * bias.key]) * kLog2E);
            for (int64_t r = 0; r < at.lanes; r += 16) store16(s + r, load16(s + r) + b);
        }
        return;
    }
    // The backend sees to it that the keys' stride is 1 here.
    const HeadRows<const float> rows{from, bias.query};
    pack_lanes(rows, at.rows, at.keys, 1.0f, at.lanes, transposed);
    for (int64_t c = 0; c < at.keys; ++c, s += kBlock, transposed += kBlock) {
        for (int64_t r = 0; r < at.lanes; r += 16) {
            store16(s + r, fma(limited_bias(load16(transposed + r)), F(kLog2E), load16(s + r)));
        }
    }
}

// Of sixteen queries: s becomes 2^(s - most), `most` and `sum` go on from the keys before, and
// `fade` is what all that was summed with the former `most` has to be multiplied by.
UDP_NOINLINE void softmax_lanes(float* s, int64_t keys, float* most, float* sum, float* fade) {
    const F before = load16(most);
    F now = before;
    for (int64_t c = 0; c < keys; ++c) now = at_least(load16(s + c * kBlock), now);
    // Where all keys are masked so far, -inf - 0 and not -inf - -inf.
    const F base = select(now < F(-kLargest), F(0.0f), now);
    const F factor = exp2_or_zero<F, U>(before - base);
    F total = load16(sum) * factor;
    for (int64_t c = 0; c < keys; ++c) {
        const F p = exp2_or_zero<F, U>(load16(s + c * kBlock) - base);
        store16(s + c * kBlock, p);
        total = total + p;
    }
    store16(most, now);
    store16(sum, total);
    store16(fade, factor);
}

// --- forward -------------------------------------------------------------------------------------

struct ForwardFloats {
    float *k, *v, *s, *bias, *q, *out, *most, *sum, *fade, *room;
    int64_t used;
    ForwardFloats(const Attention& a, const AttentionPlan& plan, float* base) {
        Floats floats{base};
        const AttentionShape& shape = a.shape;
        const int64_t columns = in_whole(shape.size, 8), rows = in_whole(plan.rows, kBlock);
        k = floats.take(plan.keys * shape.size + 16);
        v = floats.take(plan.keys * columns);
        s = floats.take(plan.keys * kBlock);
        bias = floats.take(plan.keys * kBlock);
        q = floats.take(rows * shape.size);
        out = floats.take(rows * shape.size);
        most = floats.take(rows);
        sum = floats.take(rows);
        fade = floats.take(kBlock);
        room = floats.take(room_for(a.q.type, std::max(plan.keys, kBlock), shape.size));
        used = floats.used;
    }
};

int64_t attention_floats(const Attention& a, const AttentionPlan& plan) {
    if (fits_one_tile(a.shape)) return one_tile_floats(a.shape, a.q.type, false);
    return ForwardFloats(a, plan, nullptr).used;
}

void attention(const Attention& a, const AttentionPlan& plan, int64_t item, float* base) {
    const AttentionShape& shape = a.shape;
    if (fits_one_tile(shape)) return attention_one_tile(a, plan, item, base);
    const ForwardFloats f(a, plan, base);
    const int64_t size = shape.size, columns = in_whole(size, 8);
    const AttentionItem part(shape, plan, item);
    const int64_t image = part.image, head = part.head, first = part.first, rows = part.rows;
    for (int64_t r = 0; r < in_whole(rows, kBlock); ++r) {
        f.most[r] = -kInfinity;
        f.sum[r] = 0.0f;
    }
    for_blocks(shape.keys, plan.keys, [&](int64_t key, int64_t keys) {
        const HeadPart of_keys{image, head, key, keys};
        pack_tiles(read(a.k, of_keys, size, f.room), keys, size, f.k);
        pack_rows(read(a.v, of_keys, size, f.room), keys, size, columns, f.v, columns);
        for_blocks(rows, kBlock, [&](int64_t row, int64_t count) {
            const int64_t lanes = in_whole(count, kPanel);
            const HeadPart of_rows{image, head, first + row, count};
            float *q = f.q + row * size, *out = f.out + row * size;
            float *most = f.most + row, *sum = f.sum + row;
            if (key == 0) {
                pack_lanes(read(a.q, of_rows, size, f.room), count, size, a.scale * kLog2E, lanes,
                           q);
            }
            product(keys, size, {f.k, 0, true}, q, f.s, lanes, Start::zero);
            if (a.bias.data != nullptr) {
                add_bias(a.bias, {image, head, first + row, count, key, keys, lanes}, f.s, f.bias);
            }
            for (int64_t lane = 0; lane < lanes; lane += 16) {
                softmax_lanes(f.s + lane, keys, most + lane, sum + lane, f.fade + lane);
            }
            product(size, keys, {f.v, columns, false}, f.s, out, lanes,
                    key == 0 ? Start::zero : Start::scaled_sum, f.fade);
            if (key + keys < shape.keys) return;
            float* inverse = f.fade;
            invert(sum, inverse);
            unpack_lanes(out, inverse, count, size, open(a.out, of_rows, size, f.room));
            close(a.out, of_rows, size, f.room);
            if (a.lse == nullptr) return;
            float* lse = a.lse + (image * shape.heads + head) * shape.queries + first + row;
            store_lse(most, sum, count, lse);
        });
    });
}

// --- backward ------------------------------------------------------------------------------------

struct BackwardFloats {
    float *k_tiles, *k_rows, *v_tiles, *p, *ds, *bias, *q, *grad, *q_rows, *grad_rows;
    float *dk, *dv, *dq, *lse, *delta, *sum, *factor, *room;
    int64_t used;
    BackwardFloats(const AttentionBackward& a, const AttentionPlan& plan, float* base) {
        Floats floats{base};
        const int64_t size = a.shape.size, columns = in_whole(size, 8);
        const int64_t rows = in_whole(plan.rows, kBlock), keys = plan.keys + kSpareRows;
        // One block of dq is enough where it is finished at once.
        const int64_t dq_rows = plan.keys < a.shape.keys ? rows : kBlock;
        k_tiles = floats.take(plan.keys * size + 16);
        k_rows = floats.take(plan.keys * columns);
        v_tiles = floats.take(plan.keys * size + 16);
        p = floats.take(keys * kBlock);
        ds = floats.take(keys * kBlock);
        bias = floats.take(a.bias.data == nullptr ? 0 : plan.keys * kBlock);
        q = floats.take(kBlock * size);
        grad = floats.take(kBlock * size);
        q_rows = floats.take(a.dk.data == nullptr ? 0 : kBlock * columns);
        grad_rows = floats.take(a.dv.data == nullptr ? 0 : kBlock * columns);
        dk = floats.take(a.dk.data == nullptr ? 0 : keys * columns);
        dv = floats.take(a.dv.data == nullptr ? 0 : keys * columns);
        dq = floats.take(a.dq.data == nullptr ? 0 : dq_rows * size);
        lse = floats.take(rows);
        delta = floats.take(rows);
        sum = floats.take(kBlock);
        factor = floats.take(kBlock);
        room = floats.take(room_for(a.q.type, std::max(plan.keys, 2 * kBlock), size));
        used = floats.used;
    }
};

bool is_one_tile_dq(const AttentionBackward& a) {
    const bool dq_alone = a.lse == nullptr && a.dk.data == nullptr && a.dv.data == nullptr;
    return dq_alone && fits_one_tile(a.shape);
}

int64_t attention_backward_floats(const AttentionBackward& a, const AttentionPlan& plan) {
    if (is_one_tile_dq(a)) return one_tile_floats(a.shape, a.q.type, true);
    return BackwardFloats(a, plan, nullptr).used;
}

// Of sixteen queries, from the rows' sums: p from the scores, ds from dp.
UDP_NOINLINE void differentiate_lanes(float* p, float* ds, int64_t keys, const float* lse,
                                      const float* delta, bool keep_p, bool needs_ds) {
    const F l = load16(lse), d = load16(delta);
    for (int64_t c = 0; c < keys; ++c, p += kBlock, ds += kBlock) {
        const F probability = exp2_or_zero<F, U>(load16(p) - l);
        if (keep_p) store16(p, probability);
        if (needs_ds) store16(ds, probability * (load16(ds) - d));
    }
}

// The same where p holds 2^(s - most) and there is nothing to start from but its sum.
UDP_NOINLINE void differentiate_tile_lanes(const float* p, float* ds, int64_t keys,
                                           const float* inverse) {
    F delta(0.0f);
    const F scale = load16(inverse);
    for (int64_t c = 0; c < keys; ++c) {
        delta = fma(load16(p + c * kBlock), load16(ds + c * kBlock), delta);
    }
    delta = delta * scale;
    for (int64_t c = 0; c < keys; ++c) {
        const F probability = load16(p + c * kBlock) * scale;
        store16(ds + c * kBlock, probability * (load16(ds + c * kBlock) - delta));
    }
}

// lse in powers of two, +inf for a query that attends to nothing, so that its p are 0.
void read_rows(const AttentionBackward& a, int64_t image, int64_t head, int64_t row, int64_t count,
               float* lse, float* delta, float* room) {
    const AttentionShape& shape = a.shape;
    const float* from = a.lse + (image * shape.heads + head) * shape.queries + row;
    for (int64_t r = 0; r < in_whole(count, kBlock); ++r) {
        const bool attends = r < count && from[r] != -kInfinity;
        lse[r] = attends ? from[r] * kLog2E : kInfinity;
        delta[r] = 0.0f;
    }
    for_blocks(count, kBlock, [&](int64_t first, int64_t some) {
        const HeadPart part{image, head, row + first, some};
        row_products(read(a.grad_out, part, shape.size, room),
                     read(a.out, part, shape.size, room + kBlock * shape.size), some, shape.size,
                     delta + first);
    });
}

void attention_backward(const AttentionBackward& a, const AttentionPlan& plan, int64_t item,
                        float* base) {
    if (is_one_tile_dq(a)) return attention_backward_one_tile(a, plan, item, base);
    const AttentionShape& shape = a.shape;
    const BackwardFloats f(a, plan, base);
    const bool needs_q = a.dq.data != nullptr, needs_k = a.dk.data != nullptr;
    const bool needs_v = a.dv.data != nullptr, one_tile = a.lse == nullptr;
    const int64_t size = shape.size, columns = in_whole(size, 8);
    const AttentionItem part(shape, plan, item);
    const int64_t image = part.image, head = part.head, first = part.first, rows = part.rows;
    const bool whole = plan.keys >= shape.keys;
    // What the spare rows of a tile multiply is thrown away, but should not be slow, as subnormal
    // numbers are.
    for (int64_t i = plan.keys * kBlock; i < (plan.keys + kSpareRows) * kBlock; ++i) {
        f.p[i] = f.ds[i] = 0.0f;
    }
    if (!one_tile) read_rows(a, image, head, first, rows, f.lse, f.delta, f.room);
    for_blocks(shape.keys, plan.keys, [&](int64_t key, int64_t keys) {
        const HeadPart of_keys{image, head, key, keys};
        const HeadRows<const float> k = read(a.k, of_keys, size, f.room);
        pack_tiles(k, keys, size, f.k_tiles);
        if (needs_q) pack_rows(k, keys, size, columns, f.k_rows, columns);
        pack_tiles(read(a.v, of_keys, size, f.room), keys, size, f.v_tiles);
        for_blocks(rows, kBlock, [&](int64_t row, int64_t count) {
            const int64_t lanes = in_whole(count, kPanel);
            const HeadPart of_rows{image, head, first + row, count};
            const HeadRows<const float> q = read(a.q, of_rows, size, f.room);
            pack_lanes(q, count, size, a.scale * kLog2E, lanes, f.q);
            if (needs_k) pack_rows(q, count, size, columns, f.q_rows, columns);
            const HeadRows<const float> grad = read(a.grad_out, of_rows, size, f.room);
            if (needs_q || needs_k) pack_lanes(grad, count, size, 1.0f, lanes, f.grad);
            if (needs_v) pack_rows(grad, count, size, columns, f.grad_rows, columns);
            product(keys, size, {f.k_tiles, 0, true}, f.q, f.p, lanes, Start::zero);
            if (a.bias.data != nullptr) {
                add_bias(a.bias, {image, head, first + row, count, key, keys, lanes}, f.p, f.bias);
            }
            if (needs_q || needs_k) {
                product(keys, size, {f.v_tiles, 0, true}, f.grad, f.ds, lanes, Start::zero);
            }
            if (one_tile) {
                for (int64_t r = 0; r < kBlock; ++r) {
                    f.lse[r] = -kInfinity;
                    f.sum[r] = 0.0f;
                }
                for (int64_t lane = 0; lane < lanes; lane += 16) {
                    softmax_lanes(f.p + lane, keys, f.lse + lane, f.sum + lane, f.factor + lane);
                }
                invert(f.sum, f.factor);
                for (int64_t lane = 0; lane < lanes; lane += 16) {
                    differentiate_tile_lanes(f.p + lane, f.ds + lane, keys, f.factor + lane);
                }
            } else {
                for (int64_t lane = 0; lane < lanes; lane += 16) {
                    differentiate_lanes(f.p + lane, f.ds + lane, keys, f.lse + row + lane,
                                        f.delta + row + lane, needs_v, needs_q || needs_k);
                }
            }
            const Start start = row == 0 ? Start::zero : Start::sum;
            if (needs_v) product_over_queries(keys, count, f.p, f.grad_rows, f.dv, columns, start);
            if (needs_k) product_over_queries(keys, count, f.ds, f.q_rows, f.dk, columns, start);
            if (!needs_q) return;
            float* dq = f.dq + (whole ? 0 : row * size);
            product(size, keys, {f.k_rows, columns, false}, f.ds, dq, lanes,
                    key == 0 ? Start::zero : Start::sum);
            if (key + keys < shape.keys) return;
            for (int64_t r = 0; r < kBlock; ++r) f.factor[r] = a.scale;
            unpack_lanes(dq, f.factor, count, size, open(a.dq, of_rows, size, f.room));
            close(a.dq, of_rows, size, f.room);
        });
        const auto deliver = [&](const Heads& to, int64_t which, const float* from, float scale) {
            if (to.data == nullptr) return;
            if (plan.parts == 1) {
                unpack_rows(from, keys, size, columns, &scale, 0, open(to, of_keys, size, f.room));
                return close(to, of_keys, size, f.room);
            }
            float* part = plan.partial + ((item * 2 + which) * shape.keys + key) * size;
            unpack_rows(from, keys, size, columns, &scale, 0, HeadRows<float>{part, size});
        };
        deliver(a.dk, 0, f.dk, a.scale);
        deliver(a.dv, 1, f.dv, 1.0f);
    });
}

// dk and dv of one head, from its parts in their order.
void attention_sum(const AttentionBackward& a, const AttentionPlan& plan, int64_t item) {
    const AttentionShape& shape = a.shape;
    const int64_t image = item / shape.heads, head = item % shape.heads;
    const int64_t floats = shape.keys * shape.size;
    for (int64_t which = 0; which < 2; ++which) {
        const Heads& to = which == 0 ? a.dk : a.dv;
        if (to.data == nullptr) continue;
        float* sum = plan.partial + (item * plan.parts * 2 + which) * floats;
        for (int64_t part = 1; part < plan.parts; ++part) {
            const float* other = sum + part * 2 * floats;
            for_lanes(floats, [=](int64_t i, auto lanes) {
                store(sum + i, load(sum + i, lanes) + load(other + i, lanes), lanes, false);
            });
        }
        const float one = 1.0f;
        const HeadPart keys{image, head, 0, shape.keys};
        unpack_rows(sum, shape.keys, shape.size, shape.size, &one, 0,
                    open(to, keys, shape.size, sum));
        close(to, keys, shape.size, sum);
    }
}

}  // namespace
}  // namespace UDP_ISA
}  // namespace udp
