"""attention on csrc/cuda: products on tensor cores, the scores in registers and never in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..outputs import gradients, needs_no_statistics
from . import native

#: Head dims that the kernels are compiled for; the last not for the backward with many keys.
DIMS = (40, 64, 80, 128, 160)

#: Address, and strides of batch, head and row in elements.
Heads = tuple[int, int, int, int]
#: Images, heads, queries, keys, head dim, dtype and scale.
Shape = tuple[int, int, int, int, int, int, float]


def not_supported_reasons(op: str, args: tuple[Any, ...]) -> list[str]:
    """Why this call of attention or attention_backward is not served."""
    dims: tuple[int, ...] = DIMS
    if op == "attention":
        q, k, _v, bias, scale, _need_lse = args
    else:
        _grad_out, q, k, _v, bias, _out, _lse, scale, needs = args
        if not needs_no_statistics(needs, k.shape[2]):
            dims = DIMS[:-1]
    found = []
    if q.dtype not in (torch.float16, torch.bfloat16):
        found.append(f"{q.dtype} is not served: the tensor cores take float16 and bfloat16")
    if q.shape[3] not in dims:
        found.append(
            f"head dim {q.shape[3]} is not served, only {', '.join(map(str, dims))}"
            + (", or 160 for dq with at most 128 keys" if dims != DIMS else "")
        )
    if not 2.0**-20 <= scale <= 2.0**20:
        found.append(f"scale {scale} is not served, only 2 ** -20 to 2 ** 20")
    if bias is not None and bias.shape[2] != 1:
        found.append("a bias that differs between queries is not served, one that is of keys is")
    if max(q.shape[0], q.shape[1]) > 65535 or max(q.shape[2], k.shape[2]) > 2**30:
        found.append(f"{list(q.shape)} is more than 65535 images or heads, or 2 ** 30 rows")
    return found


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    need_lse: bool,
) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(q)
    lse = q.new_empty(q.shape[:3] if need_lse else (0,), dtype=torch.float32)
    if q.numel() == 0 or k.numel() == 0:
        return out.zero_(), lse.fill_(-math.inf)
    q, k, v = map(_aligned, (q, k, v))
    written = _aligned(out)
    bias = _float32(bias)
    with native.stream_of(q) as stream:
        native.module().attention(
            _shape(q, k, scale),
            _heads(q),
            _heads(k),
            _heads(v),
            _bias(bias),
            _heads(written),
            lse.data_ptr() if need_lse else 0,
            stream,
        )
        native.deliver(written, out)
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
    if not any(needs) or q.numel() == 0 or k.numel() == 0:
        return dq.zero_(), dk.zero_(), dv.zero_()
    grad_out, q, k, v = map(_aligned, (grad_out, q, k, v))
    bias = _float32(bias)
    grads = [_aligned(x) if needed else x for x, needed in zip((dq, dk, dv), needs, strict=True)]
    to = [_heads(x) if needed else None for x, needed in zip(grads, needs, strict=True)]
    shape = _shape(q, k, scale)
    operands = [_heads(x) for x in (grad_out, q, k, v)]
    with native.stream_of(q) as stream:
        module = native.module()
        if needs_no_statistics(needs, k.shape[2]):
            module.attention_one_tile(shape, *operands, _bias(bias), to[0], stream)
        else:
            assert out is not None
            assert lse is not None
            out, lse = _aligned(out), lse.contiguous()
            scratch = native.workspace(module.attention_backward_workspace(shape), q)
            module.attention_backward(
                shape,
                *operands,
                _bias(bias),
                _heads(out),
                lse.data_ptr(),
                *to,
                scratch.data_ptr(),
                stream,
            )
        for x, written, needed in zip((dq, dk, dv), grads, needs, strict=True):
            if needed:
                native.deliver(written, x)
    return dq, dk, dv


def _shape(q: Tensor, k: Tensor, scale: float) -> Shape:
    images, heads, queries, dim = q.shape
    return images, heads, queries, k.shape[2], dim, native.DTYPES[q.dtype], scale


def _float32(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()


def _bias(bias: Tensor | None) -> Heads | None:
    """Address, and strides of batch, head and key."""
    if bias is None:
        return None
    batch, head, key = _strides(bias, (0, 1, 3))
    return bias.data_ptr(), batch, head, key


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
