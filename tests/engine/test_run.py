"""Whole runs on tiny photographs: the real methods around a tiny denoiser."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from udp_fast import methods
from udp_fast.diffusion import Denoiser
from udp_fast.engine import Options, RunProgress, RunResult, Status, plan_files, run
from udp_fast.images import interrupts_held_back, read_image


@pytest.fixture
def go(tiny: Denoiser, quick: dict[str, int]) -> Callable[..., RunResult]:
    """A run over a folder with the tiny denoiser."""

    def run_folder(photos: Path, out: Path, *, mask: Path | None = None, **given: Any) -> RunResult:
        callbacks = {k: given.pop(k) for k in ("on_progress", "on_result") if k in given}
        options = Options(extra=quick, **given)
        tasks = plan_files([photos], out, options, mask=mask)
        return run(tasks, options, tiny, manifest_folder=out, **callbacks)

    return run_folder


Go = Callable[..., RunResult]


def visible(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def manifest(out: Path) -> dict:
    return json.loads((out / "manifest.json").read_text())


@pytest.mark.parametrize("method", ["eudp", "udp", "random", "none"])
def test_every_kind_of_photo(photos: Path, tmp_path: Path, go: Go, method: str) -> None:
    result = go(photos, tmp_path / "out", method=method)
    assert result.exit_code == 0
    assert visible(tmp_path / "out") == [
        "alpha.png",
        "colour.png",
        "grey.png",
        "manifest.json",
        "photo.png",
    ]
    for image in result.images:
        assert image.output is not None
        before, after = read_image(Path(image.source)), read_image(Path(image.output))
        difference = (after.colour.int() - before.colour.int()).abs()
        largest = 0 if method == "none" else 8
        assert int(difference.max()) == image.max_difference == largest
        assert before.output_mode == after.mode
        if before.alpha is not None:
            assert after.alpha is not None
            assert torch.equal(before.alpha, after.alpha)
        assert image.psnr == float("inf") if method == "none" else 28 < image.psnr < 50
        assert image.ssim is not None
        assert image.ssim <= 1
        assert None not in (image.loss_original, image.loss_random, image.loss_protected)
        if method == "random":
            assert image.loss_protected == pytest.approx(image.loss_random)
        if method == "none":
            assert image.loss_protected == pytest.approx(image.loss_original)


def test_manifest_tells_the_whole_story(photos: Path, tmp_path: Path, go: Go) -> None:
    (photos / "bad.png").write_text("text")
    result = go(photos, tmp_path / "out", seed=7)
    found = manifest(tmp_path / "out")
    assert result.manifest == tmp_path / "out/manifest.json"
    assert found["schema"] == "udp_fast.manifest/1"
    assert found["status"] == "complete"
    assert found["counts"] == {"protected": 4, "failed": 1, "skipped": 0, "interrupted": 0}
    settings = found["settings"]
    assert (settings["method"], settings["eps"], settings["levels"]) == ("eudp", "8/255", 8)
    assert settings["seed"] == 7
    assert settings["surrogate_steps"] == 1
    assert {"udp_fast", "torch", "numpy", "python"} <= set(found["versions"])
    assert set(found["backends"]) == {"pgd_step_", "q_sample", "denoising_loss", "quantize"}
    assert None not in found["backends"].values()
    assert len(found["surrogate"]["weights_sha256"]) == 64
    assert set(found["seconds"]) == {"read", "protect", "write", "evaluate", "total"}
    for row in found["images"]:
        if row["status"] == "failed":
            assert row["source"] == str(photos / "bad.png")
            assert "not an image" in row["reason"]
            assert row["output"] is None
            continue
        for name, path in (("input", row["source"]), ("output", tmp_path / "out" / row["output"])):
            digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            assert row[f"{name}_sha256"] == digest
        assert len(row["image_id"]) == 16


def test_same_seed_same_bytes_whatever_the_names(photos: Path, tmp_path: Path, go: Go) -> None:
    go(photos, tmp_path / "one", seed=3)
    for path in list(photos.iterdir()):
        path.rename(photos / f"z{hash(path.name) % 1000}{path.name}")
    go(photos, tmp_path / "two", seed=3)
    go(photos, tmp_path / "three", seed=4)

    def digests(folder: Path) -> set[bytes]:
        return {path.read_bytes() for path in folder.glob("*.png")}

    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert not digests(tmp_path / "one") & digests(tmp_path / "three")


def test_grey_spends_the_whole_budget(photos: Path, tmp_path: Path, go: Go) -> None:
    """The mean of three channels' random signs would be ±8 for a quarter of the pixels only."""
    go(photos, tmp_path / "out", method="random", evaluate=False)
    before = read_image(photos / "grey.png").colour[0].int()
    change = read_image(tmp_path / "out/grey.png").colour[0].int() - before
    inside = (before >= 8) & (before <= 247)
    assert bool((change[inside].abs() == 8).all())


