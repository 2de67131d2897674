"""Calls of group_norm_silu and its backward, and what float64 says of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from cases import BF16, F16, F32, F64, floats
from torch import Tensor

from udp_fast.backends.reference.group_norm_silu import (
    group_norm_silu,
    group_norm_silu_backward,
)

#: Half a spacing of a dtype, relative: what rounding the exact result may cost.
ROUNDING = {F32: 0.0, F16: 2**-11, BF16: 2**-8}


class Call(NamedTuple):
    """Arguments of the op and of its backward, in the schema's order but for what is computed."""

    x: Tensor
    grad: Tensor
    weight: Tensor | None
    bias: Tensor | None
    groups: int
    eps: float
    act: str | None

    @property
    def forward(self) -> tuple[object, ...]:
        return self.x, self.weight, self.bias, self.groups, self.eps, self.act

    def backward(
        self, mean: Tensor, rstd: Tensor, needs: tuple[bool, ...] = (True, True, True)
    ) -> tuple[object, ...]:
        rest = (self.weight, self.bias, self.groups, self.act, list(needs))
        return self.grad, self.x, mean, rstd, *rest


def call(
    shape: tuple[int, ...],
    groups: int,
    dtype: torch.dtype = F32,
    layout: str = "contiguous",
    weights: torch.dtype | None = F32,
    act: str | None = "silu",
    spread: float = 2.0,
    middle: float = 1.0,
) -> Call:
    """x of a mean and a deviation, with weights that are not all of one sign."""
    x = floats(shape, 1, F32, layout, scale=spread).add(middle).to(dtype)
    grad = floats(shape, 2, dtype, layout)
    weight = bias = None
    if weights is not None:
        weight = (floats((shape[1],), 3) + 0.5).to(weights)
        bias = floats((shape[1],), 4).to(weights)
    return Call(x, grad, weight, bias, groups, 1e-5, act)


def wide(value: object) -> object:
    return value.to(F64) if isinstance(value, Tensor) else value


def exact_forward(c: Call) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, rstd) in float64."""
    return group_norm_silu(*map(wide, c.forward))  # type: ignore[arg-type]


def exact_backward(c: Call) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias) in float64, from exact statistics."""
    _, mean, rstd = exact_forward(c)
    return group_norm_silu_backward(*map(wide, c.backward(mean, rstd)))  # type: ignore[arg-type]


def assert_close(got: Tensor, exact: Tensor, error: float = 2e-6) -> None:
    """Within `error` of the largest value and one rounding of the exact result to got's dtype; and
    of its sign, wherever that is clear."""
    if not exact.numel():
        assert not got.numel()
        return
    scale = float(exact.abs().max())
    torch.testing.assert_close(
        got.to(F64), exact, rtol=1.01 * ROUNDING[got.dtype], atol=error * scale
    )
    clear = exact.abs() > 2 * error * scale
    assert torch.equal(got.sign()[clear].to(F64), exact.sign()[clear])


def slope_at_the_wrong_place(c: Call) -> Tensor:
    """dx of an implementation that takes SiLU's slope at x̂ instead of at weight * x̂ + bias."""
    _, mean, rstd = exact_forward(c)
    x, grad = c.x.to(F64), c.grad.to(F64)
    shape = (x.shape[0], c.groups, -1)
    hat = ((x.reshape(shape) - mean[..., None]) * rstd[..., None]).reshape(x.shape)
    s = torch.sigmoid(hat)
    h = grad * s * (1 + hat * (1 - s))
    bare = c._replace(x=x, grad=h, act=None)
    return exact_backward(bare)[0]
