"""Random operands for the contract tests: any dtype, any layout, with the extremes mixed in."""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
FLOATS = (F32, F16, BF16)
LAYOUTS = ("contiguous", "channels_last", "expanded", "strided", "reversed_dims")

#: ±0, the smallest subnormals, tiny, ordinary, huge, infinite and not a number.
EXTREMES = (
    0.0,
    -0.0,
    1e-45,
    -1e-45,
    6e-8,
    1e-38,
    -1e-3,
    0.5,
    6e4,
    3e38,
    math.inf,
    -math.inf,
    math.nan,
)

#: Sizes around the vector widths, the tile length and nothing at all.
shapes = st.one_of(
    st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(1, 9), st.integers(1, 17)),
    st.tuples(st.integers(1, 3), st.sampled_from([1, 3, 4, 7, 8, 9, 1023, 1025, 2500])),
    st.sampled_from(
        [(1, 1, 1, 1), (2, 3, 32, 33), (1, 3, 40, 40), (3, 4, 16, 16), (2, 2, 3, 5, 4)]
    ),
)


class Stop(torch.autograd.Function):
    """Its argument, and backward no gradient at all."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


def opcheck(op: Any, arguments: tuple[Any, ...]) -> None:
    """torch's rules for a registered op, with the backend that is pinned. What the registration makes of
    autograd and of a trace may depend on the device, not on who computes there; it takes long, so on the
    CPU it is asked with the reference, which is always there."""
    rules = ["test_schema", "test_faketensor"]
    if os.environ["UDP_FAST_BACKEND"] == "reference" or torch.empty(0).is_cuda:
        rules += ["test_autograd_registration", "test_aot_dispatch_dynamic"]
    torch.library.opcheck(op, arguments, test_utils=rules)


def here(tensor: Tensor) -> Tensor:
    """The tensor on the device of the backend under test, where everything else is made."""
    return tensor.to(torch.empty(0).device)


def timesteps(batch: int, seed: int, below: int = 50) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return here(torch.randint(0, below, (batch,), generator=g, device="cpu"))


def in_layout(values: Tensor, layout: str) -> Tensor:
    """The same values, laid out as asked; a layout that a shape cannot have is contiguous."""
    if layout == "channels_last" and values.dim() == 4:
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "channels_last" and values.dim() == 5:
        return values.contiguous(memory_format=torch.channels_last_3d)
    if layout == "expanded" and values.shape[0] > 0:
        return values[:1].clone().expand(values.shape)
    if layout == "strided" and values.dim() > 1:
        wide = values.new_zeros([*values.shape[:-1], values.shape[-1] * 2 + 1])
        wide[..., 1::2] = values
        return wide[..., 1::2]
    if layout == "reversed_dims":
        order = list(range(values.dim()))[::-1]
        return values.permute(order).contiguous().permute(order)
    return values.contiguous()


def floats(
    shape: tuple[int, ...],
    seed: int,
    dtype: torch.dtype = F32,
    layout: str = "contiguous",
    scale: float = 1.0,
    extremes: bool = False,
) -> Tensor:
    """Normal values times ``scale``; with ``extremes`` about one in four is one of `EXTREMES`."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=g, device="cpu") * scale
    if extremes:
        which = torch.randint(len(EXTREMES), shape, generator=g, device="cpu")
        picks = torch.tensor(EXTREMES, device="cpu")[which]
        values = torch.where(torch.rand(shape, generator=g, device="cpu") < 0.25, picks, values)
    return in_layout(here(values.to(dtype)), layout)


def images(
    shape: tuple[int, ...],
    seed: int,
    dtype: torch.dtype,
    layout: str = "contiguous",
    lo: float = 0.0,
    hi: float = 1.0,
) -> Tensor:
    """Pixels in [lo, hi], a third of them at its ends; uint8 levels for torch.uint8."""
    g = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, shape, generator=g, device="cpu")
    ends = torch.randint(0, 6, shape, generator=g, device="cpu")
    levels = here(torch.where(ends == 0, 0, torch.where(ends == 1, 255, levels)))
    if dtype == torch.uint8:
        return in_layout(levels.to(torch.uint8), layout)
    return in_layout((levels / 255 * (hi - lo) + lo).to(dtype), layout)


def ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The spacing of ``dtype`` at float64 ``values`` (not below the smallest normal number)."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(values.abs().clamp(min=info.tiny))[1] - 1
    return info.eps * torch.exp2(exponent.double())


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal dtype, shape and bits, the sign of zero included; any NaN is like any other."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.is_floating_point():
        a, b = (torch.where(v.isnan(), math.nan, v) for v in (a, b))
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))
