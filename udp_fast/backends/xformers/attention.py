"""attention by xformers, whose tensors are [B, N, H, D]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..outputs import in_strides_of


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: None, scale: float, need_lse: bool
) -> tuple[Tensor, Tensor]:
    from xformers.ops import fmha

    operands = [x.transpose(1, 2) for x in (q, k, v)]
    if not need_lse:
        out = fmha.memory_efficient_attention_forward(*operands, scale=scale)
        return in_strides_of(q, out.transpose(1, 2)), q.new_empty((0,), dtype=torch.float32)
    out, lse = fmha.memory_efficient_attention_forward_requires_grad(*operands, scale=scale)
    return in_strides_of(q, out.transpose(1, 2)), lse[..., : q.shape[2]].contiguous()


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
        in_strides_of(x, grad.transpose(1, 2)) if needed else x.new_empty((0,))
        for x, grad, needed in zip((q, k, v), grads, needs, strict=True)
    )
    return dq, dk, dv
