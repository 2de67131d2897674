"""pgd_step_multi, the definition: `pgd_step_` of one image after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .pgd_step import pgd_step_


def image_by_image(
    step_one: Callable[..., tuple[Tensor, Tensor]],
) -> Callable[..., Tensor]:
    """The op, given a backend's `pgd_step_`."""

    def pgd_step_multi_(
        deltas: Sequence[Tensor],
        advs: Sequence[Tensor],
        grads: Sequence[Tensor],
        xs: Sequence[Tensor],
        alpha: Tensor,
        eps: Tensor,
        step: str,
        maximize: bool,
        lo: float,
        hi: float,
        out_lo: float,
        out_hi: float,
    ) -> Tensor:
        options = (None, step, "linf", maximize, lo, hi, out_lo, out_hi)
        skipped = []
        for i, (delta, adv, grad, x) in enumerate(zip(deltas, advs, grads, xs, strict=True)):
            sizes = (v[i] if v.dim() else v for v in (alpha, eps))
            operands = (delta[None], grad[None], x[None], *sizes, *options, adv.dtype)
            skipped.append(step_one(*operands, adv[None])[1])
        return torch.cat(skipped)

    return pgd_step_multi_


pgd_step_multi_ = image_by_image(pgd_step_)
