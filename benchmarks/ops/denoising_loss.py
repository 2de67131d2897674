"""denoising_loss, forward and backward to the prediction, weighted per image."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from udp_fast.ops import denoising_loss, noise_key

from ..measure import OURS, Bar, Case, named, size_of
from .shapes import IMAGES, LATENTS


def eager(pred: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The weighted loss as diffusers' training scripts write it."""
    loss = F.mse_loss(pred, target, reduction="none")
    return (loss.mean(dim=list(range(1, loss.dim()))) * weight).mean()


def unweighted(pred: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The least that torch can do: no weights."""
    return F.mse_loss(pred, target)


def backward(loss: Callable[[Tensor], Tensor], pred: Tensor) -> Callable[[], object]:
    def run() -> Tensor:
        (gradient,) = torch.autograd.grad(loss(pred), pred)
        return gradient

    return run


def cases(dtype: torch.dtype = torch.float32) -> Iterator[Case]:
    for shape in (IMAGES, LATENTS):
        pred = torch.randn(shape, dtype=dtype).requires_grad_()
        target = torch.randn(shape, dtype=dtype)
        weight = torch.rand(shape[0])
        key = noise_key(0, range(shape[0]))
        full = shape == IMAGES
        compiled = torch.compile(eager, dynamic=False)
        # Eager has stored what `q_sample` drew: for it the two forms are one.
        others = {
            name: backward(lambda p, f=f, t=target, w=weight: f(p, t, w), pred)
            for name, f in (("eager", eager), ("compile", compiled), ("unweighted", unweighted))
        }
        explicit = backward(lambda p, t=target, w=weight: denoising_loss(p, t, weight=w), pred)
        redrawn = backward(lambda p, k=key, w=weight: denoising_loss(p, key=k, weight=w), pred)
        yield Case(
            "denoising_loss",
            named("given target", dtype),
            shape,
            {OURS: explicit, **others},
            size_of(pred, target, pred),
            (Bar("eager", 4.5),) if full else (),
        )
        yield Case(
            "denoising_loss",
            named("redrawn noise", dtype),
            shape,
            {OURS: redrawn, **others},
            size_of(pred, pred),
            (Bar("eager", 4),) if full else (),
        )
