"""pgd_step, the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from .arithmetic import compute_dtype, per_image


def original_as_float(x: Tensor, lo: float, hi: float, dtype: torch.dtype) -> Tensor:
    """x in [lo, hi]; a uint8 level v means lo + v * (hi - lo) / 255."""
    if x.dtype != torch.uint8:
        return x.to(dtype) + 0.0  # no zero of it negative
    return (x.to(dtype) / 255) * (hi - lo) + lo


def bound_in_dtype(eps: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest value of ``dtype`` that is <= eps, in eps' dtype."""
    if dtype not in (torch.float16, torch.bfloat16):
        return eps
    rounded = eps.to(dtype)
    below = (rounded.view(torch.int16) - 1).view(dtype)
    return torch.where(rounded.to(eps.dtype) > eps, below, rounded).to(eps.dtype)


def pgd_step_(
    delta: Tensor,
    grad: Tensor,
    x: Tensor,
    alpha: Tensor,
    eps: Tensor,
    mask: Tensor | None,
    step: str,
    norm: str,
    maximize: bool,
    lo: float,
    hi: float,
    out_lo: float,
    out_hi: float,
    out_dtype: torch.dtype,
    adv: Tensor | None = None,  # where to put it
) -> tuple[Tensor, Tensor]:
    f = compute_dtype(delta, grad, x)
    batch = delta.shape[0]
    finite = grad.isfinite()
    skipped = (~finite).reshape(batch, grad[:1].numel()).sum(1)
    g = torch.where(finite, grad, 0).to(f)
    coef = per_image(alpha.to(f), delta) * (1 if maximize else -1)
    if step == "sign":
        g = g.sign()
    elif step == "l2":
        length = _norm(g)
        # Below the smallest normal float32 there is no direction to speak of.
        moves = length >= torch.finfo(torch.float32).tiny
        coef = torch.where(moves, coef.double() / length, 0).to(f)
    if mask is not None:
        coef = coef * mask.to(f)
    limit = torch.finfo(torch.float32).max
    d = (delta.to(f) + coef * g).clamp(-limit, limit)

    if norm == "linf":
        bound = per_image(bound_in_dtype(eps, delta.dtype).to(f), delta)
        d = _clamp(d, 0.0 - bound, bound)
    else:
        length, bound = _norm(d), per_image(eps.double(), delta)
        d = d * torch.where(length > bound, bound / length, 1).to(f)

    x = original_as_float(x, lo, hi, f)
    d = d + (x - x)  # a NaN where x is not finite, and no negative zero: see `_clamp`
    delta.copy_(_clamp(d, lo - x, hi - x))

    image = x + delta.to(f)
    if (out_lo, out_hi) != (lo, hi):
        scale = (out_hi - out_lo) / (hi - lo)
        image = image * scale + (out_lo - lo * scale)
    image = _clamp(image, out_lo, out_hi)
    adv = torch.empty_like(delta, dtype=out_dtype) if adv is None else adv
    return adv.copy_(image), skipped


def _clamp(v: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """A NaN in v passes. Backends differ in how they order zeros, so none is negative here."""
    v = torch.where(v < low, low, v)
    return torch.where(v > high, high, v)


def _norm(v: Tensor) -> Tensor:
    """The L2 norm of each image in float64, broadcastable to ``v``."""
    squares = v.double().square().reshape(v.shape[0], v[:1].numel()).sum(1)
    return per_image(squares.sqrt(), v)
