"""geglu and its gradient, on the feed-forward of Stable Diffusion 1.5's UNet."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from udp_fast.ops import geglu

from ..measure import OURS, Bar, Case, named, size_of


def step(gate: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor) -> Tensor:
    (dx,) = torch.autograd.grad(gate(x), x, dy)
    return dx


def eager(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, -1)
    return value * F.gelu(gate)


def cases(dtype: torch.dtype = torch.float32) -> Iterator[Case]:
    x = torch.randn(1, 4096, 2560, dtype=dtype).requires_grad_()
    dy = torch.randn(1, 4096, 1280, dtype=dtype)
    compiled = torch.compile(eager, dynamic=False)
    yield Case(
        "geglu",
        named("forward and backward", dtype),
        tuple(x.shape),
        {
            OURS: lambda: step(geglu, x, dy),
            "eager": lambda: step(eager, x, dy),
            "compile": lambda: step(compiled, x, dy),
        },
        # Once x and y; once x, dy and dx.
        3 * size_of(x) + 2 * size_of(dy),
        (Bar("eager", 2),) if dtype == torch.float32 else (),
    )
