"""pgd_step_multi on csrc/cuda: 64 images of any sizes in a launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..runs import as_runs
from . import native
from .pgd_step import STEPS


def not_supported_reasons(*lists: Sequence[Tensor]) -> list[str]:
    """Why these deltas, advs, grads and xs are not served: a launch has one dtype for all of a list."""
    for tensors in lists:
        dtypes = {tensor.dtype for tensor in tensors}
        if len(dtypes) > 1:
            return [
                f"a list has tensors of {' and '.join(sorted(map(str, dtypes)))}, not of one dtype"
            ]
    return []


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
    # The kernel walks each image as one run of memory, in whatever order that has the elements.
    images = [
        tuple(as_runs(delta, operands))
        for delta, *operands in zip(deltas, grads, xs, advs, strict=True)
    ]
    skipped = torch.zeros(len(deltas), dtype=torch.int64, device=deltas[0].device)
    with native.stream_of(deltas[0]) as stream:
        native.module().pgd_step_multi(
            [(*(t.data_ptr() for t in image), image[0].numel()) for image in images],
            tuple(native.DTYPES[t.dtype] for t in images[0]),
            native.per_image(alpha),
            native.per_image(eps),
            STEPS[step],
            maximize,
            lo,
            hi,
            out_lo,
            out_hi,
            skipped.data_ptr(),
            stream,
        )
        for delta, adv, (updated, *_, written) in zip(deltas, advs, images, strict=True):
            native.deliver(updated, delta)
            native.deliver(written, adv)
    return skipped
