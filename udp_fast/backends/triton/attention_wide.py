"""Attention with wide heads, as in the middle of a VAE: 512 numbers, which no multiprocessor can keep.

The head dim is walked through in chunks where it is summed over, and cut into pieces, each a program's,
where it is a result's. A program therefore forms the scores of all chunks again for its piece: with two
pieces of 256, half as many products again as would be needed, and no number twice in memory.

Forward and backward as in `attention_many_keys`. The three gradients are one kernel, since each keeps
rows of two operands and walks over rows of the two others:

    gradient  keeps   walks over   adds up
    dQ        Q, dO   K, V         dS K
    dK        K, V    Q, dO        dS^T Q
    dV        K, V    Q, dO        P^T dO
"""

# ruff: noqa: RET505 - Triton compiles what follows an early return of a constant branch
import triton
import triton.language as tl

from .attention_tiles import (
    LN2,
    LOWEST,
    NOTHING,
    dot,
    load_bias,
    load_tile,
    only_columns,
    start_of,
    store_tile,
)
from .floats import exp2, narrow, reciprocal

DQ = tl.constexpr(0)
DK = tl.constexpr(1)
DV = tl.constexpr(2)


@triton.jit
def _piece_of(heads, blocks, PIECES: tl.constexpr):
    """(batch, head, block, piece) of this program; the pieces of a block follow each other."""
    program = tl.program_id(0)
    row = program // (blocks * PIECES)
    batch = row // heads
    place = program - row * (blocks * PIECES)
    head = (row - batch * heads).to(tl.int64)
    return batch.to(tl.int64), head, place // PIECES, place % PIECES


