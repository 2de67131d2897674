"""attention and its backward, the definition."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..bias import limited
from .arithmetic import compute_dtype


def scores(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """[B, H, N, M], in the dtype that the op calculates in."""
    f = compute_dtype(q, k)
    s = q.to(f) @ k.to(f).transpose(-1, -2) * scale
    return s if bias is None else s + limited(bias.to(f))


def probabilities(s: Tensor) -> Tensor:
    """softmax(s); 0 in a row that is masked altogether."""
    return s.softmax(-1).masked_fill((s == -math.inf).all(-1, keepdim=True), 0.0)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    need_lse: bool,
) -> tuple[Tensor, Tensor]:
    s = scores(q, k, bias, scale)
    lse = s.logsumexp(-1)  # of no keys: -inf
    out = torch.empty_like(q).copy_(probabilities(s) @ v.to(s.dtype))
    return out, lse if need_lse else lse.new_empty((0,))


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
    s = scores(q, k, bias, scale)
    f = s.dtype
    p = probabilities(s)
    do = grad_out.to(f)
    dp = do @ v.to(f).transpose(-1, -2)
    delta = (p * dp).sum(-1) if out is None else (do * out.to(f)).sum(-1)
    ds = p * (dp - delta.unsqueeze(-1)) * scale

    def gradient(of: Tensor, value: Tensor) -> Tensor:
        return torch.empty_like(of).copy_(value)

    dq = gradient(q, ds @ k.to(f)) if needs[0] else q.new_empty((0,))
    dk = gradient(k, ds.transpose(-1, -2) @ q.to(f)) if needs[1] else k.new_empty((0,))
    dv = gradient(v, p.transpose(-1, -2) @ do) if needs[2] else v.new_empty((0,))
    return dq, dk, dv
