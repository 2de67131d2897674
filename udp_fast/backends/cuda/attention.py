"""attention on csrc/cuda, the scores never in memory: products on tensor cores, of float32 without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..outputs import gradients, needs_no_statistics
from . import native

#: Head dims that the kernels are compiled for.
DIMS = (40, 64, 80, 128, 160, 512)

#: Address, and strides of batch, head and row in elements.
Heads = tuple[int, int, int, int]
#: Address, and strides of batch, head, query and key.
Bias = tuple[int, int, int, int, int]
#: Images, heads, queries, keys, head dim, dtype and scale.
Shape = tuple[int, int, int, int, int, int, float]


def not_supported_reasons(op: str, args: tuple[Any, ...]) -> list[str]:
    """Why this call of attention or attention_backward, of dtypes that are, is not served."""
    if op == "attention":
        q, k, v, _bias, scale, _need_lse = args
        out = None
    else:
        _grad_out, q, k, v, _bias, out, _lse, scale, _needs = args
    found = []
    for name, x in (("k", k), ("v", v), ("out", out)):
        if x is not None and x.dtype != q.dtype:
            found.append(f"{name} is {x.dtype} and q {q.dtype}: only one dtype is served")
    if q.shape[3] not in DIMS:
        found.append(f"head dim {q.shape[3]} is not served, only {', '.join(map(str, DIMS))}")
    if not 2.0**-20 <= scale <= 2.0**20:
        found.append(f"scale {scale} is not served, only 2 ** -20 to 2 ** 20")
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
            _bias_of(bias),
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
    if grad_out.dtype != q.dtype:  # all in float32, which loses nothing of any
        dtype, out = q.dtype, None if out is None else out.float()
        grad_out, q, k, v = (x.float() for x in (grad_out, q, k, v))
        dq, dk, dv = attention_backward(grad_out, q, k, v, bias, out, lse, scale, needs)
        return dq.to(dtype), dk.to(dtype), dv.to(dtype)
    grad_out, q, k, v = map(_aligned, (grad_out, q, k, v))
    bias = _float32(bias)
    grads = [_aligned(x) if needed else x for x, needed in zip((dq, dk, dv), needs, strict=True)]
    to = [_heads(x) if needed else None for x, needed in zip(grads, needs, strict=True)]
    shape = _shape(q, k, scale)
    operands = [_heads(x) for x in (grad_out, q, k, v)]
    with native.stream_of(q) as stream:
        module = native.module()
        if needs_no_statistics(needs, k.shape[2]) and _fits_one_tile(q, k.shape[2]):
            module.attention_one_tile(shape, *operands, _bias_of(bias), to[0], stream)
        else:
            if out is None or lse is None:  # float32 with 81 to 128 keys: five products, not three
                out, lse = attention(q, k, v, bias, scale, True)
            out, lse = _aligned(out), lse.contiguous()
            scratch = native.workspace(module.attention_backward_workspace(shape), q)
            module.attention_backward(
                shape,
                *operands,
                _bias_of(bias),
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


def _fits_one_tile(q: Tensor, keys: int) -> bool:
    """Whether the kernels that form a row's statistics anew serve it; others have to be given them."""
    return keys <= (80 if q.dtype == torch.float32 else 128)


def _shape(q: Tensor, k: Tensor, scale: float) -> Shape:
    images, heads, queries, dim = q.shape
    return images, heads, queries, k.shape[2], dim, native.DTYPES[q.dtype], scale


def _float32(bias: Tensor | None) -> Tensor | None:
    """The bias, or a copy of it where the kernels cannot read it as it is."""
    if bias is None:
        return None
    return bias.float() if bias.stride(3) < 2**31 else bias.float().contiguous()


def _bias_of(bias: Tensor | None) -> Bias | None:
    if bias is None:
        return None
    batch, head, query, key = _strides(bias, (0, 1, 2, 3))
    return bias.data_ptr(), batch, head, query, key


def _strides(x: Tensor, dims: Sequence[int]) -> list[int]:
    """0 where there is nothing to step over."""
    return [x.stride(d) if x.shape[d] > 1 else 0 for d in dims]


def _aligned(x: Tensor) -> Tensor:
    """The tensor, or a copy of it whose rows can be read 16 bytes at a time."""
    strides = _strides(x, (0, 1, 2))
    if (
        x.stride(3) == 1
        and x.data_ptr() % 16 == 0
        and all(stride * x.element_size() % 16 == 0 for stride in strides)
        and strides[2] < 2**24
    ):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _heads(x: Tensor) -> Heads:
    batch, head, row = _strides(x, (0, 1, 2))
    return x.data_ptr(), batch, head, row
