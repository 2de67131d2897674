"""attention in Triton: which kernels a call needs, and with what tiles.

The kernels: `attention_few_keys` where one tile holds all keys, `attention_many_keys` otherwise, and
`attention_wide` for head dims that do not fit into a multiprocessor in one piece. Tiles are fixed, for all
GPUs: they need at most 99 KB of shared memory, which GeForce cards have, and no kernel spills.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..outputs import gradients
from .attention_few_keys import attention_few_keys_dq_kernel
from .attention_many_keys import (
    attention_dkdv_kernel,
    attention_dq_kernel,
    attention_forward_kernel,
    attention_rows_kernel,
)
from .attention_wide import attention_wide_forward_kernel, attention_wide_gradient_kernel
from .launch import launch_tiles

LOG2E = math.log2(math.e)

#: A head dim beyond this is for `attention_wide`: more than registers hold.
ONE_PIECE = {torch.bfloat16: 160, torch.float16: 160, torch.float32: 64}

#: Of all kernels' tiles: `attention_rows` has the largest.
MOST_ROWS = 256

#: As many programs as keep a large GPU busy: with more, one takes several tiles of queries.
PROGRAMS = 512


class Tiles(NamedTuple):
    rows: int  # queries
    keys: int
    warps: int
    stages: int


def _power(n: int) -> int:
    """The least power of two that is not below n, and at least 16: the least that `tl.dot` takes."""
    return max(16, 1 << (n - 1).bit_length())


def parts(dim: int) -> tuple[int, int]:
    """The head dim as powers of two, the second 0 where one wastes no more than 15 %."""
    whole, low = _power(dim), _power(dim) // 2
    if whole <= 1.15 * dim or low < 16 or low + _power(dim - low) >= whole:
        return whole, 0
    return low, _power(dim - low)


def key_parts(keys: int) -> tuple[int, int]:
    """At most 128 keys likewise, but two parts wherever that is less."""
    whole, low = _power(keys), _power(keys) // 2
    if low < 16 or low + _power(keys - low) >= whole:
        return whole, 0
    return low, _power(keys - low)


def _unit(tensors: Sequence[Tensor]) -> int:
    """Numbers that all strides are multiples of, up to 16 bytes of them: an access's width."""
    unit = 16 // tensors[0].element_size()
    strides = [s for t in tensors for s in _strides(t)]
    while any(s % unit for s in strides):
        unit //= 2
    return unit


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Of batch, head and row; where there is one of them it does not matter."""
    b, h, n = (s if size != 1 else 0 for s, size in zip(x.stride()[:3], x.shape[:3], strict=True))
    return b, h, n


def _with_rows(x: Tensor) -> Tensor:
    """With the numbers of a row side by side, which a gradient of a sum does not have."""
    return x if x.shape[3] == 1 or x.stride(3) == 1 else x.contiguous()


class _Layout(NamedTuple):
    """How kernels find their way in all of a call's operands."""

    unit: int
    offset: int  # bits of an offset within a tile

    @classmethod
    def of(cls, *tensors: Tensor) -> _Layout:
        far = max(_strides(t)[2] for t in tensors) * MOST_ROWS >= 2**31
        return cls(_unit(tensors), 64 if far else 32)

    def operand(self, x: Tensor | None) -> tuple[Any, ...]:
        if x is None:
            return (None,) * 4
        return (x, *(s // self.unit for s in _strides(x)))

    @property
    def constants(self) -> dict[str, Any]:
        return {"UNIT": self.unit, "OFFSET": self.offset}


def _bias(bias: Tensor | None) -> tuple[Any, ...]:
    """(bias, strides): None of queries or of keys where it is the same for all, 0 otherwise."""
    if bias is None:
        return (None,) * 5
    b, h, n, m = (s if size != 1 else 0 for s, size in zip(bias.stride(), bias.shape, strict=True))
    if bias.shape[2] == 1:
        return bias, b, h, None, m
    return bias, b, h, n, None if bias.shape[3] == 1 else m


def _early(bias: Tensor | None, scale2: float) -> bool:
    """Whether scores must be scaled before they are masked or compared."""
    return bias is not None or not scale2 >= 2.0**-126


def _head(dim: int, halves: bool = False) -> dict[str, int]:
    """The head dim and its parts; ``halves``: two of them where 128 would be one."""
    d0, d1 = parts(dim)
    if halves and (d0, d1) == (128, 0):
        d0, d1 = 64, 64
    return {"D": dim, "D0": d0, "D1": d1}


# Tiles: sixteen rows a warp, and as many of the other kind as registers hold. Where products sum over
# rows, 128 columns are two halves, since of a part with more columns than a tile has rows Triton would
# give each warp some columns, and exchange P in shared memory. float32 goes without tensor cores: it is
# here to be right, not fast.


def _forward_tiles(dtype: torch.dtype, dim: int, biased: bool) -> Tiles:
    if dtype == torch.float32:
        return Tiles(32, 32, 8, 1)
    padded = sum(parts(dim))
    if padded > 128:
        return Tiles(128, 32, 8, 2)
    if biased:
        return Tiles(64, 32, 4, 1)
    return Tiles(64, 64, 4, 2) if padded <= 80 else Tiles(64, 32, 4, 2)


def _dq_tiles(dtype: torch.dtype, dim: int) -> Tiles:
    if dtype == torch.float32:
        return Tiles(32, 32, 4, 1)
    padded = sum(parts(dim))
    if padded <= 64:
        return Tiles(64, 64, 4, 2)
    if padded <= 80:
        return Tiles(128, 64, 8, 2)
    return Tiles(128, 32, 8, 2) if padded <= 128 else Tiles(64, 32, 4, 2)


def _dkdv_tiles(dtype: torch.dtype, dim: int, biased: bool) -> Tiles:
    if dtype == torch.float32:
        return Tiles(32, 32, 4, 1)
    padded = sum(parts(dim))
    if biased:
        return Tiles(32, 64, 4, 1)
    if padded <= 64:
        return Tiles(64, 128, 8, 2)
    return Tiles(32, 128, 8, 3) if padded <= 80 else Tiles(32, 64, 4, 2)


def _few_keys_tiles(dtype: torch.dtype, dim: int, keys: int, biased: bool) -> Tiles | None:
    """None where the keys and values of a head, and what is computed of them, find no room at once."""
    padded = sum(parts(dim))
    if dtype == torch.float32 or keys > 128 or padded > (128 if keys <= 80 else 64):
        return None
    masked = 96 < keys < 128  # of 128 keys, which with a mask leave no register free
    if padded > 80 or masked or biased:
        return Tiles(32, keys, 2, 2)
    return Tiles(64, keys, 4, 2)


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, need_lse: bool
) -> tuple[Tensor, Tensor]:
    batch, heads, queries, dim = q.shape
    keys = k.shape[2]
    out = torch.empty_like(q)
    lse = q.new_empty(q.shape[:3] if need_lse else (0,), dtype=torch.float32)
    if q.numel() == 0 or keys == 0:
        return out.zero_(), lse.fill_(-math.inf)
    layout = _Layout.of(q, k, v, out)
    if dim > ONE_PIECE[q.dtype]:
        _wide_forward(layout, q, k, v, bias, scale, out, lse if need_lse else None)
        return out, lse
    tiles = _forward_tiles(q.dtype, dim, bias is not None)
    blocks = -(-queries // tiles.rows)
    launch_tiles(
        attention_forward_kernel,
        batch * heads * blocks,
        tiles.warps,
        tiles.stages,
        *layout.operand(q),
        *layout.operand(k),
        *layout.operand(v),
        *_bias(bias),
        *layout.operand(out),
        lse if need_lse else None,
        scale * LOG2E,
        heads,
        queries,
        keys,
        blocks,
        **_head(dim, halves=True),
        **layout.constants,
        EARLY=_early(bias, scale * LOG2E),
        ROWS=tiles.rows,
        KEYS=tiles.keys,
    )
    return out, lse


def attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor | None,
    lse: Tensor | None,
    scale: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = gradients(needs, (q, k, v))
    if q.numel() == 0 or k.numel() == 0:
        return dq.zero_(), dk.zero_(), dv.zero_()
    grad_out = _with_rows(grad_out)
    if not (needs[1] or needs[2]):
        if not needs[0]:
            return dq, dk, dv
        tiles = _few_keys_tiles(q.dtype, q.shape[3], k.shape[2], bias is not None)
        if tiles is not None:
            _few_keys_dq(tiles, grad_out, q, k, v, bias, scale, dq)
            return dq, dk, dv
    if out is None or lse is None:
        out, lse = attention(q, k, v, bias, scale, True)
    _many_keys(grad_out, q, k, v, bias, out, lse, scale, needs, (dq, dk, dv))
    return dq, dk, dv


def _few_keys_dq(
    tiles: Tiles,
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    dq: Tensor,
) -> None:
    batch, heads, queries, dim = q.shape
    keys = k.shape[2]
    layout = _Layout.of(grad_out, q, k, v, dq)
    keys0, keys1 = key_parts(keys)
    head = _head(dim, halves=True)
    all_tiles = -(-queries // tiles.rows)
    each = max(1, min(8, batch * heads * all_tiles // PROGRAMS))
    blocks = -(-all_tiles // each)
    launch_tiles(
        attention_few_keys_dq_kernel,
        batch * heads * blocks,
        tiles.warps,
        tiles.stages,
        *layout.operand(grad_out),
        *layout.operand(q),
        *layout.operand(k),
        *layout.operand(v),
        *_bias(bias),
        *layout.operand(dq),
        scale,
        scale * LOG2E,
        heads,
        queries,
        keys,
        blocks,
        each,
        **head,
        **layout.constants,
        N1=8 if 0 < dim - head["D0"] <= 8 else head["D1"],
        EARLY=_early(bias, scale * LOG2E),
        ROWS=tiles.rows,
        KEYS0=keys0,
        KEYS1=keys1,
        MASKED=keys != keys0 + keys1,
    )


def _many_keys(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
    needs: Sequence[bool],
    grads: tuple[Tensor, Tensor, Tensor],
) -> None:
    batch, heads, queries, dim = q.shape
    keys = k.shape[2]
    dq, dk, dv = (grad if needed else None for grad, needed in zip(grads, needs, strict=True))
    written = [x for x in (dq, dk, dv) if x is not None]
    layout = _Layout.of(grad_out, q, k, v, out, *written)
    minus_delta, lse2 = (torch.empty_like(lse, memory_format=torch.contiguous_format) for _ in "12")
    width = _power(dim)
    rows = max(16 * MOST_ROWS // width, 1)
    blocks = -(-queries // rows)
    launch_tiles(
        attention_rows_kernel,
        batch * heads * blocks,
        4,
        1,
        *layout.operand(grad_out),
        *layout.operand(out),
        lse.contiguous(),
        minus_delta,
        lse2,
        heads,
        queries,
        blocks,
        D=dim,
        WIDTH=width,
        **layout.constants,
        ROWS=rows,
    )
    if dim > ONE_PIECE[q.dtype]:
        for which, grad in enumerate((dq, dk, dv)):
            if grad is not None:
                operands = (grad_out, q, k, v, bias, minus_delta, lse2)
                _wide_gradient(layout, which, *operands, scale, grad)
        return
    operands = (
        *layout.operand(grad_out),
        *layout.operand(q),
        *layout.operand(k),
        *layout.operand(v),
        *_bias(bias),
        minus_delta,
        lse2,
    )
    sizes = (scale, scale * LOG2E, heads, queries, keys)
    if dq is not None:
        tiles = _dq_tiles(q.dtype, dim)
        blocks = -(-queries // tiles.rows)
        launch_tiles(
            attention_dq_kernel,
            batch * heads * blocks,
            tiles.warps,
            tiles.stages,
            *operands,
            *layout.operand(dq),
            *sizes,
            blocks,
            **_head(dim, halves=True),
            **layout.constants,
            EARLY=_early(bias, scale * LOG2E),
            ROWS=tiles.rows,
            KEYS=tiles.keys,
        )
    # Where registers do not hold both, one after the other, which forms P^T a second time.
    together = sum(parts(dim)) <= 128 and q.dtype != torch.float32
    for pair in ((dk, dv),) if together else ((dk, None), (None, dv)):
        if pair[0] is None and pair[1] is None:
            continue
        tiles = _dkdv_tiles(q.dtype, dim, bias is not None)
        blocks = -(-keys // tiles.keys)
        launch_tiles(
            attention_dkdv_kernel,
            batch * heads * blocks,
            tiles.warps,
            tiles.stages,
            *operands,
            *layout.operand(pair[0]),
            *layout.operand(pair[1]),
            *sizes,
            blocks,
            **_head(dim),
            **layout.constants,
            ROWS=tiles.rows,
            KEYS=tiles.keys,
        )


def _wide(dtype: torch.dtype, dim: int) -> dict[str, int]:
    """Chunks and pieces of the head dim."""
    chunk, piece = (32, 128) if dtype == torch.float32 else (64, 256)
    return {"D": dim, "CHUNK": chunk, "PIECE": piece, "PIECES": -(-dim // piece)}


def _wide_forward(
    layout: _Layout,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    out: Tensor,
    lse: Tensor | None,
) -> None:
    batch, heads, queries, dim = q.shape
    constants = _wide(q.dtype, dim)
    rows, keys = (64, 32) if q.dtype != torch.float32 else (32, 32)
    blocks = -(-queries // rows)
    launch_tiles(
        attention_wide_forward_kernel,
        batch * heads * blocks * constants["PIECES"],
        8,
        2,
        *layout.operand(q),
        *layout.operand(k),
        *layout.operand(v),
        *_bias(bias),
        *layout.operand(out),
        lse,
        scale * LOG2E,
        heads,
        queries,
        k.shape[2],
        blocks,
        **constants,
        **layout.constants,
        ROWS=rows,
        KEYS=keys,
    )


def _wide_gradient(
    layout: _Layout,
    which: int,
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    minus_delta: Tensor,
    lse2: Tensor,
    scale: float,
    grad: Tensor,
) -> None:
    batch, heads, kept, dim = grad.shape
    constants = _wide(q.dtype, dim)
    of_queries, of_keys = (q, grad_out), (k, v)
    ours, others = (of_queries, of_keys) if which == 0 else (of_keys, of_queries)
    base, b, h, n, m = _bias(bias)
    rows, walked = (64, 32) if q.dtype != torch.float32 else (32, 32)
    blocks = -(-kept // rows)
    launch_tiles(
        attention_wide_gradient_kernel,
        batch * heads * blocks * constants["PIECES"],
        8,
        2,
        *layout.operand(ours[0]),
        *layout.operand(None if which == 2 else ours[1]),
        *layout.operand(others[0]),
        *layout.operand(others[1]),
        *(base, b, h, *((n, m) if which == 0 else (m, n))),
        minus_delta,
        lse2,
        *layout.operand(grad),
        scale,
        scale * LOG2E,
        heads,
        kept,
        others[0].shape[2],
        blocks,
        WHICH=which,
        **constants,
        **layout.constants,
        KEPT=rows,
        WALKED=walked,
    )
