"""geglu and its backward, the definition."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .arithmetic import compute_dtype


def _distribution(gate: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-gate / math.sqrt(2.0))


def geglu(x: Tensor) -> Tensor:
    value, gate = x.to(compute_dtype(x)).chunk(2, -1)
    return (value * gate * _distribution(gate)).to(x.dtype).contiguous()


def geglu_backward(grad_y: Tensor, x: Tensor) -> Tensor:
    f = compute_dtype(x)
    value, gate = x.to(f).chunk(2, -1)
    grad = grad_y.to(f)
    cdf = _distribution(gate)
    density = (-0.5 * gate * gate).exp() / math.sqrt(2.0 * math.pi)
    slope = cdf + gate * density
    return torch.cat([grad * gate * cdf, grad * value * slope], -1).to(x.dtype)
