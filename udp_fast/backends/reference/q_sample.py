"""q_sample, the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from .arithmetic import compute_dtype, per_image
from .philox import normals


def coefficients(value: Tensor, path: str) -> tuple[Tensor, Tensor]:
    """(a, s) where the schedule has ``value``: the weights of the image and of the noise."""
    if path == "flow":
        return 1 - value, value
    return value.sqrt(), (1 - value).sqrt()


def q_sample(
    x: Tensor,
    t: Tensor,
    table: Tensor,
    noise: Tensor | None,
    key: Tensor | None,
    path: str,
    return_noise: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    f = compute_dtype(x, noise)
    if noise is None:
        assert key is not None
        noise = normals(key, x.shape, f)
    noise = noise.to(f)
    a, s = coefficients(per_image(table[t], x).to(f), path)
    x_t = torch.empty_like(x, dtype=out_dtype).copy_(a * x.to(f) + s * noise)
    if not return_noise:
        return x_t, x_t.new_empty((0,))
    return x_t, torch.empty_like(x_t).copy_(noise)
