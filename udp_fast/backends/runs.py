"""Images as runs of memory: what a kernel needs that takes an image by address and length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def as_runs(delta: Tensor, others: Iterable[Tensor]) -> Iterator[Tensor]:
    """Each tensor, or a copy of it, so that all fill one run of memory in the same order.

    The order is delta's where it has one, whatever that is; the others are shaped like it.
    """
    run = delta if _is_dense(delta) else torch.empty_like(delta).copy_(delta)
    yield run
    for tensor in others:
        same = _steps(tensor) == _steps(run)
        yield tensor if same else torch.empty_like(run, dtype=tensor.dtype).copy_(tensor)


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
