"""Every kind of file that a folder may hold: read faithfully, or refused in words."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from udp_fast.images import ImageError, looks_like_image, measure, pixel_limit, read_image


def pixels(height: int = 40, width: int = 36, channels: int = 3, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, channels), dtype=np.uint8)


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert caught.value.path == path
    for word in words:
        assert word in caught.value.reason
    assert str(path) not in caught.value.reason, "the reason goes into a table beside the name"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.bmp", {}),
        ("a.tif", {}),
        ("a.tiff", {"compression": "tiff_lzw"}),
        ("a.webp", {"lossless": True}),
    ],
)
def test_lossless_formats_give_their_pixels(tmp_path: Path, name: str, options: dict) -> None:
    source = pixels()
    Image.fromarray(source).save(tmp_path / name, **options)
    photo = read_image(tmp_path / name)
    assert photo.colour.dtype == torch.uint8
    assert torch.equal(photo.colour.permute(1, 2, 0), torch.from_numpy(source))
    assert photo.alpha is None
    assert not photo.grey
    assert (photo.height, photo.width) == measure(tmp_path / name) == (40, 36)
    assert photo.notes == ()


def test_image_id_follows_the_pixels_not_the_file(tmp_path: Path) -> None:
    image = Image.fromarray(pixels())
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.bmp")
    Image.fromarray(pixels(seed=1)).save(tmp_path / "c.png")
    a, b, c = (read_image(tmp_path / name) for name in ("a.png", "b.bmp", "c.png"))
    assert a.image_id == b.image_id != c.image_id
    assert a.sha256 != b.sha256
    assert -(2**63) <= a.image_id < 2**63


def test_jpeg_keeps_exif_icc_dpi_and_orientation_without_turning(tmp_path: Path) -> None:
    image = Image.fromarray(pixels(48, 36))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x8298] = "someone"
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(tmp_path / "a.jpg", exif=exif, icc_profile=icc, dpi=(300, 300))
    photo = read_image(tmp_path / "a.jpg")
    assert (photo.height, photo.width) == (48, 36)
    assert photo.orientation == 6
    assert photo.exif is not None
    assert b"someone" in photo.exif
    assert photo.icc == icc
    assert photo.dpi == (300.0, 300.0)


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_stays_grey(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(pixels(channels=1)[..., 0]).convert(mode)
    if mode == "LA":
        image.putalpha(Image.fromarray(pixels(channels=1, seed=2)[..., 0]))
    image.save(tmp_path / "a.png")
    photo = read_image(tmp_path / "a.png")
    assert photo.grey
    assert torch.equal(photo.colour[0], photo.colour[2])
    assert photo.output_mode == ("LA" if mode == "LA" else "L")
    assert (photo.alpha is not None) == (mode == "LA")
    assert any("1-bit" in note for note in photo.notes) == (mode == "1")


def test_alpha_is_kept_apart(tmp_path: Path) -> None:
    source = pixels(channels=4)
    Image.fromarray(source).save(tmp_path / "a.png")
    photo = read_image(tmp_path / "a.png")
    assert photo.alpha is not None
    assert torch.equal(photo.alpha[0], torch.from_numpy(source[..., 3]))
    assert torch.equal(photo.colour.permute(1, 2, 0), torch.from_numpy(source[..., :3]))


def test_palette_is_expanded_and_said_so(tmp_path: Path) -> None:
    image = Image.fromarray(pixels()).quantize(16)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.png", transparency=3)
    image.save(tmp_path / "c.gif")
    plain, transparent, gif = (read_image(tmp_path / n) for n in ("a.png", "b.png", "c.gif"))
    assert "palette expanded to RGB" in plain.notes
    assert "palette expanded to RGBA" in transparent.notes
    assert transparent.alpha is not None
    assert "palette expanded to RGB" in gif.notes
    assert torch.equal(plain.colour, gif.colour)


def test_a_transparent_colour_becomes_alpha(tmp_path: Path) -> None:
    source = pixels()
    source[:4] = (1, 2, 3)
    Image.fromarray(source).save(tmp_path / "a.png", transparency=(1, 2, 3))
    photo = read_image(tmp_path / "a.png")
    assert photo.alpha is not None
    assert int(photo.alpha[0, 0, 0]) == 0
    assert int(photo.alpha[0, -1, 0]) == 255


def test_tiff_metadata_comes_without_its_layout_tags(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x8298] = "someone"
    Image.fromarray(pixels()).save(tmp_path / "a.tif", exif=exif)
    photo = read_image(tmp_path / "a.tif")
    assert photo.exif is not None
    found = Image.Exif()
    found.load(photo.exif)
    assert found[0x8298] == "someone"
    assert 256 not in found
    assert 273 not in found


def test_wrong_suffix_is_read_by_content(tmp_path: Path) -> None:
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", "PNG")
    assert read_image(tmp_path / "a.jpg").notes == ("named .jpg, but holds a PNG",)


def test_mpo_is_a_jpeg_with_a_companion(tmp_path: Path) -> None:
    first, second = Image.fromarray(pixels()), Image.fromarray(pixels(seed=1))
    first.save(tmp_path / "a.mpo", "MPO", save_all=True, append_images=[second])
    photo = read_image(tmp_path / "a.mpo")
    assert any("first of the 2 pictures" in note for note in photo.notes)


def sixteen_bit_rgb_png() -> bytes:
    """Pillow cannot write one, and opens one as 8-bit RGB without a word."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", 36, 40, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + bytes(36 * 6) for _ in range(40))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def sixteen_bit_rgb_tiff() -> bytes:
    entries = [
        (256, 3, 1, 36),
        (257, 3, 1, 40),
        (258, 3, 3, 200),  # bits per sample: three 16s at offset 200
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 256),
        (277, 3, 1, 3),
        (278, 3, 1, 40),
        (279, 4, 1, 36 * 40 * 6),
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", *entry) for entry in entries
    )
    head = (b"II*\0" + struct.pack("<I", 8) + directory + bytes(4)).ljust(200, b"\0")
    return (head + struct.pack("<3H", 16, 16, 16)).ljust(256, b"\0") + bytes(36 * 40 * 6)


