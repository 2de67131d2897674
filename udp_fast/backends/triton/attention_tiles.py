"""What the attention kernels are put together from: tiles of rows, and their products.

A head dim is one or two parts, powers of two as Triton wants them: 40 is 32 + 8, 80 is 64 + 16. What
lies beyond the end of a row or of a head is zero. Kernels run over queries and keys alike as "rows".
"""

# ruff: noqa: RET505 - Triton compiles what follows an early return of a constant branch
import triton
import triton.language as tl

from .. import bias as biases
from .floats import INTERPRET, narrow, widen

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NOTHING = tl.constexpr(float("-inf"))
#: Where a row's maximum begins: of scores that are all minus infinity it can still be subtracted.
LOWEST = tl.constexpr(-3.40282346638528859811704183484516925e38)
MOST_BIAS = tl.constexpr(biases.MOST_BIAS)


@triton.jit
def dot(a, b, start):
    """start + a @ b with float32 sums; ``start`` may be None, for zero.

    float32 operands are multiplied in float32, without tensor cores, which would shorten them. Triton's
    interpreter multiplies bfloat16 wrongly: there, and only here, operands are widened first, which
    changes nothing, since products of 16-bit floats are exact.
    """
    if INTERPRET:
        a, b = widen(a), widen(b)
    return tl.dot(a, b, start, input_precision="ieee")


@triton.jit
def dot_rows(a0, a1, b0, b1, start):
    """start + a @ b^T over the head dim; a1 and b1 are None where it is in one part."""
    if a1 is not None:
        start = dot(a1, tl.trans(b1), start)
    return dot(a0, tl.trans(b0), start)


@triton.jit
def head_of(heads, blocks):
    """(batch, head, block) of this program; blocks of a head follow each other."""
    program = tl.program_id(0)
    row = program // blocks
    batch = row // heads
    return batch.to(tl.int64), (row - batch * heads).to(tl.int64), program - row * blocks


@triton.jit
def start_of(base, batch_stride, head_stride, batch, head, UNIT: tl.constexpr):
    """Where a head begins."""
    return base + batch * batch_stride * UNIT + head * head_stride * UNIT


@triton.jit
def row_at(base, row, stride, UNIT: tl.constexpr):
    """Where a row begins. Loops carry it from tile to tile, which spares them products in 64 bits."""
    return base + tl.cast(row, tl.int64) * stride * UNIT


@triton.jit
def _places(
    stride, ROWS: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr, OFFSET: tl.constexpr
):
    if OFFSET == 64:
        stride = tl.cast(stride, tl.int64)
        rows = tl.arange(0, ROWS).to(tl.int64) * (stride * UNIT)
    else:
        rows = tl.arange(0, ROWS) * (tl.cast(stride, tl.int32) * UNIT)
    return rows[:, None] + tl.arange(0, WIDTH)[None, :]


@triton.jit
def _inside(
    first,
    count,
    ROWS: tl.constexpr,
    COLUMN: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    WHOLE: tl.constexpr,
):
    columns = (COLUMN + tl.arange(0, WIDTH) < D)[None, :]
    if WHOLE:
        return columns if COLUMN + WIDTH > D else None
    else:
        rows = (first + tl.arange(0, ROWS) < count)[:, None]
        return rows & columns if COLUMN + WIDTH > D else rows


@triton.jit
def load_rows(
    at,  # *float, the tile's first row
    first,  # int32, its number
    count,  # int32, rows of the head
    stride,  # between rows, in units
    ROWS: tl.constexpr,
    COLUMN: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    UNIT: tl.constexpr,
    OFFSET: tl.constexpr,
    WHOLE: tl.constexpr,  # all of its rows exist
):
    """[ROWS, WIDTH], zero outside of the head; None where there are no rows or no columns."""
    if ROWS * WIDTH == 0:
        return None
    else:
        # The column last: the parts of a head then have addresses in common, up to a constant.
        places = at + _places(stride, ROWS, WIDTH, UNIT, OFFSET) + COLUMN
        inside = _inside(first, count, ROWS, COLUMN, WIDTH, D, WHOLE)
        if inside is None:
            return tl.load(places)
        else:
            return tl.load(places, mask=inside, other=0.0)


@triton.jit
def load_tile(
    base,  # *float, a head's first row
    first,
    count,
    stride,
    ROWS: tl.constexpr,
    COLUMN: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    UNIT: tl.constexpr,
    OFFSET: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """`load_rows`, of a head."""
    at = row_at(base, first, stride, UNIT)
    return load_rows(at, first, count, stride, ROWS, COLUMN, WIDTH, D, UNIT, OFFSET, WHOLE)


@triton.jit
def store_rows(
    at,
    first,
    count,
    stride,
    value,  # float32 [ROWS, WIDTH]
    ROWS: tl.constexpr,
    COLUMN: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    UNIT: tl.constexpr,
    OFFSET: tl.constexpr,
    WHOLE: tl.constexpr,
):
    places = at + _places(stride, ROWS, WIDTH, UNIT, OFFSET) + COLUMN
    inside = _inside(first, count, ROWS, COLUMN, WIDTH, D, WHOLE)
    tl.store(places, narrow(value, at.dtype.element_ty), mask=inside)


@triton.jit
def store_tile(
    base,  # *float, a head's first row
    first,
    count,
    stride,
    value,
    ROWS: tl.constexpr,
    COLUMN: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    UNIT: tl.constexpr,
    OFFSET: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """`store_rows`, of a head."""
    at = row_at(base, first, stride, UNIT)
    store_rows(at, first, count, stride, value, ROWS, COLUMN, WIDTH, D, UNIT, OFFSET, WHOLE)


@triton.jit
def load_bias(
    base,  # *float, a head's
    first_row,
    rows,
    row_stride,
    first_column,
    columns,
    column_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,  # all of its columns exist
):
    """float32 [ROWS, COLUMNS] times log2 e; [1, COLUMNS] or [ROWS, 1] where a stride is None.

    Limited as in csrc/math/bias.h.
    """
    i = first_row + tl.arange(0, ROWS)
    j = first_column + tl.arange(0, COLUMNS)
    if row_stride is None:
        tile = base + (j.to(tl.int64) * column_stride)[None, :]
        inside = None if WHOLE else (j < columns)[None, :]
    elif column_stride is None:
        tile = base + (i.to(tl.int64) * row_stride)[:, None]
        inside = (i < rows)[:, None]
    else:
        tile = base + (i.to(tl.int64) * row_stride)[:, None] + (j.to(tl.int64) * column_stride)
        inside = (i < rows)[:, None]
        if not WHOLE:
            inside &= (j < columns)[None, :]
    if inside is None:
        bias = widen(tl.load(tile))
    else:
        bias = widen(tl.load(tile, mask=inside, other=0.0))
    limited = tl.minimum(tl.maximum(bias, -MOST_BIAS), MOST_BIAS)
    return tl.where(tl.abs(bias) < float("inf"), limited, bias) * LOG2E


@triton.jit
def only_columns(s, first, count):
    """``s``, minus infinity in columns that do not exist."""
    there = first + tl.arange(0, s.shape[1]) < count
    return tl.where(there[None, :], s, NOTHING)
