"""Before, after, and the difference made visible, side by side: for eyes, not for measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

AMPLIFICATION = 10
CROP = 512
_MARGIN = 12
_CAPTION = 30
_INK = (40, 40, 40)


@dataclass(frozen=True)
class PictureRow:
    """One photo's row: `before` and `after` are uint8 [3, h, w] of equal size."""

    title: str
    before: Tensor
    after: Tensor

    @classmethod
    def cut(cls, title: str, before: Tensor, after: Tensor, crop: int = CROP) -> PictureRow:
        """The middle of a photo, at most `crop` pixels a side.

        Cropped, never scaled: averaging neighbours would hide the perturbation.
        """
        height, width = before.shape[1:]
        top, left = max(0, (height - crop) // 2), max(0, (width - crop) // 2)
        window = (slice(None), slice(top, top + crop), slice(left, left + crop))
        return cls(title, before[window].cpu().clone(), after[window].cpu().clone())


def amplified_difference(before: Tensor, after: Tensor) -> Tensor:
    """Mid-grey plus ten times (after - before), uint8 [3, h, w]: mid-grey means no change."""
    difference = after.to(torch.int16) - before.to(torch.int16)
    return (128 + AMPLIFICATION * difference).clamp(0, 255).to(torch.uint8)


def compose_picture(rows: Sequence[PictureRow]) -> Image.Image:
    """One row a photo, three columns: before, after, ten times the difference. Raises ValueError if
    there are no rows."""
    if not rows:
        raise ValueError("rows: got none, expected at least one photo")
    cell_width = max(int(row.before.shape[2]) for row in rows)
    heights = [int(row.before.shape[1]) for row in rows]
    width = 3 * cell_width + 4 * _MARGIN
    height = sum(heights) + len(rows) * (_CAPTION + _MARGIN) + _MARGIN
    canvas = Image.new("RGB", (width, height), (250, 250, 250))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=15)
    top = _MARGIN
    for row, row_height in zip(rows, heights, strict=True):
        panels = (
            (row.title, row.before),
            ("protected", row.after),
            (f"difference x {AMPLIFICATION}", amplified_difference(row.before, row.after)),
        )
        for column, (caption, planes) in enumerate(panels):
            left = _MARGIN + column * (cell_width + _MARGIN)
            draw.text((left, top + 6), _fit(caption, cell_width, font), fill=_INK, font=font)
            canvas.paste(_to_pil(planes), (left, top + _CAPTION))
        top += _CAPTION + row_height + _MARGIN
    return canvas


def _to_pil(planes: Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(planes.permute(1, 2, 0).numpy()))


def _fit(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-2] + "…"
    return text
