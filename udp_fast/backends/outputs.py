"""Tensors that ops give back: in the layout they promise, and of size 0 where nobody wants them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Up to so many keys attention's backward for dq alone gets neither out nor lse.
ONE_TILE = 128


def needs_no_statistics(needs: Sequence[bool], keys: int) -> bool:
    """Whether attention's backward for these gradients does without out and lse."""
    return keys <= ONE_TILE and not (needs[1] or needs[2])


def gradients(
    needs: Sequence[bool], inputs: tuple[Tensor, Tensor | None, Tensor | None]
) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for each input's gradient, in its order of strides; size 0 where none is needed."""
    first, second, third = (
        torch.empty_like(x) if needed and x is not None else inputs[0].new_empty((0,))
        for x, needed in zip(inputs, needs, strict=True)
    )
    return first, second, third


def in_strides_of(x: Tensor, value: Tensor) -> Tensor:
    """``value``, dense, in x's order of strides: itself, if it has it."""
    if value.stride() == x.stride():
        return value
    result = torch.empty_like(x)
    return value if value.stride() == result.stride() else result.copy_(value)
