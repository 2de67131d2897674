"""group_norm_silu, forward and backward to the image, weights frozen: what a protection step runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from udp_fast.ops import group_norm_silu

from ..measure import OURS, Bar, Case, named, size_of
from .shapes import FEATURES

GROUPS = 32
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def eager(x: Tensor, weight: Tensor, bias: Tensor, act: str | None) -> Tensor:
    y = F.group_norm(x, GROUPS, weight, bias)
    return F.silu(y) if act else y


def ours(x: Tensor, weight: Tensor, bias: Tensor, act: str | None) -> Tensor:
    return group_norm_silu(x, weight, bias, num_groups=GROUPS, act=act)


def to_the_image(
    norm: Callable[[Tensor, Tensor, Tensor, str | None], Tensor],
    x: Tensor,
    grad_y: Tensor,
    weight: Tensor,
    bias: Tensor,
    act: str | None,
) -> Callable[[], object]:
    def run() -> Tensor:
        (dx,) = torch.autograd.grad(norm(x, weight, bias, act), x, grad_y)
        return dx

    return run


def cases(dtype: torch.dtype = torch.float32) -> Iterator[Case]:
    for shape, form in ((s, f) for s in FEATURES for f in FORMATS):
        full = shape == FEATURES[0]
        for act in ("silu", None) if full else ("silu",):
            x, grad_y = (
                torch.randn(shape, dtype=dtype).contiguous(memory_format=FORMATS[form])
                for _ in range(2)
            )
            x.requires_grad_()
            operands = (x, grad_y, torch.randn(shape[1]).to(dtype), torch.randn(shape[1]).to(dtype))
            compiled = torch.compile(eager, dynamic=False)
            yield Case(
                "group_norm_silu",
                named(form if act else f"{form}, no act", dtype),
                shape,
                {
                    OURS: to_the_image(ours, *operands, act),
                    "eager": to_the_image(eager, *operands, act),
                    "compile": to_the_image(compiled, *operands, act),
                },
                # Once x and y; once x, grad_y and dx.
                size_of(x, x, x, grad_y, x),
                (Bar("eager", 2),) if full and act and dtype == torch.float32 else (),
                # Statistics come first: forward reads x twice, backward x and grad_y. And of channels last
                # the sums of pieces are many.
                slack=8 / 5 * 1.035,
            )