def test_mask_leaves_black_untouched(photos: Path, tmp_path: Path, go: Go) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    plane = np.zeros((40, 36), np.uint8)
    plane[:20] = 255
    Image.fromarray(plane).save(masks / "colour.png")
    Image.fromarray(plane).save(masks / "grey.png")
    Image.fromarray(plane.T.copy()).save(masks / "photo.png")
    result = go(photos, tmp_path / "out", mask=masks)
    by_name = {Path(image.source).name: image for image in result.images}
    for name in ("colour.png", "grey.png"):
        assert by_name[name].mask == str(masks / name)
        change = read_image(tmp_path / "out" / name).colour.int()
        change -= read_image(photos / name).colour.int()
        assert not bool(change[:, 20:].any())
        assert bool(change[:, :20].any())
    assert by_name["photo.jpg"].status is Status.FAILED
    assert "is 40 × 36 pixels, the photo 36 × 40" in by_name["photo.jpg"].reason
    assert by_name["alpha.png"].notes == ["no mask: the whole photo is protected"]
    assert result.exit_code == 1


def test_jpeg_reports_what_survives(photos: Path, tmp_path: Path, go: Go) -> None:
    result = go(photos, tmp_path / "out", format="jpeg", evaluate=False)
    by_name = {Path(image.source).name: image for image in result.images}
    assert "JPEG cannot hold" in by_name["alpha.png"].reason
    image = by_name["colour.png"]
    assert image.status is Status.PROTECTED
    assert image.survived is not None
    assert 0.3 < image.survived < 1.2
    assert any(note.startswith("JPEG: ") for note in image.notes)
    back = read_image(tmp_path / "out/colour.jpg").colour.int()
    largest = int((back - read_image(photos / "colour.png").colour.int()).abs().max())
    assert image.max_difference == largest
    assert largest > 8
    assert f"differs by up to {largest} levels, ε allows 8" in image.notes


def test_a_jpeg_within_the_budget_has_nothing_to_note(tmp_path: Path, go: Go) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 36), (90, 120, 150)).save(tmp_path / "photos" / "flat.png")
    (image,) = go(tmp_path / "photos", tmp_path / "out", format="jpeg", method="none").images
    assert image.status is Status.PROTECTED
    assert not any("differs" in note for note in image.notes)


def test_what_the_format_cannot_hold_is_noted(
    tmp_path: Path, go: Go, pixels: Callable[..., np.ndarray]
) -> None:
    (tmp_path / "photos").mkdir()
    texts = PngInfo()
    texts.add_text("Copyright", "someone")
    Image.fromarray(pixels()).save(tmp_path / "photos" / "a.png", pnginfo=texts)
    notes = {}
    for kind in ("png", "webp", "jpeg"):
        result = go(tmp_path / "photos", tmp_path / kind, format=kind, method="none")
        notes[kind] = result.images[0].notes
    assert notes["png"] == []
    assert notes["webp"] == ["its PNG texts (Copyright) are not carried over"]
    assert notes["jpeg"][-1] == "its PNG texts (Copyright) are not carried over"