def test_deep_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rgb16.png").write_bytes(sixteen_bit_rgb_png())
    (tmp_path / "rgb16.tif").write_bytes(sixteen_bit_rgb_tiff())
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(tmp_path / "grey16.png")
    Image.fromarray(np.zeros((40, 40), np.float32)).save(tmp_path / "float.tif")
    for name in ("rgb16.png", "rgb16.tif", "grey16.png"):
        refused(tmp_path / name, "16 bits per channel", "convert")
    refused(tmp_path / "float.tif", "32 bits per channel")


def test_other_colour_spaces_are_refused(tmp_path: Path) -> None:
    Image.new("CMYK", (40, 40)).save(tmp_path / "a.jpg")
    Image.new("LAB", (40, 40)).save(tmp_path / "b.tif")
    refused(tmp_path / "a.jpg", "CMYK", "RGB")
    refused(tmp_path / "b.tif", "LAB", "RGB")


def test_animations_and_pages_are_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(pixels(seed=s)) for s in range(3)]
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        refused(tmp_path / name, "3 pages" if name == "a.tif" else "3 animation frames")


def test_absent_and_odd_paths(tmp_path: Path) -> None:
    refused(tmp_path / "nothing.png", "no such file")
    refused(tmp_path, "is a folder")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "empty (0 bytes)")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone.png")
    refused(tmp_path / "dangling.png", "symbolic link points to nothing")
    (tmp_path / "one.png").symlink_to(tmp_path / "two.png")
    (tmp_path / "two.png").symlink_to(tmp_path / "one.png")
    refused(tmp_path / "one.png", "leads back to itself")
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "not a regular file")
    refused(tmp_path / ("x" * 300), "name is too long")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_unreadable_file(tmp_path: Path) -> None:
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    refused(tmp_path / "a.png", "permission denied")


