"""attention by xformers, whose tensors are [B, N, H, D]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _like(x: Tensor, value: Tensor) -> Tensor:
    """``value``, [B, N, H, D], with x's dimensions and order of strides."""
    value, result = value.transpose(1, 2), torch.empty_like(x)
    return value if value.stride() == result.stride() else result.copy_(value)


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: None, scale: float, need_lse: bool
) -> tuple[Tensor, Tensor]:
    from xformers.ops import fmha

    operands = [x.transpose(1, 2) for x in (q, k, v)]
    if not need_lse:
        out = fmha.memory_efficient_attention_forward(*operands, scale=scale)
        return _like(q, out), q.new_empty((0,), dtype=torch.float32)
    out, lse = fmha.memory_efficient_attention_forward_requires_grad(*operands, scale=scale)
    return _like(q, out), lse[..., : q.shape[2]].contiguous()


def attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: None,
    out: Tensor,
    lse: Tensor,
    scale: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    from xformers.ops import fmha

    grad_out, out, *operands = (x.transpose(1, 2) for x in (grad_out, out, q, k, v))
    grads = fmha.memory_efficient_attention_backward(grad_out, out, lse, *operands, scale=scale)
    dq, dk, dv = (
        _like(x, grad) if needed else x.new_empty((0,))
        for x, grad, needed in zip((q, k, v), grads, needs, strict=True)
    )
    return dq, dk, dv
