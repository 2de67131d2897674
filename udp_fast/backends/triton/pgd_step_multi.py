"""pgd_step_multi_ in Triton: images of any sizes in one launch.

A Triton kernel takes no list of pointers, so the addresses travel in one int64 tensor: for each image
its operands' addresses, its size and its first program; then for each program its image. It is copied
from pinned memory, which no stream waits for. A CUDA graph would replay that copy from memory that by
then is something else: while one is captured, images are stepped one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.pgd_step_multi import image_by_image
from ..runs import as_runs
from .launch import launch, number, width_of
from .pgd import bound_in
from .pgd_step import pgd_step_, ranges, size_of_step, step_tile
from .rows import inside_of, lanes, per_image, row_part, turns
from .walk import CHUNK

_TYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.uint8: tl.uint8,
}
#: Numbers of an image in the table: four addresses, elements, first program.
_COLUMNS = 6


@triton.jit
def _operand(row, column: tl.constexpr, first, dtype: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = tl.load(row + column).to(tl.pointer_type(dtype))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + first


@triton.jit
def pgd_step_multi_kernel(
    table,  # *int64 [images, COLUMNS]
    owners,  # *int64 [programs] the image of each
    alpha,  # float32, or *float32 with alpha_stride, else None
    alpha_stride,
    eps,  # the same
    eps_stride,
    lo,
    hi,
    width,
    out_lo,
    out_hi,
    out_scale,
    out_shift,
    skipped,  # *int64 [images], zero
    SIGN: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    MAPS: tl.constexpr,
    DELTA: tl.constexpr,  # element types
    GRAD: tl.constexpr,
    X: tl.constexpr,
    ADV: tl.constexpr,
    ALIGNED: tl.constexpr,  # every address is a multiple of 16
    COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    program = tl.program_id(0)
    image = tl.load(owners + program)
    row = table + image * COLUMNS
    chunk = program - tl.load(row + 5).to(tl.int32)
    first, size = row_part(chunk, tl.load(row + 4))
    delta = _operand(row, 0, first, DELTA, ALIGNED)
    grad = _operand(row, 1, first, GRAD, ALIGNED)
    x = _operand(row, 2, first, X, ALIGNED)
    adv = _operand(row, 3, first, ADV, ALIGNED)
    move = size_of_step(alpha, alpha_stride, image, MAXIMIZE)
    bound = bound_in(per_image(eps, eps_stride, image), DELTA)
    count = tl.zeros([GROUPS, WIDTH], tl.int32)
    for tail in tl.static_range(2):
        begin, end = turns(size, tail, GROUPS * WIDTH)
        for start in range(begin, end, GROUPS * WIDTH):
            i = start + lanes(GROUPS, WIDTH)
            count += step_tile(
                delta + i,
                grad + i,
                x + i,
                None,
                adv + i,
                inside_of(i, size, tail),
                move,
                bound,
                1.0,
                lo,
                hi,
                width,
                out_lo,
                out_hi,
                out_scale,
                out_shift,
                SIGN,
                MAPS,
            )
    total = tl.sum(count)
    # Integers may be added in any order; hardly ever is there one to add.
    tl.atomic_add(skipped + image, total.to(tl.int64), mask=total > 0, sem="relaxed")


def _table(images: Sequence[Sequence[Tensor]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(table [images, _COLUMNS], owners [programs]), one copy for both."""
    rows: list[int] = []
    owners: list[int] = []
    for i, image in enumerate(images):
        elements = image[0].numel()
        rows += [*(t.data_ptr() for t in image), elements, len(owners)]
        owners += [i] * -(-elements // CHUNK)
    both = torch.tensor([*rows, *owners], dtype=torch.int64, pin_memory=device.type == "cuda")
    both = both.to(device, non_blocking=True)
    return both[: len(rows)], both[len(rows) :]


_one_by_one = image_by_image(pgd_step_)


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
    device = deltas[0].device
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        rest = (alpha, eps, step, maximize, lo, hi, out_lo, out_hi)
        return _one_by_one(deltas, advs, grads, xs, *rest)
    # Each image is walked as one run of memory, in whatever order that has the elements.
    images = [
        tuple(as_runs(delta, operands))
        for delta, *operands in zip(deltas, grads, xs, advs, strict=True)
    ]
    skipped = torch.zeros(len(images), dtype=torch.int64, device=device)
    table, owners = _table(images, device)
    if owners.numel() == 0:
        return skipped
    names = ("DELTA", "GRAD", "X", "ADV")
    types = {name: _TYPES[t.dtype] for name, t in zip(names, images[0], strict=True)}
    launch(
        pgd_step_multi_kernel,
        owners.numel(),
        width_of(deltas[0], advs[0]),
        table,
        owners,
        *number(alpha, device),
        *number(eps, device),
        *ranges(lo, hi, out_lo, out_hi),
        skipped,
        SIGN=step == "sign",
        MAXIMIZE=maximize,
        MAPS=lo != out_lo or hi != out_hi,
        ALIGNED=all(t.data_ptr() % 16 == 0 for image in images for t in image),
        COLUMNS=_COLUMNS,
        **types,
    )
    for delta, adv, (updated, *_, written) in zip(deltas, advs, images, strict=True):
        if updated is not delta:
            delta.copy_(updated)
        if written is not adv:
            adv.copy_(written)
    return skipped
