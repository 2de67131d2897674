"""Masks: which pixels may change. White protects, black leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import ImageError
from .photo import Photo
from .read import read_image

MASK_SUFFIXES = (".png", ".PNG")
# A mask is a decision, not an amount: a half-grey brush edge falls to one side.
THRESHOLD = 128
# Editors leave black or white behind what cannot be seen: neither that nor the alpha is a decision.
_TRANSPARENT = (
    "has transparent pixels, expected black and white without transparency (flatten it first)"
)


def find_mask(folder: Path, photo: Path) -> Path | None:
    """The mask of `photo` in `folder`: a PNG with the same stem; None if there is none."""
    for suffix in MASK_SUFFIXES:
        candidate = folder / f"{photo.stem}{suffix}"
        if candidate.is_file():
            return candidate
    return None


def read_mask(path: Path, photo: Photo, *, max_pixels: int | None = None) -> Tensor:
    """The mask file `path` as a bool tensor [1, H, W]: true where `photo` may change.

    Raises ImageError, naming the photo, if the mask cannot be read, has another size, is coloured,
    has transparent pixels, or is black.
    """
    try:
        found = read_image(path, max_pixels=max_pixels)
    except ImageError as error:
        raise ImageError(photo.path, f"mask {path}: {error.reason}") from error
    if not found.grey and not _is_grey(found.colour):
        raise ImageError(photo.path, f"mask {path}: is coloured, expected a greyscale image")
    if found.alpha is not None and not bool((found.alpha == 255).all()):
        raise ImageError(photo.path, f"mask {path}: {_TRANSPARENT}")
    return _checked(found.colour[:1] >= THRESHOLD, photo, str(path))


def mask_from_array(mask: Any, photo: Photo) -> Tensor:
    """A mask given in Python as a bool tensor [1, H, W].

    Accepts a PIL image, a numpy array or a tensor [H, W] or [1, H, W]: bool, uint8 (>= 128
    protects) or float in [0, 1] (>= 0.5 protects). Raises ImageError for another shape or dtype, and
    for transparent pixels.
    """
    if isinstance(mask, Image.Image):
        if mask.has_transparency_data and mask.convert("RGBA").getchannel("A").getextrema() != (
            255,
            255,
        ):
            raise ImageError(photo.path, f"mask given: {_TRANSPARENT}")
        mask = np.array(mask.convert("L"))
    if isinstance(mask, np.ndarray):
        if mask.dtype.kind not in "buif" or mask.dtype.itemsize > 8:
            raise ImageError(
                photo.path,
                f"mask: got a numpy array of {mask.dtype}, expected bool, uint8 or float",
            )
        # A copy in the machine's byte order: torch knows no other, and warns about read-only memory.
        mask = torch.from_numpy(np.array(mask, mask.dtype.newbyteorder("="), order="C"))
    if not isinstance(mask, Tensor):
        raise ImageError(
            photo.path,
            f"mask: got {type(mask).__name__}, expected a PIL image, numpy array or torch tensor",
        )
    plane = mask.detach().cpu()
    if plane.ndim == 2:
        plane = plane[None]
    if plane.ndim != 3 or plane.shape[0] != 1:
        raise ImageError(
            photo.path, f"mask: got shape {tuple(mask.shape)}, expected [H, W] or [1, H, W]"
        )
    if plane.dtype == torch.uint8:
        plane = plane >= THRESHOLD
    elif plane.is_floating_point():
        plane = plane >= 0.5
    elif plane.dtype != torch.bool:
        raise ImageError(photo.path, f"mask: got {plane.dtype}, expected bool, uint8 or float")
    return _checked(plane, photo, "given")


def _is_grey(colour: Tensor) -> bool:
    return torch.equal(colour[0], colour[1]) and torch.equal(colour[0], colour[2])


def _checked(mask: Tensor, photo: Photo, name: str) -> Tensor:
    height, width = int(mask.shape[1]), int(mask.shape[2])
    if (height, width) != (photo.height, photo.width):
        hint = ""
        if photo.orientation >= 5 and (width, height) == (photo.height, photo.width):
            hint = (
                f"; the photo is stored on its side (EXIF orientation {photo.orientation}),"
                " its mask must lie the same way"
            )
        raise ImageError(
            photo.path,
            f"mask {name}: is {width} × {height} pixels, the photo {photo.width} × {photo.height}"
            + hint,
        )
    if not bool(mask.any()):
        raise ImageError(
            photo.path, f"mask {name}: is black everywhere, nothing would be protected"
        )
    return mask.contiguous()
