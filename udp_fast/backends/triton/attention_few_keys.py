"""Attention where all keys of a head fit into one tile: at most 128, as of a text.

A program keeps the keys and values and goes over queries. 77 keys are a tile of 64 and one of 16.
A row's softmax needs no other tile, so the gradient of the queries needs nothing that a forward pass
would have kept: the row is computed again, and

    dP_ij = dO_i . V_j      delta_i = sum_j P_ij dP_ij      dQ_i = scale sum_j P_ij (dP_ij - delta_i) K_j
"""

# ruff: noqa: RET505 - Triton compiles what follows an early return of a constant branch
import triton
import triton.language as tl

from .attention_tiles import (
    LOWEST,
    dot,
    dot_rows,
    head_of,
    load_bias,
    load_rows,
    load_tile,
    only_columns,
    row_at,
    start_of,
    store_rows,
)
from .floats import INTERPRET, exp2, narrow, product, reciprocal
from .rows import turns


@triton.jit
def _halves(a):
    """[R, 2 C] as two [R, C]. No thread gives a number away: each has some of every 8 columns."""
    pairs = tl.reshape(a, [a.shape[0], 2, a.shape[1] // 2])
    return tl.split(tl.permute(pairs, (0, 2, 1)))


@triton.jit
def _sum_onto(a, total):
    """total [R, C] and the columns of a [R, n C], added up."""
    if a.shape[1] == total.shape[1]:
        return total + a
    else:
        low, high = _halves(a)
        return _sum_onto(low, _sum_onto(high, total))


@triton.jit
def _dot_onto(a, b, total):
    """total [R, C] and the columns of a * b [R, n C], added up by fused multiply-adds."""
    if a.shape[1] == total.shape[1]:
        return a * b + total
    else:
        a_low, a_high = _halves(a)
        b_low, b_high = _halves(b)
        return _dot_onto(a_low, b_low, _dot_onto(a_high, b_high, total))


@triton.jit
def _max_onto(a, largest):
    if a.shape[1] == largest.shape[1]:
        return tl.maximum(largest, a)
    else:
        low, high = _halves(a)
        return _max_onto(low, _max_onto(high, largest))


@triton.jit
def _scores(
    q0,
    q1,
    k0,
    k1,
    scale2,
    bias,
    first_query,
    queries,
    bias_row,
    first_key,
    keys,
    bias_key,
    EARLY: tl.constexpr,
    MASKED: tl.constexpr,
):
    """[R, KEYS] scores: in units of log 2 if EARLY, otherwise before the scale."""
    s = dot_rows(q0, q1, k0, k1, None)
    if EARLY and bias is None:
        s = product(s, scale2)
    elif EARLY:
        s *= scale2
    if bias is not None:
        s += load_bias(
            bias,
            first_query,
            queries,
            bias_row,
            first_key,
            keys,
            bias_key,
            s.shape[0],
            s.shape[1],
            not MASKED,
        )
    if MASKED:
        s = only_columns(s, first_key, keys)
    return s


@triton.jit
def _product_above(a, b):
    """a * b, rounded up; the interpreter rounds it, and every product that is compared, to nearest."""
    if INTERPRET:
        return a * b
    else:
        return tl.inline_asm_elementwise(
            "mul.rp.f32 $0, $1, $2;", "=f,f,f", [a, b], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def _shift(largest, scale2, EARLY: tl.constexpr):
    """What a row's scores are lessened by, in units of log 2: no less than the largest of them.

    `_weights` does so without rounding products. Of scores of 2^32 the largest would else be as much as
    256 more than its own rounded product, and its weight infinite. What is too much cancels.
    """
    largest = tl.maximum(largest, LOWEST)  # of a row of nothing but minus infinity
    if EARLY:
        return largest
    else:
        return _product_above(largest, scale2)


@triton.jit
def _weights(s, shift, scale2, EARLY: tl.constexpr):
    if EARLY:
        return exp2(s - shift[:, None])
    else:
        return exp2(s * scale2 - shift[:, None])


@triton.jit
def _dq_of_part(ds0, ds1, k0, k1, factor, SMALL: tl.constexpr):
    dq = dot(ds0, k0, None)
    if ds1 is not None:
        dq = dot(ds1, k1, dq)
    if SMALL:
        dq *= factor[:, None]
    return dq


@triton.jit
def _dq_of_tile(
    grad_out_at, grad_out_row, q_at, q_row, k00, k01, k10, k11, n01, n11, v00, v01, v10, v11,
    bias, bias_row, bias_key, dq_at, dq_row, scale, scale2, first, queries, keys,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, N1: tl.constexpr, UNIT: tl.constexpr,
    OFFSET: tl.constexpr, EARLY: tl.constexpr, ROWS: tl.constexpr, KEYS0: tl.constexpr,
    MASKED: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    SMALL: tl.constexpr = k00.dtype == tl.float16
    q0 = load_rows(q_at, first, queries, q_row, ROWS, 0, D0, D, UNIT, OFFSET, WHOLE)
    q1 = load_rows(q_at, first, queries, q_row, ROWS, D0, D1, D, UNIT, OFFSET, WHOLE)
    g0 = load_rows(grad_out_at, first, queries, grad_out_row, ROWS, 0, D0, D, UNIT, OFFSET, WHOLE)
    g1 = load_rows(grad_out_at, first, queries, grad_out_row, ROWS, D0, D1, D, UNIT, OFFSET, WHOLE)
    s0 = _scores(
        q0, q1, k00, k01, scale2, bias, first, queries, bias_row, 0, keys, bias_key,
        EARLY, MASKED and k10 is None,
    )  # fmt: skip
    if k10 is None:
        largest = tl.max(s0, 1)
    else:
        s1 = _scores(
            q0, q1, k10, k11, scale2, bias, first, queries, bias_row, KEYS0, keys, bias_key,
            EARLY, MASKED,
        )  # fmt: skip
        largest = tl.max(_max_onto(s0, s1), 1)
    shift = _shift(largest, scale2, EARLY)
    e0 = _weights(s0, shift, scale2, EARLY)
    dp0 = dot_rows(g0, g1, v00, v01, None)
    if k10 is None:
        total = tl.sum(e0, 1)
        delta = tl.sum(e0 * dp0, 1)
    else:
        e1 = _weights(s1, shift, scale2, EARLY)
        dp1 = dot_rows(g0, g1, v10, v11, None)
        total = tl.sum(_sum_onto(e0, e1), 1)
        delta = tl.sum(_dot_onto(e0, dp0, e1 * dp1), 1)
    # Of nothing but zeros, as of a row that is masked; those have no gradient. In one instruction.
    total = tl.maximum(total, 5.421010862427522e-20)
    inverse = reciprocal(total)
    delta *= inverse
    inverse *= scale
    # dS in full, scale and all, spares a pass over dQ; but of numbers so small float16 keeps too little.
    if SMALL:
        ds0 = narrow(e0 * (dp0 - delta[:, None]), k00.dtype)
    else:
        delta *= inverse
        ds0 = narrow(e0 * (dp0 * inverse[:, None] - delta[:, None]), k00.dtype)
    if k10 is None:
        ds1 = None
    elif SMALL:
        ds1 = narrow(e1 * (dp1 - delta[:, None]), k00.dtype)
    else:
        ds1 = narrow(e1 * (dp1 * inverse[:, None] - delta[:, None]), k00.dtype)
    # One part is written before the next is computed: that spares registers.
    dq0 = _dq_of_part(ds0, ds1, k00, k10, inverse, SMALL)
    store_rows(dq_at, first, queries, dq_row, dq0, ROWS, 0, D0, D, UNIT, OFFSET, WHOLE)
    if D1 > 0:
        dq1 = _dq_of_part(ds0, ds1, n01, n11, inverse, SMALL)
        store_rows(dq_at, first, queries, dq_row, dq1, ROWS, D0, N1, D, UNIT, OFFSET, WHOLE)


@triton.jit
def attention_few_keys_dq_kernel(
    grad_out,  # *float [B, H, N, D]
    grad_out_batch,
    grad_out_head,
    grad_out_row,
    q,  # *float [B, H, N, D]
    q_batch,
    q_head,
    q_row,
    k,  # *float [B, H, M, D]
    k_batch,
    k_head,
    k_row,
    v,  # *float [B, H, M, D]
    v_batch,
    v_head,
    v_row,
    bias,  # *float [B, H, N, M] or None
    bias_batch,
    bias_head,
    bias_row,
    bias_key,
    dq,  # *float [B, H, N, D]
    dq_batch,
    dq_head,
    dq_row,
    scale,
    scale2,  # scale * log2 e
    heads,
    queries,
    keys,
    blocks,  # programs of a head
    tiles,  # of queries, of a program
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    UNIT: tl.constexpr,
    OFFSET: tl.constexpr,
    N1: tl.constexpr,  # columns of the second part that are written: 8 where the product needs 16
    EARLY: tl.constexpr,  # scale before the maximum is taken
    ROWS: tl.constexpr,
    KEYS0: tl.constexpr,
    KEYS1: tl.constexpr,
    MASKED: tl.constexpr,  # the last tile of keys is not full
):
    batch, head, block = head_of(heads, blocks)
    grad_out = start_of(grad_out, grad_out_batch, grad_out_head, batch, head, UNIT)
    q = start_of(q, q_batch, q_head, batch, head, UNIT)
    k = start_of(k, k_batch, k_head, batch, head, UNIT)
    v = start_of(v, v_batch, v_head, batch, head, UNIT)
    dq = start_of(dq, dq_batch, dq_head, batch, head, UNIT)
    if bias is not None:
        bias = start_of(bias, bias_batch, bias_head, batch, head, 1)
    k00 = load_tile(k, 0, keys, k_row, KEYS0, 0, D0, D, UNIT, OFFSET, False)
    k01 = load_tile(k, 0, keys, k_row, KEYS0, D0, D1, D, UNIT, OFFSET, False)
    k10 = load_tile(k, KEYS0, keys, k_row, KEYS1, 0, D0, D, UNIT, OFFSET, False)
    k11 = load_tile(k, KEYS0, keys, k_row, KEYS1, D0, D1, D, UNIT, OFFSET, False)
    v00 = load_tile(v, 0, keys, v_row, KEYS0, 0, D0, D, UNIT, OFFSET, False)
    v01 = load_tile(v, 0, keys, v_row, KEYS0, D0, D1, D, UNIT, OFFSET, False)
    v10 = load_tile(v, KEYS0, keys, v_row, KEYS1, 0, D0, D, UNIT, OFFSET, False)
    v11 = load_tile(v, KEYS0, keys, v_row, KEYS1, D0, D1, D, UNIT, OFFSET, False)
    # Where K is what a product adds up, its columns are a number of 8, not of 16.
    n01 = load_tile(k, 0, keys, k_row, KEYS0, D0, N1, D, UNIT, OFFSET, False)
    n11 = load_tile(k, KEYS0, keys, k_row, KEYS1, D0, N1, D, UNIT, OFFSET, False)
    begin = block * tiles * ROWS
    size = tl.minimum(tiles * ROWS, queries - begin)
    for tail in tl.static_range(2):
        first, last = turns(size, tail, ROWS)
        q_at = row_at(q, begin + first, q_row, UNIT)
        grad_out_at = row_at(grad_out, begin + first, grad_out_row, UNIT)
        dq_at = row_at(dq, begin + first, dq_row, UNIT)
        for start in range(begin + first, begin + last, ROWS):
            _dq_of_tile(
                grad_out_at, grad_out_row, q_at, q_row, k00, k01, k10, k11, n01, n11, v00, v01, v10, v11,
                bias, bias_row, bias_key, dq_at, dq_row, scale, scale2, start, queries, keys,
                D, D0, D1, N1, UNIT, OFFSET, EARLY, ROWS, KEYS0, MASKED, tail == 0,
            )  # fmt: skip
            q_at = row_at(q_at, ROWS, q_row, UNIT)
            grad_out_at = row_at(grad_out_at, ROWS, grad_out_row, UNIT)
            dq_at = row_at(dq_at, ROWS, dq_row, UNIT)
