"""How a tensor [N, C, ...] lies in memory, for kernels that have numbers for each channel.

They take dense tensors in either order: a channel's pixels are neighbours (contiguous), or a pixel's
channels are (channels last).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class Strides(NamedTuple):
    """In elements; pixels are all dimensions but the first two, as one."""

    image: int
    channel: int
    pixel: int


def shape_of(x: Tensor) -> tuple[int, int, int]:
    """(images, channels, pixels); a row of [N, C] is C channels of one pixel."""
    return x.shape[0], x.shape[1], x.shape[2:].numel()


def _strides(shape: torch.Size, stride: tuple[int, ...]) -> Strides | None:
    channels, pixels = shape[1], shape[2:].numel()

    def is_dense(order: Sequence[int]) -> bool:
        step = 1
        for d in reversed(order):
            if shape[d] != 1 and stride[d] != step:
                return False
            step *= shape[d]
        return True

    # Of one pixel, or of one channel, both are true: what there are more of are neighbours.
    if (pixels > 1 or channels == 1) and is_dense(range(len(shape))):
        return Strides(channels * pixels, pixels, 1)
    if is_dense([0, *range(2, len(shape)), 1]):
        return Strides(channels * pixels, 1, channels)
    return None


_cached_strides = lru_cache(maxsize=1024)(_strides)


def strides(x: Tensor) -> Strides | None:
    """Those of a dense tensor; None of any other."""
    static = all(type(n) is int for n in x.shape)
    return (_cached_strides if static else _strides)(x.shape, x.stride())


def dense(x: Tensor) -> Tensor:
    """x, or a contiguous copy where it is not dense in one of the orders."""
    return x if strides(x) is not None else x.contiguous()


def laid_like(x: Tensor, other: Tensor) -> Tensor:
    """``other`` in the order and dtype of a dense x: itself, if it has them."""
    if other.dtype == x.dtype and strides(other) == strides(x):
        return other
    return torch.empty_like(x).copy_(other)
