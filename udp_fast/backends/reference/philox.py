"""The noise contract, executable: Philox4x32-10 words and the numbers made of them.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". Words are int64 tensors holding
unsigned 32-bit values, since torch has no arithmetic on uint32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32_10(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox on broadcastable int64 tensors of 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The 64-bit products wrap into int64; their bits, and so both halves, are right.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def words(
    key: Tensor,  # [B, 3] from `noise_key`
    numel: int,
) -> Tensor:  # [B, ceil(numel / 4), 4]
    """The words of every image's first ``numel`` elements, four a block."""
    block = torch.arange((numel + 3) // 4, device=key.device)[None, :]
    state, counters, stream = (column[:, None] for column in key.unbind(1))
    out = philox4x32_10(
        (block, counters & _MASK, (counters >> 32) & _MASK, stream & _MASK),
        (state & _MASK, (state >> 32) & _MASK),
    )
    return torch.stack([w.expand(len(key), -1) for w in out], -1)


def normals(key: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """N(0, 1) of ``shape`` = [B, ...] by the method of Box and Muller (1958), in float64.

    Of a pair of words the first gives the radius from 23 bits, the second the angle: a sign (bit
    31, half a turn), a swap (bit 30) and 23 bits of a quarter turn around zero, which together
    cover the circle evenly. Both are exact in float32: every backend starts from the same reals.
    """
    numel = math.prod(shape[1:])
    drawn = words(key, numel)
    pairs = drawn.reshape(len(key), drawn.shape[1] * 2, 2)
    first, second = pairs.unbind(-1)
    u = ((first >> 9).double() + 0.5) * 2.0**-23
    radius = (-2 * u.log()).sqrt() * torch.where((second >> 31) & 1 == 1, -1.0, 1.0)
    angle = (((second >> 7) & 0x7FFFFF).double() * 2.0**-23 - 0.5) * (math.pi / 2)
    x, y = radius * angle.cos(), radius * angle.sin()
    swap = (second >> 30) & 1 == 1
    out = torch.stack([torch.where(swap, y, x), torch.where(swap, x, y)], -1)
    return out.flatten(1)[:, :numel].to(dtype).reshape(shape)


def uniforms(key: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """U[0, 1) of ``shape`` = [B, ...], multiples of 2^-24: one word an element."""
    numel = math.prod(shape[1:])
    drawn = (words(key, numel).flatten(1)[:, :numel] >> 8).to(dtype) * 2.0**-24
    return drawn.reshape(shape)
