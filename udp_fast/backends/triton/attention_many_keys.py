"""Attention by tiles of keys, for any number of them (Dao 2023, "FlashAttention-2", in three kernels).

Forward a program keeps some rows of queries and goes over the keys, rescaling what it has whenever a
row's maximum rises. Backward each row's P is formed again from the logarithm of its sum: one kernel
keeps queries and goes over keys, for dQ; the other keeps keys and goes over queries, for dK and dV. Each
number is written once, by one program, after sums in a fixed order: there are no atomics.

The backward kernels work with S^T rather than S where keys are kept, so that P^T and dS^T are in
registers as the next product wants them. They start dP at -delta instead of subtracting it.
"""

# ruff: noqa: RET505 - Triton compiles what follows an early return of a constant branch
import triton
import triton.language as tl

from .attention_tiles import (
    LN2,
    LOG2E,
    LOWEST,
    NOTHING,
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
    store_tile,
)
from .floats import exp2, narrow, product, reciprocal, widen
from .rows import turns


@triton.jit
def _weights(s, largest, scale2, EARLY: tl.constexpr):
    if EARLY:
        return exp2(s - largest)
    else:
        # Subtracted before it is scaled, so that the largest score's difference is 0, however large
        # that is.
        return exp2((s - largest) * scale2)


