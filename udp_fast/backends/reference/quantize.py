"""quantize, the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from .arithmetic import compute_dtype, per_image
from .philox import uniforms

# A budget this close below a whole number of levels means that number: rounding k/255 to float32
# moves it by less than 2**-15 of a level.
LEVEL_SLACK = 2.0**-10


def quantize(
    value: Tensor,
    original: Tensor,
    eps: Tensor,
    key: Tensor | None,
    kind: str,
    lo: float,
    hi: float,
) -> Tensor:
    f = compute_dtype(value)
    base = original.to(f)
    scale = 255 / (hi - lo)
    d = value.to(f) * scale if kind == "delta" else (value.to(f) - lo) * scale - base
    d = torch.where(d.isnan(), 0, d)
    levels = per_image((eps.double() * 255 + LEVEL_SLACK).floor().to(f), value)
    d = d.clamp(-256, 256)
    q = d.round() if key is None else (d + uniforms(key, value.shape, f)).floor()
    q = torch.minimum(torch.maximum(q, -levels), levels)
    return torch.empty_like(original).copy_((base + q).clamp(0, 255))
