"""pgd_step_ on csrc/cuda: one pass over memory, one more for each norm that is needed."""

from __future__ import annotations

from collections.abc import Sequence

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


def pgd_step_multi_(
    deltas: Sequence[Tensor],  # N perturbations of any sizes, one dtype; updated in place
    grads: Sequence[Tensor],  # shaped like deltas
    xs: Sequence[Tensor],  # the originals, shaped like deltas
    alpha: Tensor,  # [] or [N]
    eps: Tensor,  # [] or [N]
    step: str,  # "sign" or "raw"
    maximize: bool,
    lo: float,
    hi: float,
    out_lo: float,
    out_hi: float,
    out_dtype: torch.dtype,
) -> tuple[list[Tensor], Tensor]:
    """`pgd_step_` on the linf ball over many images of different sizes, 64 in a launch.

    Each image's tensors must be dense in the same memory order; one that differs is copied.
    """
    advs = [torch.empty_like(d, dtype=out_dtype) for d in deltas]
    skipped = torch.zeros(len(deltas), dtype=torch.int64, device=deltas[0].device)
    alive: list[Tensor] = []

    def address(tensor: Tensor, like: Tensor) -> int:
        if tensor.stride() != like.stride():
            tensor = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
            alive.append(tensor)
        return tensor.data_ptr()

    # A delta with holes between its elements is worked on as a dense copy.
    dense = [torch.empty_like(d).copy_(d) if not _is_dense(d) else d for d in deltas]
    with native.stream_of(deltas[0]) as stream:
        images = [
            (d.data_ptr(), address(g, d), address(x, d), address(adv, d), d.numel())
            for d, g, x, adv in zip(dense, grads, xs, advs, strict=True)
        ]
        types = tuple(native.DTYPES[v.dtype] for v in (dense[0], grads[0], xs[0], advs[0]))
        native.module().pgd_step_multi(
            images,
            types,
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
        for delta, updated in zip(deltas, dense, strict=True):
            native.deliver(updated, delta)
    return advs, skipped


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one run of memory, in some order of the dimensions."""
    run = 1
    for step, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and step != run:
            return False
        run *= size
    return True
