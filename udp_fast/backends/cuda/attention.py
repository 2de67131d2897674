"""attention's backward on csrc/cuda, on tensor cores: so far the gradient of q alone, for few keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import native

#: Head dims that the kernels are compiled for.
DIMS = (40, 64, 80, 128, 160)
#: Keys that one tile holds.
ONE_TILE = 128

#: Address, and strides of batch, head and row in elements.
Heads = tuple[int, int, int, int]


def not_supported_reasons(args: tuple[Any, ...]) -> list[str]:
    """Why this call of attention_backward is not served."""
    _grad_out, q, k, _v, bias, _out, _lse, scale, needs = args
    found = []
    if q.dtype not in (torch.float16, torch.bfloat16):
        found.append(f"{q.dtype} is not served: the tensor cores take float16 and bfloat16")
    if q.shape[3] not in DIMS:
        found.append(f"head dim {q.shape[3]} is not served, only {', '.join(map(str, DIMS))}")
    if needs[1] or needs[2] or k.shape[2] > ONE_TILE:
        found.append(f"only dq is served, for at most {ONE_TILE} keys, got {k.shape[2]}")
    if not 2.0**-20 <= scale <= 2.0**20:
        found.append(f"scale {scale} is not served, only 2 ** -20 to 2 ** 20")
    if bias is not None and bias.shape[2] != 1:
        found.append("a bias that differs between queries is not served, one that is of keys is")
    if max(q.shape[0], q.shape[1]) > 65535 or q.shape[2] >= 2**31 - 128:
        found.append(f"{list(q.shape)} is more than 65535 images or heads, or 2 ** 31 queries")
    return found


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
    dq, dk, dv = torch.empty_like(q), k.new_empty((0,)), v.new_empty((0,))
    if not needs[0]:
        return q.new_empty((0,)), dk, dv
    if q.numel() == 0 or k.numel() == 0:
        return dq.zero_(), dk, dv
    images, heads, queries, dim = q.shape
    grad_out, q, k, v = map(_aligned, (grad_out, q, k, v))
    written = _aligned(dq)
    bias = None if bias is None else bias.float()
    with native.stream_of(q) as stream:
        native.module().attention_one_tile(
            (images, heads, queries, k.shape[2], dim, native.DTYPES[q.dtype], scale),
            _heads(grad_out),
            _heads(q),
            _heads(k),
            _heads(v),
            None if bias is None else (bias.data_ptr(), *_strides(bias, (0, 1, 3))),
            _heads(written),
            stream,
        )
        native.deliver(written, dq)
    return dq, dk, dv


def _strides(x: Tensor, dims: Sequence[int]) -> list[int]:
    """0 where there is nothing to step over."""
    return [x.stride(d) if x.shape[d] > 1 else 0 for d in dims]


def _aligned(x: Tensor) -> Tensor:
    """The tensor, or a copy of it whose rows can be read 16 bytes at a time."""
    strides = _strides(x, (0, 1, 2))
    if (
        x.stride(3) == 1
        and x.data_ptr() % 16 == 0
        and all(stride % 8 == 0 for stride in strides)
        and strides[2] < 2**24
    ):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _heads(x: Tensor) -> Heads:
    batch, head, row = _strides(x, (0, 1, 2))
    return x.data_ptr(), batch, head, row
