"""pgd_step_multi on csrc/cpu: one launch after the other, of images where they lie.

Not `image_by_image` of `pgd_step_`: views of four operands, and what is prepared for each call, would take
longer than a small image's step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .native import deliver, fresh, image_operand, image_shape, module
from .pgd_step import NORMS, STEPS


def _of(value: Tensor, image: int) -> tuple[int, int]:
    """Address and stride of an image's number, of one for all or one each."""
    at = value.stride(0) * image if value.dim() else 0
    return value.data_ptr() + at * value.element_size(), 0


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
    skipped = torch.zeros(len(deltas), dtype=torch.int64)
    counts, launch, threads = skipped.data_ptr(), module().pgd_step_, torch.get_num_threads()
    how = STEPS[step], NORMS["linf"], maximize, lo, hi, out_lo, out_hi
    for i, (delta, adv, grad, x) in enumerate(zip(deltas, advs, grads, xs, strict=True)):
        if delta.numel() == 0:
            continue
        to_delta, updated = image_operand(delta)
        to_grad, grad_ = image_operand(grad)
        to_x, x_ = image_operand(x)
        to_adv, written = image_operand(fresh(adv))
        launch(
            image_shape(torch.Size((1, *delta.shape))),
            to_delta,
            to_grad,
            to_x,
            None,
            to_adv,
            _of(alpha, i),
            _of(eps, i),
            *how,
            counts + skipped.element_size() * i,
            threads,
        )
        deliver(updated, delta)
        deliver(written, adv)
    return skipped
