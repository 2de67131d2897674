"""pgd_step_ on csrc/cuda: one pass over memory, one more for each norm that is needed."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native

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
) -> tuple[Tensor, Tensor]:
    adv = torch.empty_like(delta, dtype=out_dtype)
    skipped = delta.new_zeros(delta.shape[0], dtype=torch.int64)
    if delta.numel() == 0:
        return adv, skipped
    shape = native.image_shape(delta.shape)
    to_delta, updated = native.operand(delta)
    to_grad, grad_ = native.operand(grad)
    to_x, x_ = native.operand(x)
    to_mask, mask_ = native.operand(None if mask is None else mask.expand(delta.shape))
    to_adv, written = native.operand(adv)
    with native.stream_of(delta) as stream:
        module = native.module()
        size = module.pgd_step_workspace(shape, STEPS[step], NORMS[norm])
        scratch = native.workspace(size, delta)
        module.pgd_step_(
            shape,
            to_delta,
            to_grad,
            to_x,
            to_mask,
            to_adv,
            native.per_image(alpha),
            native.per_image(eps),
            STEPS[step],
            NORMS[norm],
            maximize,
            lo,
            hi,
            out_lo,
            out_hi,
            skipped.data_ptr(),
            scratch.data_ptr(),
            stream,
        )
        native.deliver(updated, delta)
        native.deliver(written, adv)
    return adv, skipped
