"""A photograph in memory: what may change (colour) and what must not (everything else)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..ops.noise import image_id


@dataclass(frozen=True)
class Photo:
    """One decoded image.

    colour     uint8 [3, H, W], red green blue; three equal planes where `grey`
    alpha      uint8 [1, H, W] or None; never changed, written back bit for bit
    grey       the image has one colour channel and is written with one
    path       where it came from, or a name for an image from memory
    mode       Pillow's mode of the source ("RGB", "LA", "P", …)
    format     the source's format ("PNG", "JPEG", …; "" from memory)
    sha256     of the source file's bytes ("" from memory)
    image_id   64-bit, from the decoded pixels: random draws follow the image, not its name or place
    exif, icc, xmp   raw metadata blocks, or None
    dpi        pixels per inch (x, y), or None
    png_chunks colour-space chunks (gAMA, cHRM, sRGB) that a PNG output needs to look the same
    png_text   textual PNG chunks (author, copyright, …)
    comment    of a JPEG or GIF, as it is stored, or None
    orientation  the EXIF orientation, 1 to 8: kept as a tag, the pixels stay as they are stored
    notes      what the reader had to do or noticed, in words
    """

    colour: Tensor
    alpha: Tensor | None
    grey: bool
    path: Path
    mode: str
    format: str
    sha256: str
    image_id: int
    exif: bytes | None = None
    icc: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    png_chunks: tuple[tuple[bytes, bytes], ...] = ()
    png_text: tuple[tuple[str, str], ...] = ()
    comment: bytes | None = None
    orientation: int = 1
    notes: tuple[str, ...] = field(default=())

    @property
    def height(self) -> int:
        return int(self.colour.shape[1])

    @property
    def width(self) -> int:
        return int(self.colour.shape[2])

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def output_mode(self) -> str:
        """The Pillow mode of the protected image: L, LA, RGB or RGBA."""
        if self.grey:
            return "L" if self.alpha is None else "LA"
        return "RGB" if self.alpha is None else "RGBA"


def colour_id(colour: Tensor) -> int:
    """A 64-bit name for the pixels of `colour` (uint8 [3, H, W]), as a signed int64.

    The same picture has the same id in any lossless file format, under any file name.
    """
    return image_id(colour.to(device="cpu", dtype=torch.uint8).contiguous().numpy().tobytes())
