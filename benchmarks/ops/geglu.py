"""geglu and its gradient, on the feed-forward of Stable Diffusion 1.5's UNet."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from udp_fast.ops import geglu

from ..measure import OURS, Bar, Case, size_of


def step(gate: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor) -> Tensor:
    (dx,) = torch.autograd.grad(gate(x), x, dy)
    return dx


def eager(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, -1)
    return value * F.gelu(gate)


def cases() -> Iterator[Case]:
    if not torch.empty(0).is_cpu:
        return  # torch itself serves this op on a GPU
    x = torch.randn(1, 4096, 2560, requires_grad=True)
    dy = torch.randn(1, 4096, 1280)
    yield Case(
        "geglu",
        "forward and backward",
        tuple(x.shape),
        {OURS: lambda: step(geglu, x, dy), "eager": lambda: step(eager, x, dy)},
        3 * size_of(x) + 2 * size_of(dy),
        (Bar("eager", 2),),
    )