@triton.jit
def attention_forward_kernel(
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
    out,  # *float [B, H, N, D]
    out_batch,
    out_head,
    out_row,
    lse,  # *float32 [B, H, N] or None
    scale2,  # scale * log2 e
    heads,
    queries,
    keys,
    blocks,  # of queries, of a head
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    UNIT: tl.constexpr,
    OFFSET: tl.constexpr,
    EARLY: tl.constexpr,  # scale before the maximum is taken
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    batch, head, block = head_of(heads, blocks)
    q = start_of(q, q_batch, q_head, batch, head, UNIT)
    k = start_of(k, k_batch, k_head, batch, head, UNIT)
    v = start_of(v, v_batch, v_head, batch, head, UNIT)
    out = start_of(out, out_batch, out_head, batch, head, UNIT)
    if bias is not None:
        bias = start_of(bias, bias_batch, bias_head, batch, head, 1)
    first = block * ROWS
    q0 = load_tile(q, first, queries, q_row, ROWS, 0, D0, D, UNIT, OFFSET, False)
    q1 = load_tile(q, first, queries, q_row, ROWS, D0, D1, D, UNIT, OFFSET, False)
    largest = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc0 = tl.zeros([ROWS, D0], tl.float32)
    if D1 > 0:
        acc1 = tl.zeros([ROWS, D1], tl.float32)
    for tail in tl.static_range(2):
        begin, end = turns(keys, tail, KEYS)
        k_at = row_at(k, begin, k_row, UNIT)
        v_at = row_at(v, begin, v_row, UNIT)
        for start in range(begin, end, KEYS):
            k0 = load_rows(k_at, start, keys, k_row, KEYS, 0, D0, D, UNIT, OFFSET, tail == 0)
            k1 = load_rows(k_at, start, keys, k_row, KEYS, D0, D1, D, UNIT, OFFSET, tail == 0)
            s = dot_rows(q0, q1, k0, k1, None)
            if EARLY and bias is None:
                s = product(s, scale2)
            elif EARLY:
                s *= scale2
                s += load_bias(
                    bias, first, queries, bias_row, start, keys, bias_key, ROWS, KEYS, tail == 0
                )
            if tail:
                s = only_columns(s, start, keys)
            new = tl.maximum(largest, tl.max(s, 1))
            p = _weights(s, new[:, None], scale2, EARLY)
            kept = _weights(largest, new, scale2, EARLY)
            largest = new
            total = total * kept + tl.sum(p, 1)
            acc0 *= kept[:, None]
            if D1 > 0:
                acc1 *= kept[:, None]
            v0 = load_rows(v_at, start, keys, v_row, KEYS, 0, D0, D, UNIT, OFFSET, tail == 0)
            v1 = load_rows(v_at, start, keys, v_row, KEYS, D0, D1, D, UNIT, OFFSET, tail == 0)
            p = narrow(p, v0.dtype)
            acc0 = dot(p, v0, acc0)
            if D1 > 0:
                acc1 = dot(p, v1, acc1)
            k_at = row_at(k_at, KEYS, k_row, UNIT)
            v_at = row_at(v_at, KEYS, v_row, UNIT)
    empty = total == 0
    total = tl.where(empty, 1.0, total)
    inverse = reciprocal(total)[:, None]
    out = row_at(out, first, out_row, UNIT)
    row, count = first, queries
    if bias is not None:
        # Counted from the tile's first row, unlike when q was loaded: which rows exist would else be
        # kept in registers all the time, and beside a bias some GPUs have none left.
        row, count = 0, queries - first
    store_rows(out, row, count, out_row, acc0 * inverse, ROWS, 0, D0, D, UNIT, OFFSET, False)
    if D1 > 0:
        acc1 *= inverse
        store_rows(out, row, count, out_row, acc1, ROWS, D0, D1, D, UNIT, OFFSET, False)
    if lse is not None:
        if not EARLY:
            largest *= scale2
        rows = first + tl.arange(0, ROWS)
        place = lse + (batch * heads + head) * queries + rows
        log = tl.where(empty, NOTHING, (largest + tl.log2(total)) * LN2)
        tl.store(place, log, mask=rows < queries)


@triton.jit
def attention_rows_kernel(
    grad_out,  # *float [B, H, N, D]
    grad_out_batch,
    grad_out_head,
    grad_out_row,
    out,  # *float [B, H, N, D]
    out_batch,
    out_head,
    out_row,
    lse,  # *float32 [B, H, N]
    minus_delta,  # *float32 [B, H, N]
    lse2,  # *float32 [B, H, N], in units of log 2; infinity of a row that is masked altogether
    heads,
    queries,
    blocks,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
):
    """What both backward kernels need of each row: -delta_i = -(dO_i . O_i) and lse_i."""
    batch, head, block = head_of(heads, blocks)
    grad_out = start_of(grad_out, grad_out_batch, grad_out_head, batch, head, UNIT)
    out = start_of(out, out_batch, out_head, batch, head, UNIT)
    first = block * ROWS
    g = load_tile(grad_out, first, queries, grad_out_row, ROWS, 0, WIDTH, D, UNIT, OFFSET, False)
    o = load_tile(out, first, queries, out_row, ROWS, 0, WIDTH, D, UNIT, OFFSET, False)
    rows = first + tl.arange(0, ROWS)
    place = (batch * heads + head) * queries + rows
    inside = rows < queries
    tl.store(minus_delta + place, 0.0 - tl.sum(widen(g) * widen(o), 1), mask=inside)
    log = tl.load(lse + place, mask=inside, other=0.0) * LOG2E
    tl.store(lse2 + place, tl.where(log == NOTHING, float("inf"), log), mask=inside)


@triton.jit
def attention_dq_kernel(
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
    minus_delta,  # *float32 [B, H, N]
    lse2,  # *float32 [B, H, N]
    dq,  # *float [B, H, N, D]
    dq_batch,
    dq_head,
    dq_row,
    scale,
    scale2,  # scale * log2 e
    heads,
    queries,
    keys,
    blocks,  # of queries, of a head
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    UNIT: tl.constexpr,
    OFFSET: tl.constexpr,
    EARLY: tl.constexpr,  # scale before masking
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    batch, head, block = head_of(heads, blocks)
    grad_out = start_of(grad_out, grad_out_batch, grad_out_head, batch, head, UNIT)
    q = start_of(q, q_batch, q_head, batch, head, UNIT)
    k = start_of(k, k_batch, k_head, batch, head, UNIT)
    v = start_of(v, v_batch, v_head, batch, head, UNIT)
    dq = start_of(dq, dq_batch, dq_head, batch, head, UNIT)
    if bias is not None:
        bias = start_of(bias, bias_batch, bias_head, batch, head, 1)
    first = block * ROWS
    q0 = load_tile(q, first, queries, q_row, ROWS, 0, D0, D, UNIT, OFFSET, False)
    q1 = load_tile(q, first, queries, q_row, ROWS, D0, D1, D, UNIT, OFFSET, False)
    g0 = load_tile(grad_out, first, queries, grad_out_row, ROWS, 0, D0, D, UNIT, OFFSET, False)
    g1 = load_tile(grad_out, first, queries, grad_out_row, ROWS, D0, D1, D, UNIT, OFFSET, False)
    rows = first + tl.arange(0, ROWS)
    place = (batch * heads + head) * queries + rows
    log = tl.load(lse2 + place, mask=rows < queries, other=0.0)
    delta = tl.load(minus_delta + place, mask=rows < queries, other=0.0)
    acc0 = tl.zeros([ROWS, D0], tl.float32)
    if D1 > 0:
        acc1 = tl.zeros([ROWS, D1], tl.float32)
    for tail in tl.static_range(2):
        begin, end = turns(keys, tail, KEYS)
        k_at = row_at(k, begin, k_row, UNIT)
        v_at = row_at(v, begin, v_row, UNIT)
        for start in range(begin, end, KEYS):
            k0 = load_rows(k_at, start, keys, k_row, KEYS, 0, D0, D, UNIT, OFFSET, tail == 0)
            k1 = load_rows(k_at, start, keys, k_row, KEYS, D0, D1, D, UNIT, OFFSET, tail == 0)
            v0 = load_rows(v_at, start, keys, v_row, KEYS, 0, D0, D, UNIT, OFFSET, tail == 0)
            v1 = load_rows(v_at, start, keys, v_row, KEYS, D0, D1, D, UNIT, OFFSET, tail == 0)
            s = dot_rows(q0, q1, k0, k1, None)
            if EARLY:
                s *= scale2
                if bias is not None:
                    s += load_bias(
                        bias, first, queries, bias_row, start, keys, bias_key, ROWS, KEYS, tail == 0
                    )
            if tail:
                s = only_columns(s, start, keys)
            p = exp2(s - log[:, None]) if EARLY else exp2(s * scale2 - log[:, None])
            dp = dot_rows(g0, g1, v0, v1, tl.broadcast_to(delta[:, None], [ROWS, KEYS]))
            ds = narrow(p * dp, k0.dtype)
            acc0 = dot(ds, k0, acc0)
            if D1 > 0:
                acc1 = dot(ds, k1, acc1)
            k_at = row_at(k_at, KEYS, k_row, UNIT)
            v_at = row_at(v_at, KEYS, v_row, UNIT)
    store_tile(dq, first, queries, dq_row, acc0 * scale, ROWS, 0, D0, D, UNIT, OFFSET, False)
    if D1 > 0:
        acc1 *= scale
        store_tile(dq, first, queries, dq_row, acc1, ROWS, D0, D1, D, UNIT, OFFSET, False)


@triton.jit
def attention_dkdv_kernel(
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
    minus_delta,  # *float32 [B, H, N]
    lse2,  # *float32 [B, H, N]
    dk,  # *float [B, H, M, D] or None
    dk_batch,
    dk_head,
    dk_row,
    dv,  # *float [B, H, M, D] or None
    dv_batch,
    dv_head,
    dv_row,
    scale,
    scale2,  # scale * log2 e
    heads,
    queries,
    keys,
    blocks,  # of keys, of a head
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    UNIT: tl.constexpr,
    OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    batch, head, block = head_of(heads, blocks)
    grad_out = start_of(grad_out, grad_out_batch, grad_out_head, batch, head, UNIT)
    q = start_of(q, q_batch, q_head, batch, head, UNIT)
    k = start_of(k, k_batch, k_head, batch, head, UNIT)
    v = start_of(v, v_batch, v_head, batch, head, UNIT)
    if bias is not None:
        bias = start_of(bias, bias_batch, bias_head, batch, head, 1)
    lse2 += (batch * heads + head) * queries
    minus_delta += (batch * heads + head) * queries
    first = block * KEYS
    k0 = load_tile(k, first, keys, k_row, KEYS, 0, D0, D, UNIT, OFFSET, False)
    k1 = load_tile(k, first, keys, k_row, KEYS, D0, D1, D, UNIT, OFFSET, False)
    if dk is not None:
        v0 = load_tile(v, first, keys, v_row, KEYS, 0, D0, D, UNIT, OFFSET, False)
        v1 = load_tile(v, first, keys, v_row, KEYS, D0, D1, D, UNIT, OFFSET, False)
    dk0 = tl.zeros([KEYS, D0], tl.float32)
    if D1 > 0:
        dk1 = tl.zeros([KEYS, D1], tl.float32)
    dv0 = tl.zeros([KEYS, D0], tl.float32)
    if D1 > 0:
        dv1 = tl.zeros([KEYS, D1], tl.float32)
    for tail in tl.static_range(2):
        begin, end = turns(queries, tail, ROWS)
        q_at = row_at(q, begin, q_row, UNIT)
        grad_out_at = row_at(grad_out, begin, grad_out_row, UNIT)
        for start in range(begin, end, ROWS):
            q0 = load_rows(q_at, start, queries, q_row, ROWS, 0, D0, D, UNIT, OFFSET, tail == 0)
            q1 = load_rows(q_at, start, queries, q_row, ROWS, D0, D1, D, UNIT, OFFSET, tail == 0)
            g0 = load_rows(
                grad_out_at, start, queries, grad_out_row, ROWS, 0, D0, D, UNIT, OFFSET, tail == 0
            )
            g1 = load_rows(
                grad_out_at, start, queries, grad_out_row, ROWS, D0, D1, D, UNIT, OFFSET, tail == 0
            )
            rows = start + tl.arange(0, ROWS)
            if tail:
                # Rows that do not exist have P = 0.
                log = tl.load(lse2 + rows, mask=rows < queries, other=float("inf"))
                delta = tl.load(minus_delta + rows, mask=rows < queries, other=0.0)
            else:
                log = tl.load(lse2 + rows)
                delta = tl.load(minus_delta + rows)
            s = dot_rows(k0, k1, q0, q1, None)
            if bias is not None:
                s = s * scale2 + load_bias(
                    bias, first, keys, bias_key, start, queries, bias_row, KEYS, ROWS, tail == 0
                )
                p = exp2(s - log[None, :])
            else:
                p = exp2(s * scale2 - log[None, :])
            if dv is not None:
                p16 = narrow(p, g0.dtype)
                dv0 = dot(p16, g0, dv0)
                if D1 > 0:
                    dv1 = dot(p16, g1, dv1)
            if dk is not None:
                dp = dot_rows(v0, v1, g0, g1, tl.broadcast_to(delta[None, :], [KEYS, ROWS]))
                ds = narrow(p * dp, q0.dtype)
                dk0 = dot(ds, q0, dk0)
                if D1 > 0:
                    dk1 = dot(ds, q1, dk1)
            q_at = row_at(q_at, ROWS, q_row, UNIT)
            grad_out_at = row_at(grad_out_at, ROWS, grad_out_row, UNIT)
    if dk is not None:
        dk = start_of(dk, dk_batch, dk_head, batch, head, UNIT)
        store_tile(dk, first, keys, dk_row, dk0 * scale, KEYS, 0, D0, D, UNIT, OFFSET, False)
        if D1 > 0:
            dk1 *= scale
            store_tile(dk, first, keys, dk_row, dk1, KEYS, D0, D1, D, UNIT, OFFSET, False)
    if dv is not None:
        dv = start_of(dv, dv_batch, dv_head, batch, head, UNIT)
        store_tile(dv, first, keys, dv_row, dv0, KEYS, 0, D0, D, UNIT, OFFSET, False)
        if D1 > 0:
            store_tile(dv, first, keys, dv_row, dv1, KEYS, D0, D1, D, UNIT, OFFSET, False)
