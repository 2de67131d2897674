"""pgd_step_multi on csrc/cuda: 64 images of any sizes in a launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import native
from .pgd_step import STEPS


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
    runs = [d if _is_dense(d) else torch.empty_like(d).copy_(d) for d in deltas]
    images = [
        (d, *(_in_order_of(d, operand) for operand in operands))
        for d, *operands in zip(runs, grads, xs, advs, strict=True)
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


def _steps(tensor: Tensor) -> list[tuple[int, int]]:
    """(stride, size) of the dimensions that have more than one element to step over."""
    return [(s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1]


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one run of memory, in some order of the dimensions."""
    run = 1
    for stride, size in sorted(_steps(tensor)):
        if stride != run:
            return False
        run *= size
    return True


def _in_order_of(run: Tensor, tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it whose elements lie in the order of ``run``'s."""
    if _steps(tensor) == _steps(run):
        return tensor
    return torch.empty_like(run, dtype=tensor.dtype).copy_(tensor)
