"""geglu in Triton: the arithmetic of csrc/math/gelu.h on a flat run of y's elements."""

# ruff: noqa: RET505 - Triton compiles what follows an early return of a constant branch
import triton
import triton.language as tl
from torch import Tensor

from .floats import exp2, fma, narrow, product, reciprocal, widen
from .launch import launch, tunable, width_of
from .rows import inside_of, lanes, turns
from .walk import CHUNK as _CHUNK

CHUNK = tl.constexpr(_CHUNK)


@triton.jit
def normal_distribution(g):
    """(P(a standard normal < g), its density there)"""
    s = tl.abs(g)
    e = exp2(s * s * -0.72134752044448)
    t = reciprocal(fma(s, 0.3, 1.0))
    q = fma(t, 0.0356759781962, -0.157208098546)
    q = fma(q, t, 0.206362142409)
    q = fma(q, t, -0.0536915799296)
    q = fma(q, t, 0.128565812849)
    q = fma(q, t, 0.0999122293367)
    q = fma(q, t, 0.120754157025)
    q = fma(q, t, 0.119629285837)
    tail = product(e, q * t)
    return tl.where(g < 0.0, tail, 1.0 - tail), e * 0.398942280401


@triton.jit
def index(value, LONG: tl.constexpr):
    """As an integer that holds columns + CHUNK; in 64 bits a division takes several times as long."""
    if LONG:
        return tl.cast(value, tl.int64)
    else:
        return tl.cast(value, tl.uint32)


@triton.jit
def program_part(columns, elements, LONG: tl.constexpr):
    """(first, size, before, column) of this program.

    It serves y's elements from ``first`` on; ``before``: what x has more than y up to that row;
    ``column``: where in its row the first one is.
    """
    first = tl.program_id(0).to(tl.int64) * CHUNK
    row = first // columns
    size = tl.minimum(elements - first, CHUNK).to(tl.int32)
    return first, size, row * columns, index(first - row * columns, LONG)


@triton.jit
def in_x(i, start, column, columns, LONG: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """Offsets of the values that belong to the elements ``i``: a row further for each row's end on
    the way. A group of WIDTH has none inside, so one division serves it."""
    group = column + index(start + tl.arange(0, GROUPS) * WIDTH, LONG)
    columns = index(columns, LONG)
    return (group // columns * columns)[:, None] + i


@tunable()
@triton.jit
def geglu_kernel(
    x,  # *float [rows, 2 * columns]
    y,  # *float [rows, columns]
    columns,
    elements,  # of y
    LONG: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    first, size, before, column = program_part(columns, elements, LONG)
    x += first + before
    y += first
    for tail in tl.static_range(2):
        begin, end = turns(size, tail, GROUPS * WIDTH)
        for start in range(begin, end, GROUPS * WIDTH):
            i = start + lanes(GROUPS, WIDTH)
            inside = inside_of(i, size, tail)
            value = x + in_x(i, start, column, columns, LONG, GROUPS, WIDTH)
            gate = widen(tl.load(value + columns, mask=inside))
            cdf, _ = normal_distribution(gate)
            result = widen(tl.load(value, mask=inside)) * (gate * cdf)
            tl.store(y + i, narrow(result, y.dtype.element_ty), mask=inside)


@tunable()
@triton.jit
def geglu_backward_kernel(
    grad,  # *float [rows, columns]
    x,  # *float [rows, 2 * columns]
    dx,  # *float [rows, 2 * columns]
    columns,
    elements,  # of grad
    LONG: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    first, size, before, column = program_part(columns, elements, LONG)
    grad += first
    x += first + before
    dx += first + before
    for tail in tl.static_range(2):
        begin, end = turns(size, tail, GROUPS * WIDTH)
        for start in range(begin, end, GROUPS * WIDTH):
            i = start + lanes(GROUPS, WIDTH)
            inside = inside_of(i, size, tail)
            place = in_x(i, start, column, columns, LONG, GROUPS, WIDTH)
            gate = widen(tl.load(x + place + columns, mask=inside))
            value = widen(tl.load(x + place, mask=inside))
            dy = widen(tl.load(grad + i, mask=inside))
            cdf, density = normal_distribution(gate)
            d_value, d_gate = dy * (gate * cdf), dy * value * fma(gate, density, cdf)
            tl.store(dx + place, narrow(d_value, dx.dtype.element_ty), mask=inside)
            tl.store(dx + place + columns, narrow(d_gate, dx.dtype.element_ty), mask=inside)


def geglu(x: Tensor) -> Tensor:
    y = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
    if y.numel() != 0:
        _launch(geglu_kernel, y, x.contiguous(), y)
    return y


def geglu_backward(grad_y: Tensor, x: Tensor) -> Tensor:
    dx = x.new_empty(x.shape)
    if x.numel() != 0:
        grad_y = grad_y.contiguous()
        _launch(geglu_backward_kernel, grad_y, grad_y, x.contiguous(), dx)
    return dx


def _launch(kernel: object, of_y: Tensor, *tensors: Tensor) -> None:
    """``of_y``: any tensor like y."""
    columns, elements = of_y.shape[-1], of_y.numel()
    width = width_of(tensors[-1])
    launch(
        kernel,
        -(-elements // _CHUNK),
        width if columns % width == 0 else 1,
        *tensors,
        columns,
        elements,
        LONG=columns > 2**31 - _CHUNK,
    )
