"""From a file to a `Photo`, or to an `ImageError` that says what is wrong with the file.

Whatever cannot be written back faithfully is refused in words rather than guessed at: 16-bit and
floating-point images (the budget counts 8-bit levels), CMYK, animations and multi-page files.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError

from ..ops.validation import is_integer
from .errors import ImageError, explain_os_error
from .photo import Photo, colour_id

# 100 megapixels: above every common camera, and some 300 MB decoded. The environment variable
# UDP_FAST_MAX_PIXELS and the command's --max-pixels move it.
DEFAULT_MAX_PIXELS = 100_000_000
MAX_PIXELS_VARIABLE = "UDP_FAST_MAX_PIXELS"

# The surrogate sees windows of 32 pixels: a smaller image has nothing it could be adapted on.
MIN_SIDE = 32

# MPO, a JPEG with a second picture (preview, depth or gain map), is opened by the JPEG reader.
_PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
_SUFFIXES = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
}
IMAGE_SUFFIXES = frozenset(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
# Photographs by name that we cannot read. Passing over them in silence would leave someone
# believing that they are protected.
_UNREADABLE_SUFFIXES = frozenset(
    {".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".psd", ".xcf", ".tga", ".exr"}
    | {".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"}
    | {".hdr", ".svg", ".eps", ".ppm", ".pgm", ".pnm", ".ico"}
)
_READABLE = "PNG, JPEG, WebP, TIFF, BMP or GIF"

# Tags that describe how a TIFF stores its pixels: meaningless, or wrong, in another file.
_TIFF_LAYOUT_TAGS = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 288, 289, 292, 293, 301, 317}
    | {
        320,
        322,
        323,
        324,
        325,
        330,
        332,
        334,
        336,
        338,
        339,
        347,
        512,
        513,
        514,
        529,
        530,
        531,
        532,
    }
    | {700, 33723, 34377, 34675}  # XMP, IPTC, Photoshop and ICC blocks, which travel by themselves
)

_pillow_limit_lock = threading.RLock()


def pixel_limit(max_pixels: int | None = None) -> int:
    """The largest image, in pixels, that is decoded: the argument, else UDP_FAST_MAX_PIXELS, else
    `DEFAULT_MAX_PIXELS`. Raises TypeError or ValueError if that is not a positive integer."""
    if max_pixels is None:
        text = os.environ.get(MAX_PIXELS_VARIABLE, "").strip()
        if not text:
            return DEFAULT_MAX_PIXELS
        if not text.isdecimal() or int(text) == 0:
            raise ValueError(f"{MAX_PIXELS_VARIABLE}: got {text!r}, expected a positive integer")
        return int(text)
    if not is_integer(max_pixels):
        raise TypeError(f"max_pixels: got {max_pixels!r}, expected a positive integer")
    if max_pixels <= 0:
        raise ValueError(f"max_pixels: got {max_pixels}, expected a positive integer")
    return int(max_pixels)


def looks_like_image(path: Path) -> bool:
    """Whether a file in a folder is meant to be an image: by its name, or else its first bytes."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES or suffix in _UNREADABLE_SUFFIXES:
        return True
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        return False
    return head.startswith(
        (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\x00", b"MM\x00*")
    ) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def measure(path: Path, *, max_pixels: int | None = None) -> tuple[int, int]:
    """(height, width) from the file's header, in pixels, without decoding it.

    Raises ImageError for everything that can be known from the header.
    """
    with _opened(path, pixel_limit(max_pixels)) as (_, image):
        return image.height, image.width


def read_image(path: Path, *, max_pixels: int | None = None) -> Photo:
    """Decode the image file `path`.

    Raises:
        ImageError: missing, unreadable, empty, not an image, truncated, too large (`pixel_limit`),
            too small (`MIN_SIDE`), animated, or in a colour mode that 8 bits cannot hold.
        TypeError, ValueError: `max_pixels` or its environment variable is not a positive integer.
    """
    with _opened(path, pixel_limit(max_pixels)) as (file, image):
        notes = []
        suffix = path.suffix.lower()
        if suffix not in _SUFFIXES[image.format or ""]:
            notes.append(f"named {suffix or 'without a suffix'}, but holds a {image.format}")
        digest = _sha256(file)
        file.seek(0)
        return read_pil(image, path, sha256=digest, notes=tuple(notes))


def read_pil(
    image: Image.Image, path: Path, *, sha256: str = "", notes: tuple[str, ...] = ()
) -> Photo:
    """Decode an open Pillow image; `path` names it in errors. Raises ImageError as `read_image`."""
    said = list(notes)
    _refuse_small(image, path)
    _refuse_what_8_bits_cannot_hold(image, path)
    frames = _frame_count(image)
    try:
        image.load()
        decoded, grey, note = _to_planes(image, path)
    except ImageError:
        raise
    except MemoryError:
        size = f"{image.width} × {image.height}"
        raise ImageError(path, f"not enough memory to decode {size} pixels") from None
    except Exception as error:  # Pillow's decoders raise whatever their format trips over
        raise ImageError(path, f"truncated or damaged ({_short(error)})") from error
    if note:
        said.append(note)
    if image.format == "MPO" and frames > 1:
        said.append(f"only the first of the {frames} pictures in the file is kept")

    planes = np.asarray(decoded)
    planes = planes.reshape(decoded.height, decoded.width, -1)  # HW for L, HWC otherwise
    tensor = torch.from_numpy(planes.transpose(2, 0, 1).copy())
    colours = 1 if grey else 3
    alpha = tensor[colours:].contiguous() if tensor.shape[0] > colours else None
    colour = tensor[:1].repeat(3, 1, 1) if grey else tensor[:3].contiguous()

    exif, orientation, previews = _exif(image)
    if previews:
        said.append("its EXIF block holds a small unprotected preview")
    if 0x0404 in (image.info.get("photoshop") or {}):
        said.append("its IPTC captions are not carried over")
    dpi = image.info.get("dpi")
    return Photo(
        colour=colour,
        alpha=alpha,
        grey=grey,
        path=path,
        mode=image.mode,
        format=image.format or "",
        sha256=sha256,
        image_id=colour_id(colour),
        exif=exif,
        icc=image.info.get("icc_profile") or None,
        xmp=_xmp(image),
        dpi=(float(dpi[0]), float(dpi[1])) if dpi else None,
        png_chunks=_png_colour_chunks(image),
        png_text=tuple(
            (str(key), str(value))
            for key, value in (getattr(image, "text", None) or {}).items()
            if key != "XML:com.adobe.xmp"
        ),
        comment=_comment(image),
        orientation=orientation,
        notes=tuple(said),
    )


@contextlib.contextmanager
def _opened(path: Path, limit: int) -> Iterator[tuple[BinaryIO, Image.Image]]:
    """The file and its lazily opened image, after every check that needs no decoding."""
    try:
        # stat before open: opening a named pipe would wait for a writer for ever.
        status = os.stat(path)
    except OSError as error:
        raise ImageError(path, _missing(path, error)) from None
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(path, "is a folder, not an image")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(path, "is not a regular file")
    if status.st_size == 0:
        raise ImageError(path, "is empty (0 bytes)")
    try:
        file = path.open("rb")
    except OSError as error:
        raise ImageError(path, explain_os_error(error)) from None
    with file, _pillow_limit(limit):
        try:
            # Pillow's guard knows of a large image only that it is: the size is compared below.
            with _pillow_limit(None):
                image = Image.open(file, formats=_PILLOW_FORMATS)
        except UnidentifiedImageError:
            raise ImageError(path, _not_an_image(path)) from None
        except OSError as error:
            raise ImageError(path, f"cannot be read ({explain_os_error(error)})") from None
        except Exception as error:
            raise ImageError(path, f"truncated or damaged ({_short(error)})") from error
        with image:
            if image.width * image.height > limit:
                size = f"{image.width} × {image.height} = {image.width * image.height:,}"
                raise ImageError(path, _too_large(size, limit))
            _refuse_small(image, path)
            yield file, image


@contextlib.contextmanager
def _pillow_limit(limit: int | None) -> Iterator[None]:
    # Pillow's own bomb guard is one number for the whole process: borrow it, give it back.
    with _pillow_limit_lock, warnings.catch_warnings():
        # What Pillow warns about (odd EXIF, oversize) is either harmless or refused right here.
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = limit
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _too_large(size: str, limit: int) -> str:
    return (
        f"too large: {size} pixels, the limit is {limit:,}"
        f" (raise it with --max-pixels or {MAX_PIXELS_VARIABLE})"
    )


def _missing(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "the symbolic link points to nothing" if path.is_symlink() else "no such file"
    return explain_os_error(error)


def _not_an_image(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(64)
    if head[4:8] == b"ftyp" and head[8:12] in (
        b"heic",
        b"heix",
        b"mif1",
        b"hevc",
        b"avif",
        b"crx ",
    ):
        kind = "a HEIC, AVIF or CR3 file"
    elif head.startswith((b"\x00\x00\x00\x0cJXL ", b"\xff\x0a", b"\x00\x00\x00\x0cjP  ")):
        kind = "a JPEG XL or JPEG 2000 file"
    elif head.startswith(b"%PDF"):
        kind = "a PDF"
    elif head.startswith(b"8BPS"):
        kind = "a Photoshop file"
    elif path.suffix.lower() in _UNREADABLE_SUFFIXES:
        kind = f"a {path.suffix[1:].upper()} file"
    else:
        return f"not an image (expected {_READABLE})"
    return f"{kind} is not supported: export it as {_READABLE} first"


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 100 else text[:99] + "…"


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _frame_count(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # a damaged frame table; the decoder will have its say about the first frame
        return 1


def _refuse_small(image: Image.Image, path: Path) -> None:
    if min(image.size) < MIN_SIDE:
        size = f"{image.width} × {image.height}"
        raise ImageError(path, f"too small: {size} pixels, at least {MIN_SIDE} a side are needed")


def _refuse_what_8_bits_cannot_hold(image: Image.Image, path: Path) -> None:
    bits = _bits_per_channel(image)
    if bits > 8:
        raise ImageError(
            path,
            f"{bits} bits per channel: the budget counts 8-bit levels, convert the image to 8 bits"
            " per channel first",
        )
    if image.mode == "CMYK":
        raise ImageError(path, "CMYK printing colours: convert the image to RGB first")
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise ImageError(path, f"colour mode {image.mode}: convert the image to RGB first")
    frames = _frame_count(image)
    # GIF, APNG, animated WebP, the pages of a TIFF: writing only the first would lose the rest.
    if frames > 1 and image.format != "MPO":
        what = "pages" if image.format == "TIFF" else "animation frames"
        raise ImageError(path, f"holds {frames} {what}, only single images are protected")


def _bits_per_channel(image: Image.Image) -> int:
    if image.mode.startswith("I;16"):
        return 16
    if image.mode in ("I", "F"):
        return 16 if image.format == "PNG" else 32
    # Pillow opens 16-bit RGB as 8-bit "RGB" and says nothing: ask the file.
    file = getattr(image, "fp", None)
    if image.format == "PNG" and file is not None:
        position = file.tell()
        file.seek(24)  # signature 8, length 4, "IHDR" 4, width 4, height 4: the depth byte
        depth = file.read(1)
        file.seek(position)
        return depth[0] if depth else 0
    if image.format == "TIFF":
        depths = getattr(image, "tag_v2", {}).get(258, (8,))
        return max(depths) if isinstance(depths, tuple) else int(depths)
    return 8


def _to_planes(image: Image.Image, path: Path) -> tuple[Image.Image, bool, str]:
    """(image in L, LA, RGB or RGBA, whether it is grey, what was converted)."""
    transparent = "transparency" in image.info
    if image.mode == "1":
        return image.convert("L"), True, "1-bit image written as 8-bit grey"
    if image.mode == "P":
        target = "RGBA" if transparent else "RGB"
        return image.convert(target), False, f"palette expanded to {target}"
    if image.mode == "PA":
        return image.convert("RGBA"), False, "palette expanded to RGBA"
    if image.mode in ("L", "RGB") and transparent:
        # One colour is declared transparent; a changed pixel would stop matching it.
        if image.mode == "RGB":
            return image.convert("RGBA"), False, "transparent colour turned into an alpha channel"
        return image.convert("LA"), True, "transparent grey turned into an alpha channel"
    return image, image.mode in ("L", "LA"), ""


def _exif(image: Image.Image) -> tuple[bytes | None, int, bool]:
    """(raw EXIF block, orientation, whether it holds a preview picture)."""
    raw = image.info.get("exif")
    try:
        exif = image.getexif()
        orientation = int(exif.get(ExifTags.Base.Orientation, 1))
        preview = 513 in exif.get_ifd(ExifTags.IFD.IFD1) if image.format != "TIFF" else False
        if raw is None and image.format == "TIFF":
            for tag in set(exif) & _TIFF_LAYOUT_TAGS:
                del exif[tag]
            raw = exif.tobytes() if len(exif) else None
    except Exception:  # a broken block is passed on as it came; no pixel depends on it
        orientation, preview = 1, False
    if not isinstance(raw, bytes) or not raw:
        raw = None
    return raw, orientation if 1 <= orientation <= 8 else 1, preview


def _xmp(image: Image.Image) -> bytes | None:
    xmp = image.info.get("xmp")
    if xmp is None and image.format == "TIFF":
        xmp = getattr(image, "tag_v2", {}).get(700)
    if isinstance(xmp, str):
        xmp = xmp.encode()
    return xmp if isinstance(xmp, bytes) and xmp else None


def _comment(image: Image.Image) -> bytes | None:
    comment = image.info.get("comment")
    # A PNG's text of that name is a string, and among its texts already.
    return comment if isinstance(comment, bytes) and comment else None


def _png_colour_chunks(image: Image.Image) -> tuple[tuple[bytes, bytes], ...]:
    if image.format != "PNG":
        return ()
    chunks: list[tuple[bytes, bytes]] = []
    if "gamma" in image.info:
        chunks.append((b"gAMA", struct.pack(">I", round(image.info["gamma"] * 100_000))))
    if "chromaticity" in image.info:
        values = [round(value * 100_000) for value in image.info["chromaticity"]]
        chunks.append((b"cHRM", struct.pack(f">{len(values)}I", *values)))
    if "srgb" in image.info:
        chunks.append((b"sRGB", struct.pack("B", image.info["srgb"])))
    return tuple(chunks)
