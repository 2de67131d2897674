"""group_norm_silu and its gradients, the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .arithmetic import compute_dtype


def _grouped(value: Tensor, num_groups: int) -> Tensor:
    """[N, C, ...] as [N, G, elements of a group]."""
    elements = value.shape[1] // num_groups * value.shape[2:].numel()
    return value.reshape(value.shape[0], num_groups, elements)


def _per_channel(value: Tensor, like: Tensor) -> Tensor:
    """[C] with trailing dimensions to broadcast to [N, C, ...]."""
    return value.to(like.dtype).reshape(-1, *[1] * (like.dim() - 2))


def _slope(u: Tensor, act: str | None) -> Tensor:
    """Of the activation, at its argument."""
    if act is None:
        return torch.ones_like(u)
    s = torch.sigmoid(u)
    return s * (1 + u * (1 - s))


def group_norm_silu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    act: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    f = compute_dtype(x, weight, bias)
    kept = torch.float64 if x.dtype == torch.float64 else torch.float32
    groups = _grouped(x.double(), num_groups)
    count = max(groups.shape[2], 1)  # of no elements the mean and the variance are 0
    mean = groups.sum(2, keepdim=True) / count
    var = (groups - mean).square().sum(2, keepdim=True) / count
    mean, rstd = mean.to(kept), (1 / (var + eps).sqrt()).to(kept)
    u = ((groups.to(f) - mean.to(f)) * rstd.to(f)).reshape(x.shape)
    if weight is not None:
        u = u * _per_channel(weight, u)
    if bias is not None:
        u = u + _per_channel(bias, u)
    y = u if act is None else u * torch.sigmoid(u)
    return torch.empty_like(x).copy_(y), mean[..., 0], rstd[..., 0]


def group_norm_silu_backward(
    grad_y: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    act: str | None,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    f = compute_dtype(grad_y, x, weight, bias)
    rstd = rstd.to(f)[..., None]
    x_hat = (_grouped(x.to(f), num_groups) - mean.to(f)[..., None]) * rstd
    x_hat = x_hat.reshape(x.shape)
    scale = 1.0 if weight is None else _per_channel(weight, x_hat)
    shift = 0.0 if bias is None else _per_channel(bias, x_hat)
    h = grad_y.to(f) * _slope(scale * x_hat + shift, act)

    dx, dweight, dbias = (x.new_empty((0,)) for _ in range(3))
    if needs[0]:
        g, hat = _grouped(scale * h, num_groups), _grouped(x_hat, num_groups)
        count = max(hat.shape[2], 1)
        along_mean, along_hat = (
            (v.double().sum(2, keepdim=True) / count).to(f) for v in (g, g * hat)
        )
        dx = torch.empty_like(x).copy_((rstd * (g - along_mean - hat * along_hat)).reshape(x.shape))
    others = [d for d in range(x.dim()) if d != 1]
    if needs[1] and weight is not None:
        dweight = (h * x_hat).double().sum(others).to(weight.dtype)
    if needs[2] and bias is not None:
        dbias = h.double().sum(others).to(bias.dtype)
    return dx, dweight, dbias
