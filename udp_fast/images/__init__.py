"""Reading and writing photographs without losing anything but the protected colour values.

errors.py   ImageError: which file, and why, in words
photo.py    Photo: 8-bit colour planes, the alpha plane, and everything else that came with the file
read.py     a file or a PIL image -> Photo; every broken kind of file -> ImageError
write.py    Photo + protected planes -> a file, checked by reading it back before it appears
atomic.py   a file appears whole or not at all, and replaces nothing uninvited
interrupt.py  Ctrl-C never comes between a file's name and the knowledge of it
mask.py     which pixels may change
picture.py  before / after / amplified difference, side by side
"""

from .atomic import publish, publish_bytes
from .errors import ImageError, explain_os_error
from .interrupt import interrupts_held_back
from .mask import MASK_SUFFIXES, find_mask, mask_from_array, read_mask
from .photo import Photo, colour_id
from .picture import PictureRow, compose_picture
from .read import (
    DEFAULT_MAX_PIXELS,
    IMAGE_SUFFIXES,
    MIN_SIDE,
    looks_like_image,
    measure,
    pixel_limit,
    read_image,
    read_pil,
)
from .write import FORMATS, LOSSLESS, Written, left_behind, photo_to_pil, write_image

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "FORMATS",
    "IMAGE_SUFFIXES",
    "LOSSLESS",
    "MASK_SUFFIXES",
    "MIN_SIDE",
    "ImageError",
    "Photo",
    "PictureRow",
    "Written",
    "colour_id",
    "compose_picture",
    "explain_os_error",
    "find_mask",
    "interrupts_held_back",
    "left_behind",
    "looks_like_image",
    "mask_from_array",
    "measure",
    "photo_to_pil",
    "pixel_limit",
    "publish",
    "publish_bytes",
    "read_image",
    "read_mask",
    "read_pil",
    "write_image",
]
