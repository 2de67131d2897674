"""pgd_step_ on csrc/cpu: one pass over memory, three where norms are needed."""

from __future__ import annotations

import torch
from torch import Tensor

from .native import deliver, fresh, image_shape, module, operand, per_image

STEPS = {"sign": 0, "l2": 1, "raw": 2}
NORMS = {"linf": 0, "l2": 1}


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
    adv = fresh(torch.empty_like(delta, dtype=out_dtype) if adv is None else adv)
    skipped = torch.zeros(delta.shape[0], dtype=torch.int64)
    if delta.numel() == 0:
        return adv, skipped
    to_delta, updated = operand(delta)
    to_grad, grad_ = operand(grad)
    to_x, x_ = operand(x)
    to_mask, mask_ = operand(None if mask is None else mask.expand(delta.shape))
    to_adv, written = operand(adv)
    module().pgd_step_(
        image_shape(delta.shape),
        to_delta,
        to_grad,
        to_x,
        to_mask,
        to_adv,
        per_image(alpha),
        per_image(eps),
        STEPS[step],
        NORMS[norm],
        maximize,
        lo,
        hi,
        out_lo,
        out_hi,
        skipped.data_ptr(),
        torch.get_num_threads(),
    )
    deliver(updated, delta)
    deliver(written, adv)
    return adv, skipped