@triton.jit
def _dot_chunks(
    a, a_first, a_count, a_row, b, b_first, b_count, b_row, start,
    D: tl.constexpr, UNIT: tl.constexpr, OFFSET: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """start + a @ b^T over the head dim, whose chunks come from memory."""
    END: tl.constexpr = D if D % CHUNK == 0 else D - D % CHUNK
    for column in range(0, END, CHUNK):
        left = load_tile(
            a + column, a_first, a_count, a_row, A, 0, CHUNK, CHUNK, UNIT, OFFSET, False
        )
        right = load_tile(
            b + column, b_first, b_count, b_row, B, 0, CHUNK, CHUNK, UNIT, OFFSET, False
        )
        start = dot(left, tl.trans(right), start)
    if END < D:
        left = load_tile(a, a_first, a_count, a_row, A, END, CHUNK, D, UNIT, OFFSET, False)
        right = load_tile(b, b_first, b_count, b_row, B, END, CHUNK, D, UNIT, OFFSET, False)
        start = dot(left, tl.trans(right), start)
    return start


@triton.jit
def places_in_piece(
    base, piece, first, count, row, ROWS: tl.constexpr, PIECE: tl.constexpr, D: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """(addresses, which of them exist) of a piece that the head dim may not fill."""
    columns = piece * PIECE + tl.arange(0, PIECE)
    rows = first + tl.arange(0, ROWS)
    places = rows.to(tl.int64)[:, None] * (tl.cast(row, tl.int64) * UNIT) + columns[None, :]
    return base + places, (rows < count)[:, None] & (columns < D)[None, :]


@triton.jit
def _load_piece(
    base, piece, first, count, row, ROWS: tl.constexpr, PIECE: tl.constexpr, D: tl.constexpr,
    UNIT: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    if D % PIECE == 0:
        base += piece * PIECE
        return load_tile(base, first, count, row, ROWS, 0, PIECE, PIECE, UNIT, OFFSET, False)
    else:
        places, inside = places_in_piece(base, piece, first, count, row, ROWS, PIECE, D, UNIT)
        return tl.load(places, mask=inside, other=0.0)


@triton.jit
def _store_piece(
    base, piece, first, count, row, value, ROWS: tl.constexpr, PIECE: tl.constexpr,
    D: tl.constexpr, UNIT: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    if D % PIECE == 0:
        base += piece * PIECE
        store_tile(base, first, count, row, value, ROWS, 0, PIECE, PIECE, UNIT, OFFSET, False)
    else:
        places, inside = places_in_piece(base, piece, first, count, row, ROWS, PIECE, D, UNIT)
        tl.store(places, narrow(value, base.dtype.element_ty), mask=inside)


@triton.jit
def attention_wide_forward_kernel(
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
    UNIT: tl.constexpr,
    OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    CHUNK: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,
):
    batch, head, block, piece = _piece_of(heads, blocks, PIECES)
    q = start_of(q, q_batch, q_head, batch, head, UNIT)
    k = start_of(k, k_batch, k_head, batch, head, UNIT)
    v = start_of(v, v_batch, v_head, batch, head, UNIT)
    out = start_of(out, out_batch, out_head, batch, head, UNIT)
    if bias is not None:
        bias = start_of(bias, bias_batch, bias_head, batch, head, 1)
    first = block * ROWS
    largest = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, PIECE], tl.float32)
    for start in range(0, keys, KEYS):
        s = _dot_chunks(
            q, first, queries, q_row, k, start, keys, k_row, tl.zeros([ROWS, KEYS], tl.float32),
            D, UNIT, OFFSET, ROWS, KEYS, CHUNK,
        )  # fmt: skip
        s *= scale2
        if bias is not None:
            s += load_bias(bias, first, queries, bias_row, start, keys, bias_key, ROWS, KEYS, False)
        s = only_columns(s, start, keys)
        new = tl.maximum(largest, tl.max(s, 1))
        p = exp2(s - new[:, None])
        kept = exp2(largest - new)
        largest = new
        total = total * kept + tl.sum(p, 1)
        acc *= kept[:, None]
        values = _load_piece(v, piece, start, keys, v_row, KEYS, PIECE, D, UNIT, OFFSET)
        acc = dot(narrow(p, values.dtype), values, acc)
    empty = total == 0
    total = tl.where(empty, 1.0, total)
    acc *= reciprocal(total)[:, None]
    _store_piece(out, piece, first, queries, out_row, acc, ROWS, PIECE, D, UNIT, OFFSET)
    if lse is not None:  # noqa: SIM102 - decided when compiling, the next when running
        if piece == 0:
            rows = first + tl.arange(0, ROWS)
            place = lse + (batch * heads + head) * queries + rows
            log = tl.where(empty, NOTHING, (largest + tl.log2(total)) * LN2)
            tl.store(place, log, mask=rows < queries)


@triton.jit
def attention_wide_gradient_kernel(
    a,  # *float [B, H, N, D], kept: Q or K
    a_batch,
    a_head,
    a_row,
    b,  # *float [B, H, N, D], kept: dO or V; None for dV
    b_batch,
    b_head,
    b_row,
    x,  # *float [B, H, M, D], walked over: K or Q
    x_batch,
    x_head,
    x_row,
    y,  # *float [B, H, M, D], walked over: V or dO
    y_batch,
    y_head,
    y_row,
    bias,  # *float [B, H, N, M], or its transpose, or None
    bias_batch,
    bias_head,
    bias_kept,
    bias_walked,
    minus_delta,  # *float32 [B, H, queries]
    lse2,  # *float32 [B, H, queries]
    grad,  # *float [B, H, N, D]
    grad_batch,
    grad_head,
    grad_row,
    scale,
    scale2,  # scale * log2 e
    heads,
    kept,  # rows of a head
    walked,
    blocks,  # of rows kept, of a head
    WHICH: tl.constexpr,
    D: tl.constexpr,
    UNIT: tl.constexpr,
    OFFSET: tl.constexpr,
    KEPT: tl.constexpr,  # rows of a program
    WALKED: tl.constexpr,  # rows of a tile
    CHUNK: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,
):
    batch, head, block, piece = _piece_of(heads, blocks, PIECES)
    a = start_of(a, a_batch, a_head, batch, head, UNIT)
    x = start_of(x, x_batch, x_head, batch, head, UNIT)
    y = start_of(y, y_batch, y_head, batch, head, UNIT)
    grad = start_of(grad, grad_batch, grad_head, batch, head, UNIT)
    if WHICH != DV:
        b = start_of(b, b_batch, b_head, batch, head, UNIT)
    if bias is not None:
        bias = start_of(bias, bias_batch, bias_head, batch, head, 1)
    queries = kept if WHICH == DQ else walked
    lse2 += (batch * heads + head) * queries
    minus_delta += (batch * heads + head) * queries
    first = block * KEPT
    if WHICH == DQ:
        rows = first + tl.arange(0, KEPT)
        log = tl.load(lse2 + rows, mask=rows < kept, other=float("inf"))[:, None]
        delta = tl.load(minus_delta + rows, mask=rows < kept, other=0.0)[:, None]
    acc = tl.zeros([KEPT, PIECE], tl.float32)
    for start in range(0, walked, WALKED):
        if WHICH != DQ:
            rows = start + tl.arange(0, WALKED)
            log = tl.load(lse2 + rows, mask=rows < walked, other=float("inf"))[None, :]
            delta = tl.load(minus_delta + rows, mask=rows < walked, other=0.0)[None, :]
        s = _dot_chunks(
            a, first, kept, a_row, x, start, walked, x_row, tl.zeros([KEPT, WALKED], tl.float32),
            D, UNIT, OFFSET, KEPT, WALKED, CHUNK,
        )  # fmt: skip
        s *= scale2
        if bias is not None:
            s += load_bias(
                bias, first, kept, bias_kept, start, walked, bias_walked, KEPT, WALKED, False
            )
        if WHICH == DQ:
            s = only_columns(s, start, walked)
        p = exp2(s - log)
        if WHICH == DV:
            part = _load_piece(y, piece, start, walked, y_row, WALKED, PIECE, D, UNIT, OFFSET)
        else:
            part = _load_piece(x, piece, start, walked, x_row, WALKED, PIECE, D, UNIT, OFFSET)
            p *= _dot_chunks(
                b, first, kept, b_row, y, start, walked, y_row,
                tl.broadcast_to(delta, [KEPT, WALKED]),
                D, UNIT, OFFSET, KEPT, WALKED, CHUNK,
            )  # fmt: skip
        acc = dot(narrow(p, part.dtype), part, acc)
    if WHICH != DV:
        acc *= scale
    _store_piece(grad, piece, first, kept, grad_row, acc, KEPT, PIECE, D, UNIT, OFFSET)
