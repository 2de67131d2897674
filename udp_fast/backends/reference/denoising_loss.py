"""denoising_loss, the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from .arithmetic import compute_dtype, per_image
from .philox import normals
from .q_sample import coefficients


def derived_target(
    pred: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    table: Tensor | None,
    noise: Tensor | None,
    key: Tensor | None,
    prediction_type: str,
) -> Tensor:
    """What the model should have said, in the dtype that the op calculates in."""
    f = compute_dtype(pred, x, noise)
    if noise is not None:
        n = noise.to(f)
    elif key is not None:
        n = normals(key, pred.shape, f)
    if prediction_type == "epsilon":
        return n
    assert x is not None
    x = x.to(f)
    if prediction_type == "sample":
        return x
    if prediction_type == "flow":
        return n - x
    assert table is not None
    assert t is not None
    a, s = coefficients(per_image(table[t], x).to(f), "diffusion")
    return a * n - s * x


def denoising_loss(
    pred: Tensor,
    target: Tensor | None,
    x: Tensor | None,
    t: Tensor | None,
    table: Tensor | None,
    noise: Tensor | None,
    key: Tensor | None,
    weight: Tensor | None,
    prediction_type: str,
    with_grad: bool,
    grad_scale: float,
) -> tuple[Tensor, Tensor]:
    f = compute_dtype(pred, target, x, noise)
    if target is None:
        target = derived_target(pred, x, t, table, noise, key, prediction_type)
    residual = pred.to(f) - target.to(f)
    batch, numel = pred.shape[0], pred[0].numel() if pred.shape[0] else 0
    w = torch.ones(batch, dtype=f, device=pred.device) if weight is None else weight.to(f)
    # An image without elements has no error: 0, not the 0 / 0 of a mean.
    mean = residual.reshape(batch, numel).double().square().sum(1) / max(numel, 1)
    loss = (w.double() * mean).to(torch.float64 if pred.dtype == torch.float64 else torch.float32)
    if not with_grad:
        return loss, pred.new_empty((0,))
    factor = (grad_scale * 2 / max(numel, 1) * w.double()).to(f)
    grad = per_image(factor, pred) * residual
    return loss, torch.empty_like(pred).copy_(grad)
