"""image_scale, the definition."""

from __future__ import annotations

from torch import Tensor

from .arithmetic import compute_dtype, per_image


def image_scale(x: Tensor, scale: Tensor) -> Tensor:
    f = compute_dtype(x)
    return (x.to(f) * per_image(scale.to(f), x)).to(x.dtype)


def image_scale_(x: Tensor, scale: Tensor) -> None:
    x.copy_(image_scale(x, scale))
