"""attention on csrc/cpu: products in registers, the scores never in memory as a whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..outputs import gradients
from .native import DTYPES, fresh, module

#: Address, dtype, and strides of image, head and row in elements.
Heads = tuple[int, int, int, int, int]
#: Address of float32, and strides of image, head, query and key, 0 where it is broadcast.
Bias = tuple[int, int, int, int, int]


def _heads(x: Tensor | None) -> Heads | None:
    if x is None or x.numel() == 0:
        return None
    image, head, row, _ = x.stride()
    return x.data_ptr(), DTYPES[x.dtype], image, head, row


def _rows(x: Tensor) -> Tensor:
    """With the numbers of one head side by side."""
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


def _bias(bias: Tensor | None, keys: int) -> tuple[Bias | None, Tensor | None]:
    """The bias as the kernels take it, and the tensor that must stay alive meanwhile."""
    if bias is None:
        return None, None
    bias = bias.to(torch.float32)
    if bias.shape[2] > 1:  # one row a query: read along the keys
        bias = bias.expand(*bias.shape[:3], keys)
        bias = bias if bias.stride(3) == 1 else bias.contiguous()
    strides = [0 if n == 1 else s for n, s in zip(bias.shape, bias.stride(), strict=True)]
    if bias.shape[2] > 1:
        strides[3] = 1
    return (bias.data_ptr(), strides[0], strides[1], strides[2], strides[3]), bias


def _shape(q: Tensor, k: Tensor) -> tuple[int, int, int, int, int]:
    images, heads, queries, size = q.shape
    return images, heads, queries, k.shape[2], size


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    need_lse: bool,
) -> tuple[Tensor, Tensor]:
    out = fresh(torch.empty_like(q))
    rows = q.shape[:3] if need_lse else (0,)
    lse = q.new_empty(*rows, dtype=torch.float32)  # a sequence takes twice as long
    if q.numel() == 0 or k.numel() == 0:
        return out.zero_(), lse.fill_(-math.inf)
    to_bias, bias_ = _bias(bias, k.shape[2])
    q, k, v = _rows(q), _rows(k), _rows(v)
    module().attention(
        _shape(q, k),
        _heads(q),
        _heads(k),
        _heads(v),
        to_bias,
        scale,
        _heads(out),
        lse.data_ptr() if need_lse else 0,
        torch.get_num_threads(),
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
    dq, dk, dv = map(fresh, gradients(needs, (q, k, v)))
    if q.numel() == 0 or k.numel() == 0:
        return dq.zero_(), dk.zero_(), dv.zero_()
    to_bias, bias_ = _bias(bias, k.shape[2])
    grad_out, q, k, v = _rows(grad_out), _rows(q), _rows(k), _rows(v)
    out = None if out is None else _rows(out)
    lse = None if lse is None else lse.contiguous()
    module().attention_backward(
        _shape(q, k),
        _heads(grad_out),
        _heads(q),
        _heads(k),
        _heads(v),
        to_bias,
        _heads(out),
        0 if lse is None else lse.data_ptr(),
        scale,
        _heads(dq),
        _heads(dk),
        _heads(dv),
        torch.get_num_threads(),
    )
    return dq, dk, dv
