// How attention is cut into items of work, and the memory that they work in.
#include "attention_launch.h"

#include <algorithm>

#include "isa.h"
#include "parallel.h"
#include "workspace.h"

namespace udp {
namespace {

int64_t pieces(int64_t n, int64_t size) {
    return (n + size - 1) / size;
}

int64_t at_once(int64_t items, int threads) {
    return std::min<int64_t>(items, std::max(threads, 1));
}

// body(item, memory), with so many floats of `memory` as each item needs, for so many `at_once`.
template <class Body>
void for_items(int64_t items, int64_t floats, float* memory, int threads, const Body& body) {
    Slots slots(memory, floats, at_once(items, threads));
    parallel_for(items, 1, threads,
                 [&](int64_t item) { slots.with_one([&](float* slot) { body(item, slot); }); });
}

// Keys at a time: what is made of them and their scores should stay in the second cache. Backward
// that matters less than to go over the queries, and over dq, a few times only. Blocks are nearly
// equal, in whole tiles of the widest registers.
int64_t key_block(const AttentionShape& s, bool backward) {
    int64_t most = s.size <= 48 ? 256 : s.size <= 96 ? 128 : s.size <= 192 ? 112 : 64;
    if (backward) most = s.size > 48 && s.size <= 192 ? 512 : 256;
    const int64_t blocks = std::max<int64_t>(1, (s.keys + most / 2) / most);
    return blocks == 1 ? s.keys : pieces(pieces(s.keys, blocks), 14) * 14;
}

// As many threads as there is work for: to wake one takes as long as some 10^6 operations.
int threads_for(const AttentionShape& s, int64_t products, int threads) {
    const int64_t each = s.images * s.heads * s.queries;
    const int64_t operations = each * s.keys * s.size * 2 * products;
    return static_cast<int>(std::min<int64_t>(std::max(threads, 1), 1 + operations / 1000000));
}

// Queries of an item: many, so that bringing keys into order costs little, but as long as there are
// enough items for all threads and the rows' sums stay in the second cache.
int64_t row_block(const AttentionShape& s, int threads) {
    int64_t rows =
        std::max<int64_t>(kBlock, std::min<int64_t>(512, 65536 / s.size) / kBlock * kBlock);
    rows = std::min(rows, pieces(s.queries, kBlock) * kBlock);
    while (rows > kBlock && s.images * s.heads * pieces(s.queries, rows) < 4 * threads) {
        rows = pieces(rows / 2, kBlock) * kBlock;
    }
    return rows;
}

// Items of a head where its keys' gradients are summed over queries. One is best, unless there are
// few heads, and then two from 256 queries on and more from 2048; each costs as much memory as dk
// and dv. A power of two is shared evenly by most processors.
int64_t parts_of(const AttentionShape& s) {
    const int64_t by_heads = pieces(8, s.heads);
    const int64_t by_rows = std::max(s.queries / 512, std::min<int64_t>(2, s.queries / 128));
    const int64_t by_memory = (int64_t{64} << 20) / (s.heads * s.keys * s.size * 8);
    const int64_t most = std::min({by_heads, by_rows, by_memory});
    int64_t parts = 1;
    while (2 * parts <= most) parts *= 2;
    return parts;
}

}  // namespace

void attention(const Attention& a, int threads) {
    const Kernels& k = kernels();
    threads = threads_for(a.shape, 2, threads);
    const AttentionPlan plan{row_block(a.shape, threads), key_block(a.shape, false), 1, nullptr};
    const int64_t items = a.shape.images * a.shape.heads * plan.items(a.shape);
    const int64_t floats = k.attention_floats(a, plan);
    const Block memory(static_cast<size_t>(floats * at_once(items, threads)));
    for_items(items, floats, memory.data(), threads,
              [&](int64_t item, float* own) { k.attention(a, plan, item, own); });
}

void attention_backward(const AttentionBackward& a, int threads) {
    const Kernels& k = kernels();
    const AttentionShape& s = a.shape;
    threads = threads_for(s, 3, threads);
    AttentionPlan plan{row_block(s, threads), a.lse == nullptr ? s.keys : key_block(s, true), 1,
                       nullptr};
    if (a.dk.data != nullptr || a.dv.data != nullptr) {
        plan.parts = parts_of(s);
        plan.rows = pieces(pieces(s.queries, plan.parts), kBlock) * kBlock;
        plan.parts = plan.items(s);
    }
    const int64_t heads = s.images * s.heads, items = heads * plan.items(s);
    const int64_t floats = k.attention_backward_floats(a, plan);
    // In whole cache lines, for what comes after.
    const int64_t shared =
        plan.parts > 1 ? pieces(heads * plan.parts * 2 * s.keys * s.size, 16) * 16 : 0;
    const Block memory(static_cast<size_t>(shared + floats * at_once(items, threads)));
    plan.partial = memory.data();
    for_items(items, floats, memory.data() + shared, threads,
              [&](int64_t item, float* own) { k.attention_backward(a, plan, item, own); });
    if (plan.parts > 1) {
        parallel_for(heads, 1, threads, [&](int64_t item) { k.attention_sum(a, plan, item); });
    }
}

}  // namespace udp
