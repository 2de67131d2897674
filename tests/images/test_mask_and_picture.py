from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from udp_fast.images import (
    ImageError,
    PictureRow,
    compose_picture,
    find_mask,
    mask_from_array,
    read_mask,
    read_pil,
)

PHOTO = read_pil(Image.new("RGB", (36, 40)), Path("photo.jpg"))


def save_mask(path: Path, size: tuple[int, int] = (36, 40), fill: int = 255) -> Path:
    Image.new("L", size, fill).save(path)
    return path


def test_white_protects(tmp_path: Path) -> None:
    plane = np.zeros((40, 36), np.uint8)
    plane[:10], plane[10:20], plane[20:30] = 255, 128, 127
    Image.fromarray(plane).save(tmp_path / "photo.png")
    assert find_mask(tmp_path, Path("elsewhere/photo.jpg")) == tmp_path / "photo.png"
    assert find_mask(tmp_path, Path("other.jpg")) is None
    mask = read_mask(tmp_path / "photo.png", PHOTO)
    assert mask.dtype == torch.bool
    assert mask.shape == (1, 40, 36)
    assert bool(mask[0, :20].all())
    assert not bool(mask[0, 20:].any())


def test_bad_masks_name_the_photo(tmp_path: Path) -> None:
    with pytest.raises(
        ImageError, match=r"photo\.jpg: mask .*is 40 × 36 pixels, the photo 36 × 40"
    ):
        read_mask(save_mask(tmp_path / "a.png", (40, 36)), PHOTO)
    with pytest.raises(ImageError, match="on its side"):
        read_mask(tmp_path / "a.png", replace(PHOTO, orientation=6))
    with pytest.raises(ImageError, match="black everywhere"):
        read_mask(save_mask(tmp_path / "b.png", fill=0), PHOTO)
    (tmp_path / "c.png").write_text("no")
    with pytest.raises(ImageError, match=r"photo\.jpg: mask .*not an image"):
        read_mask(tmp_path / "c.png", PHOTO)
    Image.new("RGB", (36, 40), (255, 0, 0)).save(tmp_path / "d.png")
    with pytest.raises(ImageError, match="coloured"):
        read_mask(tmp_path / "d.png", PHOTO)


def test_a_mask_has_no_transparency(tmp_path: Path) -> None:
    """Drawn on a transparent layer, it is white or black behind what cannot be seen."""
    for mode, fill in (("RGBA", (255, 255, 255, 0)), ("LA", (255, 254))):
        picture = Image.new(mode, (36, 40), fill)
        picture.save(tmp_path / "mask.png")
        with pytest.raises(ImageError, match=r"mask .*mask\.png: has transparent pixels, expected"):
            read_mask(tmp_path / "mask.png", PHOTO)
        with pytest.raises(ImageError, match="mask given: has transparent pixels, expected"):
            mask_from_array(picture, PHOTO)
    picture = Image.new("RGBA", (36, 40), (255, 255, 255, 255))
    picture.save(tmp_path / "mask.png")
    assert bool(read_mask(tmp_path / "mask.png", PHOTO).all())
    assert bool(mask_from_array(picture, PHOTO).all())


@pytest.mark.parametrize(
    "mask",
    [
        np.ones((40, 36), bool),
        np.full((1, 40, 36), 200, np.uint8),
        torch.full((40, 36), 0.5),
        Image.new("L", (36, 40), 255),
        np.full((40, 36), 0.5, ">f4"),
    ],
    ids=["bool", "uint8", "float", "pil", "big-endian"],
)
def test_masks_from_memory(mask: object) -> None:
    assert bool(mask_from_array(mask, PHOTO).all())


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ([[1]], "got list, expected a PIL image"),
        (np.ones((3, 40, 36)), r"got shape \(3, 40, 36\)"),
        (np.ones((40, 36), np.int64), r"got torch\.int64"),
    ],
)
def test_bad_masks_from_memory(mask: object, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        mask_from_array(mask, PHOTO)


def test_picture_shows_the_difference_amplified() -> None:
    before = torch.full((3, 40, 36), 100, dtype=torch.uint8)
    after = before + 8
    row = PictureRow.cut("a very long name " * 9, before, after, crop=20)
    assert row.before.shape == (3, 20, 20)
    picture = compose_picture([row, PictureRow.cut("b", before, before)])
    colours = {colour for _, colour in picture.getcolors(1 << 20) or ()}
    assert {(100,) * 3, (108,) * 3, (208,) * 3, (128,) * 3} <= colours
    with pytest.raises(ValueError, match="rows: got none"):
        compose_picture([])
