"""udp_fast.protect: every kind of image comes back as what it was."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import udp_fast
from udp_fast.diffusion import Denoiser, NoiseSchedule
from udp_fast.engine.api import Protected
from udp_fast.images import ImageError, read_image


def pixels(seed: int = 0, height: int = 40, channels: int = 3) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, 36, channels), dtype=np.uint8)


Protect = Callable[..., Protected]


@pytest.fixture
def protect(tiny: Denoiser, quick: dict[str, int]) -> Protect:
    def call(images: Any, **given: Any) -> Protected:
        return udp_fast.protect(images, model=tiny, **{**quick, "evaluate": False, **given})

    return call


def levels(image: Any) -> np.ndarray:
    array = np.asarray(image)
    return np.rint(array * 255.0) if array.dtype.kind == "f" else array.astype(float)


@pytest.mark.parametrize(
    "image",
    [
        pixels(),
        pixels(channels=1),
        pixels(channels=1)[..., 0],
        np.concatenate([pixels(), pixels(1, channels=1)], axis=2),
        np.stack([pixels(), pixels(1)]),
        pixels().astype(np.float32) / 255,
        pixels().astype(np.float64) / 255,
        (pixels() / 255).astype(">f4"),
        np.asfortranarray(pixels()),
        torch.from_numpy(pixels()).permute(2, 0, 1),
        torch.from_numpy(pixels(channels=1)[..., 0]),
        torch.rand(3, 40, 36, generator=torch.Generator().manual_seed(0)),
        torch.rand(2, 3, 40, 36, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
        torch.rand(1, 40, 36, generator=torch.Generator().manual_seed(0)).double(),
    ],
    ids=lambda image: f"{type(image).__name__}-{image.dtype}-{'x'.join(map(str, image.shape))}",
)
def test_arrays_and_tensors_come_back_alike(image: Any, protect: Protect) -> None:
    before = image.copy() if isinstance(image, np.ndarray) else image.clone()
    out, result = protect(image)
    assert type(out) is type(image)
    assert out.dtype == image.dtype
    assert out.shape == image.shape
    assert bool((image == before).all()), "the input must not change"
    unit = 1.0 if image.dtype in (np.uint8, torch.uint8) else 1 / 255
    if isinstance(out, torch.Tensor):
        out, image = out.double().numpy(), image.double().numpy()
    assert out.min() >= 0
    change = (out.astype(np.float64) - image.astype(np.float64)) / unit
    coarse = 2**-8 * 255 if before.dtype == torch.bfloat16 else 1e-4
    assert np.abs(change).max() == pytest.approx(8, abs=coarse)
    assert result.exit_code == 0
    assert result.images[0].max_difference == 8


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P"])
def test_pil_images(mode: str, protect: Protect) -> None:
    image = Image.fromarray(np.concatenate([pixels(), pixels(1, channels=1)], axis=2)).convert(mode)
    image.info["icc_profile"] = b"profile"
    out, _ = protect(image)
    assert isinstance(out, Image.Image)
    assert out.mode == ("RGB" if mode == "P" else mode)
    assert out.size == image.size
    assert out.info["icc_profile"] == b"profile"
    if "A" in mode:
        assert out.getchannel("A").tobytes() == image.getchannel("A").tobytes()
    shown, original = out.convert("RGB"), image.convert("RGB")
    assert np.abs(levels(shown) - levels(original)).max() == 8


def test_files_and_memory_mixed(photos: Path, tmp_path: Path, protect: Protect) -> None:
    array = pixels(9)
    (photos / "bad.png").write_text("text")
    inputs = [array, photos, str(photos / ".." / "photos" / "gone.png"), torch.from_numpy(array)]
    inputs[3] = inputs[3].permute(2, 0, 1)
    (first, folder, gone, last), result = protect(inputs, out=tmp_path / "out")
    assert isinstance(first, np.ndarray)
    assert [None if p is None else p.name for p in folder] == [
        "alpha.png",
        None,
        "colour.png",
        "grey.png",
        "photo.png",
    ]
    assert gone is None
    assert np.array_equal(last.permute(1, 2, 0).numpy(), first), "equal pixels, equal change"
    written = read_image(tmp_path / "out" / "image-0001.png")
    assert np.array_equal(written.colour.permute(1, 2, 0).numpy(), first)
    assert {Path(image.source).name for image in result.failed} == {"bad.png", "gone.png"}
    assert "bad.png" in str(result)
    path, _ = protect(photos / "colour.png", out=tmp_path / "single")
    assert path == tmp_path / "single" / "colour.png"


def test_masks(protect: Protect) -> None:
    mask = np.zeros((40, 36), bool)
    mask[:, :9] = True
    out, _ = protect(pixels(), mask=mask)
    assert np.array_equal(out[:, 9:], pixels()[:, 9:])
    assert not np.array_equal(out[:, :9], pixels()[:, :9])
    batch = np.stack([pixels(0), pixels(1)])
    (both, one), _ = protect([batch, pixels(2)], mask=[np.stack([mask, ~mask]), None])
    assert np.array_equal(both[0][:, 9:], batch[0][:, 9:])
    assert np.array_equal(both[1][:, :9], batch[1][:, :9])
    assert not np.array_equal(one, pixels(2))


def test_what_exists_is_left_out_and_returned(
    photos: Path, tmp_path: Path, protect: Protect
) -> None:
    out = tmp_path / "out"
    first, _ = protect(photos / "grey.png", out=out)
    before = first.read_bytes()
    paths, result = protect(photos, out=out, skip_existing=True)
    assert [path.name for path in paths] == ["alpha.png", "colour.png", "grey.png", "photo.png"]
    assert first.read_bytes() == before
    assert result.exit_code == 0
    assert len(result.protected) == 3
    again, result = protect(photos / "grey.png", out=out, skip_existing=True)
    assert (again, result.exit_code) == (first, 0)
    row = json.loads((out / "manifest-3.json").read_text())["images"][0]
    assert (row["status"], row["output"]) == ("skipped", "grey.png")


def test_masks_of_no_photograph_are_named(photos: Path, tmp_path: Path, protect: Protect) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for name in ("colour.png", "color.png"):
        Image.new("L", (36, 40), 255).save(masks / name)
    _, result = protect(photos / "colour.png", out=tmp_path / "out", mask=str(masks))
    (note,) = result.notes
    assert note.endswith("no photograph is named so: color.png")
    assert str(result).endswith(note)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["notes"] == [note]


def test_a_float_image_stays_as_it_is_where_nothing_changes(protect: Protect) -> None:
    image = torch.rand(3, 40, 36, generator=torch.Generator().manual_seed(1))
    out, _ = protect(image, method="none")
    assert torch.equal(out, image)


@pytest.mark.parametrize(
    ("images", "given", "error", "words"),
    [
        ([], {}, ValueError, "images: got an empty list"),
        (3, {}, TypeError, "images: got int"),
        ("a.png", {}, ValueError, "out: got None"),
        (np.zeros((40, 40, 3), np.int64), {}, TypeError, "numpy array of int64"),
        (np.zeros((3, 40, 40), np.uint8), {}, ValueError, r"shape \(3, 40, 40\)"),
        (np.full((40, 40, 3), np.nan), {}, ValueError, "outside"),
        (torch.full((3, 40, 40), 1.5), {}, ValueError, "outside"),
        (torch.zeros(3, 40, 40, dtype=torch.int32), {}, TypeError, r"torch\.int32"),
        (torch.zeros(2, 40, 40, dtype=torch.uint8), {}, ValueError, "C = 1, 3 or 4"),
        (np.zeros((40, 40, 3), np.longdouble), {}, TypeError, "at most 64 bits"),
        (
            torch.zeros(3, 40, 40, device="meta"),
            {},
            TypeError,
            "without data .meta.*expected a dense",
        ),
        (torch.zeros(3, 40, 40).to_sparse(), {}, TypeError, "layout torch.sparse_coo"),
        (pixels(height=20), {}, ImageError, "too small"),
        (Image.new("I;16", (40, 40)), {}, ImageError, "16 bits"),
        (pixels(), {"mask": "masks"}, ValueError, "mask: got the folder"),
        (pixels(), {"mask": 3}, TypeError, "mask: got int"),
        ([pixels()], {"mask": [None, None]}, ValueError, "mask: got a list of 2"),
        (pixels(), {"mask": np.ones((9, 9), bool)}, ImageError, "mask given: is 9 × 9"),
        (pixels(), {"eps": 8}, ValueError, "eps: got 8"),
        (pixels(), {"colour": 3}, ValueError, "unknown colour"),
        (pixels(), {"alpha": 2}, ValueError, r"alpha: got 2.0, expected a step in \[0, 1\]"),
        (pixels(), {"max_pixels": "10"}, TypeError, "max_pixels: got '10', expected a positive"),
        (pixels(), {"max_pixels": True}, TypeError, "max_pixels: got True"),
    ],
)
def test_errors_name_the_argument(
    images: Any, given: dict, error: type[Exception], words: str, protect: Protect
) -> None:
    with pytest.raises(error, match=words):
        protect(images, **given)


def test_a_file_is_no_output_folder(tmp_path: Path, protect: Protect) -> None:
    (tmp_path / "portrait.jpg").touch()
    with pytest.raises(ValueError, match=r"portrait\.jpg: is a file, expected a folder"):
        protect(pixels(), out=tmp_path / "portrait.jpg")


def test_numpys_numbers_are_numbers(tmp_path: Path, protect: Protect) -> None:
    expected, _ = protect(pixels(), steps=1, seed=3, eps=float(np.float32(0.03)))
    out, result = protect(
        pixels(),
        out=tmp_path / "out",
        steps=np.int64(1),
        seed=np.int64(3),
        eps=np.float32(0.03),
        group_pixels=np.int32(10**6),
        max_pixels=np.uint32(10**6),
        evaluate=True,
    )
    assert np.array_equal(out, expected)
    assert result.exit_code == 0


@pytest.mark.parametrize("model", [torch.nn.Conv2d(3, 3, 3), 3, b"model"])
def test_a_model_that_is_none(model: Any) -> None:
    name = type(model).__name__
    with pytest.raises(TypeError, match=f"model: got {name}, expected None.*PixelDenoiser"):
        udp_fast.protect(pixels(), model=model)


def test_interrupt_reaches_the_caller(protect: Protect) -> None:
    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        protect(pixels(), on_progress=stop)


@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_the_callers_modes_change_nothing(mode: Any, protect: Protect) -> None:
    image = torch.from_numpy(pixels()).permute(2, 0, 1)
    mask = torch.ones(40, 36, dtype=torch.bool)
    mask[:, :9] = False
    expected, usual = protect(image, mask=mask, steps=2, evaluate=True)
    with mode:
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        out, result = protect(image.clone(), mask=mask.clone(), steps=2, evaluate=True)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
        assert torch.is_autocast_enabled("cpu") == isinstance(mode, torch.autocast)
    assert torch.equal(out, expected)
    assert not out.is_inference()
    assert result.images[0].loss_protected == usual.images[0].loss_protected


@torch.inference_mode()
def test_images_and_a_model_from_inference_mode(quick: dict[str, int], tiny: Denoiser) -> None:
    image = torch.rand(3, 40, 36)
    with torch.inference_mode(False):
        expected, _ = udp_fast.protect(image.clone(), model=tiny, **quick)
    held = copy.deepcopy(tiny)
    held.schedule = NoiseSchedule(tiny.schedule.alphas_cumprod.clone())
    weights = list(held.module.parameters())
    assert all(weight.is_inference() for weight in weights)
    out, _ = udp_fast.protect(image, model=held, **quick)
    assert torch.equal(out, expected)
    assert all(a is b for a, b in zip(held.module.parameters(), weights, strict=True))
    assert torch.equal(held.module.weight, tiny.module.weight)
    with torch.inference_mode(False):
        outside, _ = udp_fast.protect(image, model=held, **quick)
    assert torch.equal(outside, expected)
