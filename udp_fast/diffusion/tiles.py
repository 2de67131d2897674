"""Overlapping tiles: any image size through a model of bounded memory, without seams.

An image is covered by equal tiles whose windows add up to one at every pixel, so that what the
tiles say (here: the gradient that reaches the perturbation) blends smoothly. Nothing is resized.
Where tiles stick out of the image it is continued by reflection. Moving the grid between steps
spreads what is left of the tile borders over the whole image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TileGrid"]

#: Pixels of one model call: what bounds the memory of the activations.
_PIXELS_PER_CALL = 512 * 512


@dataclass(frozen=True)
class _Axis:
    """Tiles along one side of an image."""

    length: int
    tile: int
    overlap: int
    starts: tuple[int, ...]

    @classmethod
    def fit(
        cls, length: int, *, tile: int, overlap: int, multiple: int, shift: int, slack: int
    ) -> _Axis:
        # Fewest tiles first, then the smallest tile that still covers the side: 512 pixels with
        # tiles of at most 160 become four of 144 instead of four of 160.
        covered = length + slack
        largest = tile // multiple * multiple
        count = 1
        if covered > largest:
            count = math.ceil((covered - overlap) / (largest - overlap))
        else:
            overlap = 0
        # At least two overlaps wide, so that no pixel lies in three tiles.
        fitted = max(math.ceil((covered - overlap) / count) + overlap, 2 * overlap)
        fitted = math.ceil(fitted / multiple) * multiple
        stride = fitted - overlap
        return cls(length, fitted, overlap, tuple(i * stride - shift for i in range(count)))

    def pixels(self) -> Tensor:
        """int64 [count * tile]: which pixel each tile element reads, reflected at the borders."""
        index = torch.tensor(self.starts)[:, None] + torch.arange(self.tile)
        period = max(2 * (self.length - 1), 1)
        index = index.remainder(period)
        return torch.where(index < self.length, index, period - index).flatten()

    def windows(self) -> Tensor:
        """float32 [count, tile]: weights that add up to one at every pixel."""
        window = torch.ones(len(self.starts), self.tile)
        if self.overlap:
            phase = (torch.arange(self.overlap) + 0.5) / self.overlap * (math.pi / 2)
            # sin^2 + cos^2 = 1: what one tile gives up its neighbour takes.
            window[1:, : self.overlap] = phase.sin().square()
            window[:-1, -self.overlap :] = phase.cos().square()
        return window


@dataclass(frozen=True)
class TileGrid:
    """A grid of equal tiles over an image of ``height`` x ``width`` pixels.

    Build it with :meth:`fit`. Tiles are numbered row by row.
    """

    rows: _Axis
    columns: _Axis

    @classmethod
    def fit(
        cls,
        height: int,
        width: int,
        *,
        tile: int,
        overlap: int,
        multiple: int = 1,
        shift: tuple[int, int] = (0, 0),
        slack: int = 0,
    ) -> TileGrid:
        """Cover an image by tiles of at most ``tile`` pixels a side.

        Args:
            tile: largest side of a tile in pixels, at least ``multiple``.
            overlap: pixels shared by neighbours, at most half a tile.
            multiple: the model wants sides that are multiples of this.
            shift: (down, right) pixels, each in 0 … slack, by which the grid starts before the
                image.
            slack: room for the shift; grids of equal slack have equal tiles whatever the shift.

        Raises:
            ValueError: on sizes that no grid satisfies.
        """
        if height < 1 or width < 1:
            raise ValueError(f"height, width: got {height} x {width}, expected at least 1 pixel")
        if multiple < 1 or tile < multiple:
            raise ValueError(f"tile: got {tile}, expected at least {multiple} pixels")
        if not 0 <= overlap <= tile // multiple * multiple // 2:
            raise ValueError(f"overlap: got {overlap}, expected 0 to half a tile ({tile} pixels)")
        if slack < 0 or not all(0 <= s <= slack for s in shift):
            raise ValueError(f"shift: got {shift}, expected two values in 0 … slack ({slack})")
        axes = [
            _Axis.fit(
                length, tile=tile, overlap=overlap, multiple=multiple, shift=offset, slack=slack
            )
            for length, offset in zip((height, width), shift, strict=True)
        ]
        return cls(*axes)

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Height and width of every tile in pixels."""
        return self.rows.tile, self.columns.tile

    def batches(self) -> Iterator[slice]:
        """The tiles in order, as many at a time as one model call should take."""
        height, width = self.tile_shape
        size = max(1, _PIXELS_PER_CALL // (height * width))
        for first in range(0, len(self), size):
            yield slice(first, first + size)

    def cut(self, image: Tensor) -> Tensor:
        """Tiles of an image [C, H, W] as [len(self), C, h, w], same dtype; differentiable."""
        self._check(image, (self.rows.length, self.columns.length), "image")
        channels = image.shape[0]
        canvas = image.index_select(1, self.rows.pixels().to(image.device))
        canvas = canvas.index_select(2, self.columns.pixels().to(image.device))
        h, w = self.tile_shape
        tiles = canvas.reshape(channels, len(self.rows.starts), h, len(self.columns.starts), w)
        return tiles.permute(1, 3, 0, 2, 4).reshape(-1, channels, h, w)

    def blend(self, tiles: Tensor) -> Tensor:
        """Windowed sum of tiles [len(self), C, h, w] as [C, H, W]; what sticks out is dropped.

        Undoes ``cut``. It is not its adjoint: that would add the reflected copies of a pixel to the
        pixel, and overlaps without windows. A gradient of the tiles, blended, therefore lacks what
        came through the copies.
        """
        self._check(tiles, self.tile_shape, "tiles")
        out = tiles.new_zeros(tiles.shape[1], self.rows.length, self.columns.length)
        tile = iter(tiles)
        for top, down in zip(self.rows.starts, self.rows.windows(), strict=True):
            for left, across in zip(self.columns.starts, self.columns.windows(), strict=True):
                weighted = next(tile) * (down[:, None] * across).to(tiles)
                inside_rows, from_rows = _clip(top, self.rows)
                inside_columns, from_columns = _clip(left, self.columns)
                out[:, inside_rows, inside_columns] += weighted[:, from_rows, from_columns]
        return out

    def _check(self, value: Tensor, sides: tuple[int, int], name: str) -> None:
        expected = ("C", *sides) if name == "image" else (len(self), "C", *sides)
        if value.ndim != len(expected) or tuple(value.shape[-2:]) != sides:
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {expected}")
        if name == "tiles" and value.shape[0] != len(self):
            raise ValueError(f"tiles: got {value.shape[0]}, expected {len(self)} tiles")


def _clip(start: int, axis: _Axis) -> tuple[slice, slice]:
    """The part of a tile inside the image: where it lies, and which tile elements it is."""
    first = max(start, 0)
    last = max(first, min(start + axis.tile, axis.length))  # empty where only slack is covered
    return slice(first, last), slice(first - start, last - start)