def test_things_that_are_not_images(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture at all")
    refused(tmp_path / "text.png", "not an image", "PNG, JPEG")
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(60))
    refused(tmp_path / "phone.jpg", "HEIC", "export")
    (tmp_path / "drawing.psd").write_bytes(b"8BPS" + bytes(60))
    refused(tmp_path / "drawing.psd", "Photoshop")
    (tmp_path / "logo.svg").write_text("<svg/>")
    refused(tmp_path / "logo.svg", "SVG", "not supported")
    Image.fromarray(pixels()).save(tmp_path / "a.ppm")
    refused(tmp_path / "a.ppm", "PPM", "not supported")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp", "gif"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.9])
def test_truncated_files_are_named(tmp_path: Path, suffix: str, part: float) -> None:
    whole = io.BytesIO()
    Image.fromarray(pixels(80, 80)).save(
        whole, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
    )
    content = whole.getvalue()
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ImageError, match=r"truncated or damaged|not an image|cannot be read"):
        read_image(path)


def test_every_flipped_byte_reads_or_raises_image_error(tmp_path: Path) -> None:
    """A damaged file may decode to other pixels; it must never raise anything but ImageError."""
    generator = np.random.default_rng(0)
    for suffix, kind in (("png", "PNG"), ("jpg", "JPEG"), ("gif", "GIF"), ("webp", "WEBP")):
        whole = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 3
        Image.fromarray(pixels()).save(whole, kind, **({} if kind == "GIF" else {"exif": exif}))
        for _ in range(40):
            content = bytearray(whole.getvalue())
            for position in generator.integers(0, min(len(content), 400), 4):
                content[position] = int(generator.integers(256))
            path = tmp_path / f"a.{suffix}"
            path.write_bytes(content)
            with contextlib.suppress(ImageError):
                read_image(path, max_pixels=10_000)


def test_bombs_are_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (3000, 3000)).save(tmp_path / "a.png")
    before = Image.MAX_IMAGE_PIXELS
    for limit in (1_000_000, 5_000_000):  # beyond twice the limit, and between once and twice
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ImageError, match=r"too large.*--max-pixels"):
                read_image(tmp_path / "a.png", max_pixels=limit)
    monkeypatch.setenv("UDP_FAST_MAX_PIXELS", "1000000")
    refused(tmp_path / "a.png", "too large", "UDP_FAST_MAX_PIXELS")
    with pytest.raises(ImageError, match="too large"):
        measure(tmp_path / "a.png")
    assert before == Image.MAX_IMAGE_PIXELS
    assert read_image(tmp_path / "a.png", max_pixels=9_000_000).width == 3000


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff", "bmp", "gif"])
def test_what_is_too_large_is_named_by_its_size(tmp_path: Path, kind: str) -> None:
    Image.new("L", (90, 70)).save(tmp_path / f"a.{kind}")
    for limit in (1000, 4000):
        with pytest.raises(ImageError, match="too large: 90 × 70 = 6,300 pixels, the limit is"):
            measure(tmp_path / f"a.{kind}", max_pixels=limit)


def test_pixel_limit_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pixel_limit() == 100_000_000
    monkeypatch.setenv("UDP_FAST_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="UDP_FAST_MAX_PIXELS: got 'many'"):
        pixel_limit()
    with pytest.raises(ValueError, match="max_pixels: got -1"):
        pixel_limit(-1)
    assert type(pixel_limit(np.int64(7))) is int


@pytest.mark.parametrize("size", [(31, 64), (64, 31), (1, 1)])
def test_too_small(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "too small", "32")


def test_looks_like_image(tmp_path: Path) -> None:
    write: Callable[[str, bytes], Path] = lambda name, content: (  # noqa: E731
        (tmp_path / name).write_bytes(content),
        tmp_path / name,
    )[1]
    assert looks_like_image(write("a.JPG", b""))
    assert looks_like_image(write("a.heic", b""))
    assert looks_like_image(write("nameless", b"\xff\xd8\xff\xe0" + bytes(20)))
    assert not looks_like_image(write("notes.txt", b"hello"))
    assert not looks_like_image(write("none", b""))
