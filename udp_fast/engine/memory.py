"""Images that are not files: PIL images, numpy arrays and torch tensors, there and back again.

Values map to 8-bit levels: uint8 as they are; floats in [0, 1] by round(255 x). The way back adds
the change to what came in (x + q / 255, clipped to [0, 1]), so that a float image is within the
budget of itself, not only of its rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..images import MIN_SIDE, ImageError, Photo, colour_id, photo_to_pil, read_pil


@dataclass(frozen=True)
class InMemory:
    """One input: its images, and how the protected colours (uint8 [3, H, W] each) become an object
    of the kind, dtype, shape and device that came in."""

    photos: list[Photo]
    rebuild: Callable[[Sequence[Tensor]], Any]


def accept(value: Any, name: str) -> InMemory:
    """Take apart a PIL image, a numpy array or a torch tensor; `name` is used in errors.

    Arrays: [H, W], [H, W, C] or [B, H, W, C]. Tensors: [H, W], [C, H, W] or [B, C, H, W]. C is 1
    (grey), 3 (RGB) or 4 (RGB and alpha). dtype uint8, or floating point in [0, 1].

    Raises:
        TypeError: another kind of object, another dtype, or a tensor without dense data.
        ValueError: another shape, or values outside [0, 1], NaN included.
        ImageError: an image that cannot be protected (too small, 16-bit, …).
    """
    if isinstance(value, Image.Image):
        photo = read_pil(value, Path(name))
        return InMemory([photo], lambda colours: photo_to_pil(colours[0], photo))
    if isinstance(value, np.ndarray):
        return _array(value, name)
    if isinstance(value, Tensor):
        return _tensor(value, name)
    raise TypeError(
        f"images: got {type(value).__name__} ({name}), expected a path, PIL image, numpy array or"
        " torch tensor"
    )


def _array(value: np.ndarray, name: str) -> InMemory:
    if value.dtype != np.uint8 and (value.dtype.kind != "f" or value.dtype.itemsize > 8):
        raise TypeError(
            f"images: got a numpy array of {value.dtype} ({name}), expected uint8, or floats in"
            " [0, 1] of at most 64 bits"
        )
    planes = value[..., None] if value.ndim == 2 else value
    if planes.ndim not in (3, 4) or planes.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"images: got a numpy array of shape {value.shape} ({name}), expected [H, W],"
            " [H, W, C] or [B, H, W, C] with C = 1, 3 or 4"
        )
    # A copy: torch warns about read-only memory, and the caller's array must not change under us.
    # In the machine's byte order: torch knows no other.
    copy = np.array(planes, planes.dtype.newbyteorder("="), order="C")
    tensor = torch.from_numpy(copy).movedim(-1, -3)
    inner = _tensor(tensor, name)

    def rebuild(colours: Sequence[Tensor]) -> np.ndarray:
        out: np.ndarray = inner.rebuild(colours).movedim(-3, -1).contiguous().numpy()
        return out.reshape(value.shape).astype(value.dtype, copy=False)

    return InMemory(inner.photos, rebuild)


def _tensor(value: Tensor, name: str) -> InMemory:
    if value.dtype != torch.uint8 and not value.is_floating_point():
        raise TypeError(
            f"images: got a tensor of {value.dtype} ({name}), expected uint8, or floats in [0, 1]"
        )
    if value.layout != torch.strided or value.is_meta:
        what = (
            f"of layout {value.layout}" if value.layout != torch.strided else "without data (meta)"
        )
        raise TypeError(f"images: got a tensor {what} ({name}), expected a dense one with data")
    planes = value.detach().cpu()
    planes = planes[None] if planes.ndim == 2 else planes
    batch = planes[None] if planes.ndim == 3 else planes
    if batch.ndim != 4 or batch.shape[1] not in (1, 3, 4):
        raise ValueError(
            f"images: got a tensor of shape {tuple(value.shape)} ({name}), expected [H, W],"
            " [C, H, W] or [B, C, H, W] with C = 1, 3 or 4"
        )
    if value.is_floating_point():
        # Written so that NaN fails too.
        if not bool(((batch >= 0) & (batch <= 1)).all()):
            raise ValueError(
                f"images: got floats outside [0, 1] or NaN ({name}), expected values in [0, 1]"
            )
        levels = (batch.double() * 255).round().to(torch.uint8)
    else:
        levels = batch
    several = planes.ndim == 4
    photos = [_photo(image, f"{name} [{i}]" if several else name) for i, image in enumerate(levels)]

    def rebuild(colours: Sequence[Tensor]) -> Tensor:
        out = batch.clone()
        count = min(3, batch.shape[1])  # of the colour channels; alpha stays
        for i, colour in enumerate(colours):
            if not value.is_floating_point():
                out[i, :count] = colour[:count]
                continue
            change = (colour[:count].double() - levels[i, :count].double()) / 255
            out[i, :count] = (batch[i, :count].double() + change).clamp(0, 1).to(batch.dtype)
        return out.reshape(value.shape).to(value.device)

    return InMemory(photos, rebuild)


def _photo(image: Tensor, name: str) -> Photo:
    """A photo of uint8 [C, H, W], C = 1, 3 or 4."""
    channels, height, width = image.shape
    if min(height, width) < MIN_SIDE:
        raise ImageError(
            name,
            f"too small: {width} × {height} pixels, at least {MIN_SIDE} a side are needed",
        )
    grey = channels == 1
    colour = image.repeat(3, 1, 1) if grey else image[:3].clone()
    return Photo(
        colour=colour,
        alpha=image[3:].clone() if channels == 4 else None,
        grey=grey,
        path=Path(name),
        mode={1: "L", 3: "RGB", 4: "RGBA"}[channels],
        format="",
        sha256="",
        image_id=colour_id(colour),
    )
