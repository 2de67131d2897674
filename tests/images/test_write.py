"""What is written is what was meant, whole or not at all, and replaces nothing uninvited."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from udp_fast.images import (
    ImageError,
    Photo,
    left_behind,
    publish,
    publish_bytes,
    read_image,
    read_pil,
    write_image,
)


def photo(mode: str = "RGB", height: int = 40, width: int = 36, **save: object) -> Photo:
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (height, width, 4), dtype=np.uint8))
    return read_pil(image.convert(mode), Path("photo"))


def shifted(source: Photo) -> torch.Tensor:
    return (source.colour.to(torch.int16) + 3).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("format", ["png", "webp"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_lossless_round_trip(tmp_path: Path, mode: str, format: str) -> None:
    source = photo(mode)
    path = tmp_path / f"out.{format}"
    written = write_image(path, shifted(source), source, format=format)
    back = read_image(path)
    assert torch.equal(back.colour, shifted(source))
    assert torch.equal(written.colour, back.colour)
    if source.alpha is not None:
        assert back.alpha is not None
        assert torch.equal(back.alpha, source.alpha)
    if format == "png":  # WebP has no grey mode
        assert back.mode == mode
    assert written.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert written.size_bytes == path.stat().st_size


@pytest.mark.parametrize("target", ["png", "webp", "jpeg"])
def test_metadata_survives(tmp_path: Path, target: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    exif[0x8298] = "someone"
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>rights</x:xmpmeta>"
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(
        tmp_path / "in.jpg", exif=exif, icc_profile=icc, dpi=(240, 240), xmp=xmp, comment="für"
    )
    source = read_image(tmp_path / "in.jpg")
    assert source.comment == "für".encode()
    write_image(tmp_path / "out", source.colour, source, format=target)
    back = read_image(tmp_path / "out")
    assert back.exif is not None
    assert source.exif is not None
    assert back.exif.removeprefix(b"Exif\0\0") == source.exif.removeprefix(b"Exif\0\0")
    assert back.icc == icc
    assert back.xmp == xmp
    assert back.orientation == 8
    assert (back.height, back.width) == (40, 60)
    if target != "webp":  # WebP has no place for it beside EXIF
        assert back.dpi == pytest.approx((240, 240), abs=0.1)
    if target == "jpeg":
        assert back.comment == source.comment
    if target == "png":
        assert ("Comment", "für") in back.png_text
    lost = ["its resolution (240 dpi) is not carried over", "its comment is not carried over"]
    assert left_behind(source, target) == (lost if target == "webp" else [])


def test_what_has_no_place_in_a_format_is_said() -> None:
    texts = (("Copyright", "someone"), ("Author", "one"), ("Author", "two"))
    gamma, srgb = (b"gAMA", (45455).to_bytes(4, "big")), (b"sRGB", b"\0")
    source = dataclasses.replace(photo(), png_text=texts, png_chunks=(gamma,))
    said = [
        "its PNG texts (Copyright, Author) are not carried over",
        "its colour chunks (gAMA) are not carried over",
    ]
    assert left_behind(source, "webp") == left_behind(source, "jpeg") == said
    assert left_behind(source, "png") == []
    source = dataclasses.replace(photo(), png_chunks=(gamma, srgb))
    assert left_behind(source, "webp") == [], "sRGB overrides gAMA, and is meant without either"
    exif = Image.Exif()
    exif[0x011A] = 240.0
    for block, notes in ((exif.tobytes(), 0), (b"Exif\0\0broken", 1), (None, 1)):
        source = dataclasses.replace(photo(), dpi=(240, 240), exif=block)
        assert len(left_behind(source, "webp")) == notes


@pytest.mark.parametrize(
    ("comment", "text"), [(b"caf\xe9\0", "café"), ("山".encode(), "山")], ids=["latin-1", "utf-8"]
)
def test_comments_become_text(tmp_path: Path, comment: bytes, text: str) -> None:
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "in.jpg", comment=comment)
    source = read_image(tmp_path / "in.jpg")
    write_image(tmp_path / "out.png", source.colour, source)
    assert read_image(tmp_path / "out.png").png_text == (("Comment", text),)


def test_a_comment_too_long_for_a_jpeg_is_left_behind(tmp_path: Path) -> None:
    source = dataclasses.replace(photo(), comment=b"x" * 65534)
    write_image(tmp_path / "a.jpg", source.colour, source, format="jpeg")
    assert read_image(tmp_path / "a.jpg").comment is None
    assert left_behind(source, "jpeg") == ["its comment is not carried over"]


def test_png_keeps_its_colour_chunks_and_texts(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("Copyright", "someone")
    info.add(b"gAMA", (45455).to_bytes(4, "big"))
    info.add(b"sRGB", b"\0")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "in.png", pnginfo=info)
    source = read_image(tmp_path / "in.png")
    write_image(tmp_path / "out.png", source.colour, source)
    with Image.open(tmp_path / "out.png") as back:
        back.load()
        assert back.info["Copyright"] == "someone"
        assert back.info["gamma"] == pytest.approx(0.45455)
        assert back.info["srgb"] == 0


def test_colour_under_full_transparency_is_kept(tmp_path: Path) -> None:
    source = photo("RGBA")
    assert source.alpha is not None
    source.alpha.zero_()
    for kind in ("png", "webp"):
        write_image(tmp_path / kind, source.colour, source, format=kind)
        assert torch.equal(read_image(tmp_path / kind).colour, source.colour)


def test_existing_files_are_left_alone_unless_told(tmp_path: Path) -> None:
    source, path = photo(), tmp_path / "out.png"
    path.write_text("precious")
    with pytest.raises(ImageError, match=r"exists already.*--overwrite"):
        write_image(path, source.colour, source)
    assert path.read_text() == "precious"
    write_image(path, source.colour, source, overwrite=True)
    assert torch.equal(read_image(path).colour, source.colour)
    assert os.listdir(tmp_path) == ["out.png"]


def test_overwriting_a_link_does_not_write_through_it(tmp_path: Path) -> None:
    source = photo()
    (tmp_path / "original").write_text("precious")
    (tmp_path / "out.png").symlink_to(tmp_path / "original")
    write_image(tmp_path / "out.png", source.colour, source, overwrite=True)
    assert (tmp_path / "original").read_text() == "precious"
    assert not (tmp_path / "out.png").is_symlink()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left")])
def test_a_crash_in_the_middle_leaves_nothing(tmp_path: Path, error: object) -> None:
    def write(file: object) -> None:
        file.write(b"half a pho")  # type: ignore[attr-defined]
        raise error  # type: ignore[misc]

    with pytest.raises(error if isinstance(error, type) else type(error)):  # type: ignore[arg-type]
        publish(tmp_path / "out.png", write, overwrite=False, check=lambda path: None)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ImageError, match=r"out\.png: cannot be written: no space left on the disk"):
        write_image(tmp_path / "out.png", photo().colour, photo())
    assert os.listdir(tmp_path) == []


def test_a_failed_check_publishes_nothing(tmp_path: Path) -> None:
    def over_budget(colour: torch.Tensor) -> None:
        raise ImageError("somewhere", "beyond the budget")

    source = photo()
    with pytest.raises(ImageError, match=r"out\.png: beyond the budget"):
        write_image(tmp_path / "out.png", source.colour, source, check=over_budget)
    assert os.listdir(tmp_path) == []


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    publish_bytes(tmp_path / "a", b"1", overwrite=False)
    with pytest.raises(FileExistsError):
        publish_bytes(tmp_path / "a", b"2", overwrite=False)
    assert (tmp_path / "a").read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["a"]


def test_written_files_honour_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        publish_bytes(tmp_path / "a", b"1", overwrite=False)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_jpeg_refuses_alpha_and_keeps_grey(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="JPEG cannot hold"):
        write_image(tmp_path / "a.jpg", photo("RGBA").colour, photo("RGBA"), format="jpeg")
    write_image(tmp_path / "b.jpg", photo("L").colour, photo("L"), format="jpeg")
    assert read_image(tmp_path / "b.jpg").mode == "L"


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format: got 'tga', expected one of png, webp, jpeg"):
        write_image(tmp_path / "a.tga", photo().colour, photo(), format="tga")


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be written: No such file"):
        write_image(tmp_path / "no" / "a.png", photo().colour, photo())
