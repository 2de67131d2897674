"""From a `Photo` and its protected colour planes to a file, checked before anyone can see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .atomic import publish
from .errors import ImageError, explain_os_error
from .photo import Photo
from .read import read_image

# format -> suffix of the written file. PNG is the default: lossless, and read everywhere.
FORMATS = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
LOSSLESS = frozenset({"png", "webp"})

# As good as JPEG gets without turning into a different trade: no chroma subsampling.
JPEG_OPTIONS = {"quality": 95, "subsampling": 0}
# What one segment of a JPEG holds.
LONGEST_JPEG_COMMENT = 65533


@dataclass(frozen=True)
class Written:
    """A file that was written and read back.

    colour is what a reader of the file will see: uint8 [3, H, W].
    """

    path: Path
    sha256: str
    size_bytes: int
    colour: Tensor


def photo_to_pil(colour: Tensor, like: Photo) -> Image.Image:
    """A Pillow image of `colour` (uint8 [3, H, W]) with `like`'s alpha, mode, EXIF, ICC
    and comment.

    A grey photo takes the first plane; the three must be equal.
    """
    planes = colour[:1] if like.grey else colour
    if like.alpha is not None:
        planes = torch.cat([planes, like.alpha])
    pixels = planes.cpu().permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(
        np.ascontiguousarray(pixels[..., 0]) if pixels.shape[2] == 1 else pixels
    )
    assert image.mode == like.output_mode
    if like.exif is not None:
        image.info["exif"] = like.exif
    if like.icc is not None:
        image.info["icc_profile"] = like.icc
    if like.dpi is not None:
        image.info["dpi"] = like.dpi
    if like.comment is not None:
        image.info["comment"] = like.comment
    return image


def left_behind(like: Photo, format: str) -> list[str]:
    """What came with the photo and has no place in a file of this format, a note for each block."""
    notes = []
    if format != "png":
        if like.png_text:
            names = ", ".join(dict.fromkeys(key for key, _ in like.png_text))
            notes.append(f"its PNG texts ({names}) are not carried over")
        chunks = [name.decode() for name, _ in like.png_chunks]
        # Both are idle beside a profile or an sRGB chunk, and without any of them colours are sRGB.
        if like.icc is None and "sRGB" not in chunks and chunks:
            notes.append(f"its colour chunks ({', '.join(chunks)}) are not carried over")
    if format == "webp" and like.dpi is not None and not _has_resolution(like.exif):
        notes.append(f"its resolution ({like.dpi[0]:.0f} dpi) is not carried over")
    if like.comment is not None and not _holds_comment(like.comment, format):
        notes.append("its comment is not carried over")
    return notes


def _has_resolution(exif: bytes | None) -> bool:
    if exif is None:
        return False
    block = Image.Exif()
    try:
        block.load(exif)
    except Exception:  # a broken block is passed on as it came, and read by nobody
        return False
    return ExifTags.Base.XResolution in block


def _holds_comment(comment: bytes, format: str) -> bool:
    return format == "png" or (format == "jpeg" and len(comment) <= LONGEST_JPEG_COMMENT)


def write_image(
    path: Path,
    colour: Tensor,
    like: Photo,
    *,
    format: str = "png",
    overwrite: bool = False,
    check: Callable[[Tensor], None] | None = None,
    named: Callable[[Written], None] | None = None,
) -> Written:
    """Write `colour` (uint8 [3, H, W]) as the photo `like`, atomically, and read it back.

    The file appears under `path` only after it has been written to the disk, decoded again, and
    found to hold exactly these colours (lossless formats), exactly `like`'s alpha plane, and
    whatever `check` demands of the colours read back (it raises ImageError to refuse). `named`
    learns of the file in the very moment in which it appears, see `publish`.

    Raises:
        ImageError: the file exists (and `overwrite` is false), the format cannot hold the image,
            the disk is full, or the check failed. Nothing is left behind.
        ValueError: an unknown format.
    """
    if format not in FORMATS:
        raise ValueError(f"format: got {format!r}, expected one of {', '.join(FORMATS)}")
    if format == "jpeg" and like.alpha is not None:
        raise ImageError(path, "JPEG cannot hold the image's transparency: write PNG or WebP")
    image = photo_to_pil(colour, like)

    def write(file: BinaryIO) -> None:
        _save(image, file, like, format)

    def read_back(temporary: Path) -> Written:
        found = read_image(temporary, max_pixels=max(like.pixels, 1))
        if not _same_plane(found.alpha, like.alpha):
            raise ImageError(path, "the alpha plane did not survive writing")
        if format in LOSSLESS and not torch.equal(found.colour, colour.cpu()):
            raise ImageError(path, f"the {format} file does not hold the pixels it was given")
        if check is not None:
            check(found.colour)
        return Written(path, found.sha256, temporary.stat().st_size, found.colour)

    try:
        return publish(path, write, overwrite=overwrite, check=read_back, named=named)
    except FileExistsError:
        raise ImageError(path, "exists already (--overwrite replaces it)") from None
    except ImageError as error:
        raise ImageError(path, error.reason) from error  # never name the temporary file
    except OSError as error:
        raise ImageError(path, f"cannot be written: {explain_os_error(error)}") from error
    except (ValueError, MemoryError, SyntaxError) as error:  # Pillow's encoders, e.g. EXIF too long
        raise ImageError(path, f"cannot be written as {format}: {error}") from error


def _same_plane(found: Tensor | None, expected: Tensor | None) -> bool:
    if expected is None:
        return found is None
    if found is None:
        # WebP drops an alpha plane that is opaque everywhere; nothing is lost with it.
        return bool((expected == 255).all())
    return torch.equal(found, expected.cpu())


def _text(comment: bytes) -> str:
    """A comment has no declared encoding: UTF-8 where it is that, else Latin-1, which always is."""
    comment = comment.rstrip(b"\0")
    try:
        return comment.decode("utf-8")
    except UnicodeDecodeError:
        return comment.decode("latin-1")


def _save(image: Image.Image, file: BinaryIO, like: Photo, format: str) -> None:
    options: dict[str, object] = {}
    if like.exif is not None:
        options["exif"] = like.exif
    if like.icc is not None:
        options["icc_profile"] = like.icc
    if format == "webp":
        if like.xmp is not None:
            options["xmp"] = like.xmp
        # exact: without it, WebP rewrites the colour of fully transparent pixels.
        image.save(file, "WEBP", lossless=True, exact=True, quality=50, method=4, **options)
        return
    if like.dpi is not None:
        options["dpi"] = like.dpi
    if format == "jpeg":
        if like.xmp is not None:
            options["xmp"] = like.xmp
        if like.comment is not None:
            fits = _holds_comment(like.comment, format)
            options["comment"] = like.comment if fits else b""
        image.save(file, "JPEG", **JPEG_OPTIONS, **options)
        return
    extra = PngInfo()
    for name, content in like.png_chunks:
        extra.add(name, content)
    for key, value in like.png_text:
        extra.add_itxt(key, value)
    if like.comment is not None:
        extra.add_itxt("Comment", _text(like.comment))
    if like.xmp is not None:
        extra.add_itxt("XML:com.adobe.xmp", like.xmp.decode("utf-8", errors="replace"))
    image.save(file, "PNG", pnginfo=extra, **options)
