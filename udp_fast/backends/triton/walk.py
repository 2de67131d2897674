"""How a batch is walked, and what of a tensor a kernel needs to know for it.

A program serves a chunk of one row; in which way depends on the operands' memory order:

  rows         A row is one channel of an image; or a whole image, where all operands have the same
               dense order and no noise needs to know which element is which. Threads take vectors
               of consecutive pixels. Operands whose pixels are not consecutive cost scalar accesses.
  interleaved  All operands are channels last and noise is drawn. A thread takes four pixels of
               three channels, or of each four, which are whole draws and whole vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

#: Elements of a row that a program serves. Sums depend on it: it is never tuned.
CHUNK = 8192
#: Groups of an interleaved image that a program serves: four pixels of three or four channels.
GROUP_CHUNK = 512

Strides = tuple[int, int, int]  # of image, channel and pixel, in elements


class Shape(NamedTuple):
    images: int
    channels: int
    pixels: int


class Walk(NamedTuple):
    """``channels`` rows of ``pixels`` elements an image, ``chunks`` programs a row."""

    images: int
    channels: int
    pixels: int
    chunks: int
    interleaved: int  # 0: by rows; else channels of a thread's group, 3 or 4
    whole: bool  # a row is an image in its memory order

    @property
    def quads(self) -> int:
        """Groups of channels that a pixel of an interleaved image has."""
        return self.channels // self.interleaved if self.interleaved else 1

    @property
    def programs(self) -> int:
        return self.images * self.partials

    @property
    def partials(self) -> int:
        """Programs, and so partial sums, of an image."""
        return self.chunks if self.interleaved else self.channels * self.chunks


def image_shape(shape: Sequence[int]) -> Shape:
    """[B, C, ...] as (images, channels, pixels); a row of [B, N] is N pixels of one channel."""
    pixels = 1
    for n in shape[2:] if len(shape) > 2 else shape[1:]:
        pixels *= n
    return Shape(shape[0], shape[1] if len(shape) > 2 else 1, pixels)


def strides(shape: Sequence[int], stride: Sequence[int]) -> Strides | None:
    """Those of image, channel and pixel, or None where pixels have no common one."""
    first = 2 if len(shape) > 2 else 1
    pixel, run = 1, 1
    for size, step in zip(reversed(shape[first:]), reversed(stride[first:]), strict=True):
        if size == 1:
            continue
        if run == 1:
            pixel = step
        elif step != pixel * run:
            return None
        run *= size
    # Offsets within a tile are 32-bit.
    if abs(pixel) * CHUNK >= 2**31:
        return None
    image = stride[0] if shape[0] > 1 else 0  # 0 is a multiple of 16
    return image, stride[1] if len(shape) > 2 and shape[1] > 1 else 0, pixel


def _is_planar(s: Strides, shape: Shape) -> bool:
    return (s[2] == 1 or shape.pixels == 1) and (s[1] == shape.pixels or shape.channels == 1)


def _is_interleaved(s: Strides, shape: Shape) -> bool:
    return (s[1] == 1 or shape.channels == 1) and (s[2] == shape.channels or shape.pixels == 1)


def walk(shape: Shape, operands: tuple[Strides, ...], draws: bool) -> Walk:
    images, channels, pixels = shape
    interleaved = all(_is_interleaved(s, shape) for s in operands)
    if all(_is_planar(s, shape) for s in operands) or (interleaved and not draws):
        n = channels * pixels
        return Walk(images, 1, n, -(-n // CHUNK), 0, True)
    fits = pixels % 4 == 0 and (channels == 3 or channels % 4 == 0)
    if interleaved and fits and channels * pixels < 2**31:  # its offsets are 32-bit
        width = 3 if channels == 3 else 4
        groups = pixels // 4 * (channels // width)
        return Walk(images, channels, pixels, -(-groups // GROUP_CHUNK), width, False)
    return Walk(images, channels, pixels, -(-pixels // CHUNK), 0, False)


_cached_walk = lru_cache(maxsize=512)(walk)


class Operand(NamedTuple):
    """A tensor, or a contiguous copy of one that cannot be walked in place, and its strides."""

    tensor: Tensor
    strides: Strides


def operand(tensor: Tensor) -> Operand:
    found = strides(tensor.shape, tensor.stride())
    if found is None:
        tensor = tensor.contiguous()
        found = strides(tensor.shape, tensor.stride())
        assert found is not None
    return Operand(tensor, found)


def walk_of(shape: torch.Size, operands: Sequence[Operand | None], draws: bool) -> Walk:
    """The walk that suits these operands of shape ``shape``."""
    sizes = image_shape(shape)
    found = tuple(o.strides for o in operands if o is not None)
    static = all(type(n) is int for n in sizes)
    return (_cached_walk if static else walk)(sizes, found, draws)


def placed(walk: Walk, o: Operand | None) -> tuple[Tensor | None, int, int, int]:
    """What a kernel takes for an operand: the tensor and the strides of image, channel, pixel."""
    if o is None:
        return None, 0, 0, 1
    image, channel, pixel = o.strides
    return (o.tensor, image, 0, 1) if walk.whole else (o.tensor, image, channel, pixel)


def draw_of(walk: Walk, draws: bool) -> int:
    """`noise.GIVEN`, `noise.RUNS` or `noise.SCATTERED`: how rows come by their noise."""
    if not draws or walk.interleaved:
        return 0
    return 1 if walk.whole or walk.pixels % 4 == 0 else 2


def finish(out: Tensor, o: Operand) -> None:
    """Brings what a kernel wrote to a copy to the tensor itself."""
    if o.tensor is not out:
        out.copy_(o.tensor)
