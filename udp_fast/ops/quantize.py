"""quantize: the 8-bit image that is written, within the budget exactly.

    d   = perturbation in levels: value * 255 / (hi - lo), or the image's minus the original's
    q   = d rounded to the nearest level (ties to even), or floor(d + u) with u ~ U[0, 1) from a key
    out = original + clamp(q, -levels_b, levels_b), clamped to [0, 255]

levels_b = floor(eps_b * 255), where an eps less than 2^-10 of a level below a whole number of
levels means that number (8/255 in float32 is 8 levels). So max|out - original| <= levels_b whatever
came in; a NaN leaves the original's pixel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends import dispatch
from . import validation as check
from .budget import Budget

KINDS = ("delta", "image")

torch.library.define(
    "udp_fast::quantize",
    "(Tensor value, Tensor original, Tensor eps, Tensor? key, str kind, float lo, float hi)"
    " -> Tensor",
)


def _quantize(*args: Any) -> Tensor:
    out = dispatch.call("quantize", *args)
    assert isinstance(out, Tensor)
    return out


torch.library.impl("udp_fast::quantize", "CompositeExplicitAutograd", _quantize)


def _fake(value: Tensor, original: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(original)


torch.library.register_fake("udp_fast::quantize", _fake)


def quantize(
    value: Tensor,  # [B, ...]
    original: Tensor,  # [B, ...] uint8
    *,
    eps: float | Tensor | Budget,
    kind: str = "delta",
    range: tuple[float, float] = (0.0, 1.0),
    key: Tensor | None = None,  # [B, 3]
) -> Tensor:  # [B, ...] uint8
    """The uint8 image nearest to the perturbed one within the budget, in original's memory format.

    Args:
        value: float [B, ...]: the perturbation (kind="delta") or perturbed image ("image").
        original: uint8, same shape.
        eps: the budget as a fraction of the range, in [0, 1] units whatever ``range`` is; a number,
            a `Budget`, or a float tensor of shape [] or [B].
        kind: "delta" (default, exact in every dtype) or "image" (bfloat16 images are coarser than a
            level: prefer "delta").
        range: (lo, hi) of the images that value belongs to.
        key: int64 [B, 3] from `noise_key`: stochastic rounding, unbiased where the budget allows.

    Not differentiable.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or value.
    """
    op = "quantize"
    check.check_batched(op, "value", value, check.FLOATS)
    check.check_tensor(op, "original", original, (torch.uint8,), like=value)
    largest: Any = eps  # of a Budget it is known
    if isinstance(eps, Tensor) and eps.is_cpu and eps.numel() and not torch.compiler.is_compiling():
        largest = eps.max().item()
    if check.is_number(largest) and largest > 1:
        raise ValueError(
            f"{op}: eps: got {largest:g}, expected a fraction in [0, 1] (8/255, not 8)"
        )
    eps = check.per_image(op, "eps", eps, value.shape[0], value.device)
    check.check_choice(op, "kind", kind, KINDS)
    lo, hi = check.check_range(op, "range", range)
    if key is not None:
        check.check_key(op, key, value)
    value = value.detach()
    write = _quantize if check.is_plain(value) else torch.ops.udp_fast.quantize
    out = write(value, original, eps, key, kind, lo, hi)
    assert isinstance(out, Tensor)
    return out