def test_groups_bound_the_memory(
    photos: Path,
    tmp_path: Path,
    go: Go,
    pixels: Callable[..., np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    real = methods.protect

    def spy(items: list, **given: object) -> None:
        if given["method"] == "eudp":
            sizes.append(sum(item.original[0].numel() for item in items))
        real(items, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(methods, "protect", spy)
    Image.fromarray(pixels(8, 64, 64)).save(photos / "large.png")
    result = go(photos, tmp_path / "out", group_pixels=2 * 40 * 36)
    assert sizes == [2 * 40 * 36, 40 * 36, 64 * 64, 40 * 36]
    assert [image.group for image in result.images] == [1, 1, 2, 3, 4]
    assert result.exit_code == 0


def test_copies_of_a_picture_get_the_same_change(photos: Path, tmp_path: Path, go: Go) -> None:
    Image.open(photos / "colour.png").save(photos / "copy.bmp")
    go(photos, tmp_path / "out")
    a, b = (read_image(tmp_path / "out" / name).colour for name in ("colour.png", "copy.png"))
    assert torch.equal(a, b)


def test_a_failing_group_is_tried_one_by_one(
    photos: Path, tmp_path: Path, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = read_image(photos / "grey.png").image_id
    real = methods.protect

    def fragile(items: list, **given: object) -> None:
        if any(item.image_id == bad for item in items):
            raise RuntimeError("kernel launch failed\nlong story")
        real(items, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(methods, "protect", fragile)
    result = go(photos, tmp_path / "out")
    assert [Path(i.source).name for i in result.failed] == ["grey.png"]
    assert result.failed[0].reason == "RuntimeError: kernel launch failed"
    assert len(result.protected) == 3


def test_a_file_that_breaks_after_planning(photos: Path, tmp_path: Path, go: Go) -> None:
    content = (photos / "colour.png").read_bytes()
    (photos / "colour.png").write_bytes(content[: len(content) // 2])  # its header is still good
    result = go(photos, tmp_path / "out")
    assert "truncated or damaged" in result.failed[0].reason
    assert len(result.protected) == 3
    assert "colour.png" not in visible(tmp_path / "out")


def interrupt_at(phase: str, count: int = 1) -> Callable[[RunProgress], None]:
    seen = 0

    def callback(progress: RunProgress) -> None:
        nonlocal seen
        if phase in progress.activity:
            seen += 1
            if seen == count:
                raise KeyboardInterrupt

    return callback


@pytest.mark.parametrize(
    ("phase", "count", "whole"),
    [
        ("adapting", 1, []),
        ("perturbing", 2, []),
        ("writing", 1, []),
        ("writing", 3, ["alpha.png", "colour.png"]),
        ("evaluating", 1, ["alpha.png"]),
    ],
)
def test_interrupt_leaves_whole_files_only(
    photos: Path, tmp_path: Path, go: Go, tiny: Denoiser, phase: str, count: int, whole: list[str]
) -> None:
    before = {name: value.clone() for name, value in tiny.module.state_dict().items()}
    out = tmp_path / "out"
    result = go(photos, out, on_progress=interrupt_at(phase, count))
    assert result.interrupted
    assert result.exit_code == 130
    assert visible(out) == [*whole, "manifest.json"]
    found = manifest(out)
    assert found["status"] == "interrupted"
    done = [row["output"] for row in found["images"] if row["status"] == "protected"]
    assert done == whole
    assert found["counts"]["interrupted"] == 4 - len(whole)
    for name in whole:
        read_image(out / name)
    for name, value in tiny.module.state_dict().items():
        assert torch.equal(value, before[name])


def test_ctrl_c_is_held_back_while_a_file_gets_its_name() -> None:
    finished = False

    def work() -> None:
        nonlocal finished
        with interrupts_held_back():
            os.kill(os.getpid(), signal.SIGINT)
            finished = True

    with pytest.raises(KeyboardInterrupt):
        work()
    assert finished
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_run_does_not_replace_the_first_manifest(
    photos: Path, tmp_path: Path, go: Go
) -> None:
    out = tmp_path / "out"
    go(photos, out, method="none", evaluate=False)
    first = (out / "manifest.json").read_bytes()
    result = go(photos, out, method="none", evaluate=False)
    assert result.exit_code == 1
    assert all("exists already" in image.reason for image in result.failed)
    assert (out / "manifest.json").read_bytes() == first
    assert result.manifest == out / "manifest-2.json"
    result = go(photos, out, method="none", evaluate=False, overwrite=True)
    assert result.exit_code == 0
    assert result.manifest == out / "manifest.json"


def plain(photos: Path, out: Path, **given: Any) -> str:
    """A run that changes nothing and replaces what it may; the name of its manifest."""
    options = Options(method="none", evaluate=False, overwrite=True, **given)
    result = run(plan_files([photos], out, options), options, None, manifest_folder=out)
    assert result.manifest is not None
    return result.manifest.name


def test_overwriting_loses_no_record_of_a_file_that_stays(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert plain(photos, out) == "manifest.json"
    first = (out / "manifest.json").read_bytes()
    # The first manifest alone knows of the other three files, or of those with another name.
    assert plain(photos / "colour.png", out) == "manifest-2.json"
    assert plain(photos, out, format="webp") == "manifest-3.json"
    assert (out / "manifest.json").read_bytes() == first
    assert plain(photos / "colour.png", out) == "manifest-2.json", "lists nothing but this file"
    (photos / "photo.jpg").write_text("text")  # its earlier result stays
    assert plain(photos, out) == "manifest-2.json"
    (photos / "photo.jpg").unlink()
    Image.new("RGB", (32, 32)).save(photos / "photo.jpg")
    assert plain(photos, out) == "manifest.json"


@pytest.mark.parametrize(
    "content",
    [
        b'{"schema": "other/1", "images": []}',
        b'{"schema": 3, "images": []}',
        b'{"schema": "udp_fast.manifest/1"}',
        b'{"schema": "udp_fast.manifest/1", "images": [{"output": 3}]}',
        b'["manifest"]',
        b"\xff\xfe",
        b"",
    ],
)
def test_overwriting_replaces_no_manifest_of_others(
    photos: Path, tmp_path: Path, content: bytes
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_bytes(content)
    assert plain(photos, out) == "manifest-2.json"
    assert (out / "manifest.json").read_bytes() == content


def test_progress_runs_from_nought_to_one(photos: Path, tmp_path: Path, go: Go) -> None:
    seen: list[RunProgress] = []
    rows: list[str] = []
    go(
        photos,
        tmp_path / "out",
        group_pixels=2 * 40 * 36,
        on_progress=seen.append,
        on_result=lambda image: rows.append(Path(image.source).name),
    )
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < 0.5
    assert fractions[-1] == pytest.approx(1)
    assert any(progress.loss for progress in seen)
    assert sorted(rows) == ["alpha.png", "colour.png", "grey.png", "photo.jpg"]


def test_names_that_are_no_text(tmp_path: Path, go: Go, pixels: Callable[..., np.ndarray]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9\n[red].png")
    try:
        Image.fromarray(pixels()).save(folder / name)
    except OSError:
        pytest.skip("this file system takes no such names")
    result = go(folder, tmp_path / "out", method="none", evaluate=False)
    assert result.exit_code == 0
    assert manifest(tmp_path / "out")["status"] == "complete"


def test_ctrl_c_in_the_moment_a_file_appears(
    photos: Path, tmp_path: Path, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def link(source: Path, target: Path) -> None:
        real(source, target)
        if target.name != "manifest.json":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "link", link)
    out = tmp_path / "out"
    assert go(photos, out, evaluate=False).exit_code == 130
    assert visible(out) == ["alpha.png", "manifest.json"]
    row = manifest(out)["images"][0]
    assert (row["status"], row["output"], row["max_difference"]) == ("protected", "alpha.png", 8)


def test_a_closed_output_folder_is_found_out_before_the_work(
    photos: Path, tmp_path: Path, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "protect", lambda *a, **k: pytest.fail("worked for nothing"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        go(photos, tmp_path / "file" / "out")


def test_a_disk_that_fills_up_is_no_crash(
    photos: Path, tmp_path: Path, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    real = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal written
        written += 1
        if written > 4:  # manifest and its folder, one photo and its folder
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    result = go(photos, tmp_path / "out", evaluate=False)
    assert [i.reason for i in result.failed] == ["cannot be written: no space left on the disk"] * 3
    assert "manifest.json: no space left" in result.problem
    assert result.exit_code == 1
    assert visible(tmp_path / "out") == ["alpha.png", "manifest.json"]
