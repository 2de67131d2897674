"""Noise that belongs to an image: the keys of the counter-based generator all ops share.

Every random number of this package is a word of Philox4x32-10 (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3"). The key comes from (seed, image id), the counter is (block of four
elements, draw, step, stream). So a draw depends on the image and never on batch size, order, worker
or resume, and a kernel can make it again in registers instead of reading it from memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from .validation import is_integer

_MASK = (1 << 64) - 1


class Stream(IntEnum):
    """What a draw is for; streams never share numbers."""

    DIFFUSION = 0
    RANDOM_START = 1
    QUANTIZE = 2
    RANDOM_SIGN = 3


def _mix64(z: int) -> int:
    """A bijection on 64 bits: every input bit moves every output bit (Stafford's mix 13)."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _signed(z: int) -> int:
    return z - (1 << 64) if z >> 63 else z


def image_id(data: bytes) -> int:
    """A 64-bit id of an image from its content: eight bytes of BLAKE2b, as a signed int64."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def _counters(name: str, value: int | np.ndarray | Tensor, batch: int) -> list[int]:
    values = value.tolist() if isinstance(value, (Tensor, np.ndarray)) else value
    values = list(values) if isinstance(values, Iterable) else [values] * batch
    if len(values) != batch:
        raise ValueError(f"noise_key: {name}: got {len(values)} values, expected 1 or {batch}")
    for v in values:
        if not is_integer(v) or not 0 <= v < 2**32:
            raise ValueError(f"noise_key: {name}: got {v!r}, expected an integer in [0, 2**32)")
    return [int(v) for v in values]


def noise_key(
    seed: int,
    image_ids: Sequence[int] | np.ndarray | Tensor,  # [B]
    *,
    draw: int | np.ndarray | Tensor = 0,  # or [B]
    step: int | np.ndarray | Tensor = 0,  # or [B]
    stream: int | np.ndarray | Tensor = Stream.DIFFUSION,  # or [B]
    device: torch.device | str | None = None,
) -> Tensor:  # int64 [B, 3]
    """The generator's state for a batch, one row an image, ready for any op's ``key`` argument.

    Column 0 is the 64-bit Philox key, mixed from ``seed`` and the image id; column 1 packs
    ``draw | step << 32``; column 2 is ``stream``. The same id may come several times with different
    draws: several draws of one image in one batch.

    Args:
        seed: any integer; taken modulo 2**64.
        image_ids: 64-bit ids, e.g. from `image_id`; signed or unsigned.
        draw, step, stream: counters in [0, 2**32), one for all images or one each; streams below
            2**16 are `Stream`'s.
        device: where the ops' tensors live; default the CPU.

    Raises:
        ValueError, TypeError: a counter out of range, of the wrong length, or an id not an integer.
    """
    given = image_ids.tolist() if isinstance(image_ids, (Tensor, np.ndarray)) else image_ids
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes)):
        raise TypeError(f"noise_key: image_ids: got {image_ids!r}, expected integers, one an image")
    if not is_integer(seed):
        raise TypeError(f"noise_key: seed: got {seed!r}, expected an integer")
    ids = list(given)
    for i in ids:
        if not is_integer(i):
            raise TypeError(f"noise_key: image_ids: got {i!r} among them, expected integers")
    seed, ids = int(seed), [int(i) for i in ids]
    draws, steps = _counters("draw", draw, len(ids)), _counters("step", step, len(ids))
    streams = _counters("stream", stream, len(ids))
    mixed_seed = _mix64((seed + 0x9E3779B97F4A7C15) & _MASK)
    rows = [
        [_signed(_mix64(mixed_seed ^ (i & _MASK))), _signed(d | s << 32), purpose]
        for i, d, s, purpose in zip(ids, draws, steps, streams, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.int64, device=device).reshape(len(ids), 3)
