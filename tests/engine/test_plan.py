"""What is protected and where it goes, settled before the work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from udp_fast.engine import Options, PlanError, Task, plan_files, unused_masks
from udp_fast.ops import Budget


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32)).save(path)
    return path


def plan(*inputs: Path, out: Path, **given: object) -> list[Task]:
    keywords = {name: given.pop(name) for name in ("recursive", "mask") if name in given}
    return plan_files(inputs, out, Options(method="none", **given), **keywords)  # type: ignore[arg-type]


def test_folders_by_name_hidden_files_passed_over(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", ".hidden.png", "sub/c.png", ".git/d.png"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("hello")
    flat = plan(tmp_path / "in", out=tmp_path / "out")
    assert [(t.source.name, t.refusal, t.skipped) for t in flat] == [
        ("a.jpg", "", False),
        ("b.png", "", False),
        ("notes.txt", "not an image", True),
    ]
    assert [t.target for t in flat][:2] == [tmp_path / "out/a.png", tmp_path / "out/b.png"]
    deep = plan(tmp_path / "in", out=tmp_path / "out", recursive=True)
    assert [t.target for t in deep if not t.refusal][2] == tmp_path / "out/sub/c.png"
    assert len(deep) == 4


def test_outputs_inside_the_input_folder_are_not_protected_again(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "out" / "b.png")
    picture(tmp_path / "masks" / "a.png")
    tasks = plan(
        tmp_path, out=tmp_path / "out", recursive=True, mask=tmp_path / "masks", format="webp"
    )
    assert [t.source.name for t in tasks] == ["a.png"]


def test_broken_files_are_refused_one_by_one(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("text")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    tasks = plan(tmp_path, tmp_path / "gone.jpg", out=tmp_path / "out")
    reasons = {t.source.name: t.refusal for t in tasks}
    assert reasons["good.png"] == ""
    assert "not an image" in reasons["bad.png"]
    assert "leads back to itself" in reasons["loop.png"]
    assert reasons["gone.jpg"] == "no such file"


def test_links_between_folders_do_not_loop(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    assert len(plan(tmp_path / "in", out=tmp_path / "out", recursive=True)) == 1


def test_one_file_given_twice_is_done_once(tmp_path: Path) -> None:
    a = picture(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(a)
    tasks = plan(tmp_path, a, out=tmp_path / "out")
    assert [t.refusal for t in tasks] == ["", "given twice", "given twice"]


@pytest.mark.parametrize("name", ["a-link.png", "z-link.png"])
def test_the_real_name_wins_over_links(tmp_path: Path, name: str) -> None:
    real = picture(tmp_path / "in" / "photo.png")
    link = tmp_path / "in" / name
    link.symlink_to(real)
    for inputs in (
        [tmp_path / "in"],
        [link, real],
        [real, link],
        [link, tmp_path / "in" / "." / real],
    ):
        tasks = plan(*inputs, out=tmp_path / "out")
        assert {t.source.name: t.refusal for t in tasks} == {"photo.png": "", name: "given twice"}
    (folder := tmp_path / "elsewhere").symlink_to(tmp_path / "in")
    tasks = plan(folder / "photo.png", link, out=tmp_path / "out")
    assert [t.refusal for t in tasks] == ["", "given twice"]
    link.rename(tmp_path / "alone.png")
    (task,) = plan(tmp_path / "alone.png", out=tmp_path / "out")
    assert task.target == tmp_path / "out" / "alone.png"


def test_equal_stems_keep_their_full_names(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "A.bmp", "c.png"):
        picture(tmp_path / "in" / name)
    tasks = plan(tmp_path / "in", out=tmp_path / "out")
    assert sorted(t.target.name for t in tasks if t.target) == [
        "A.bmp.png",
        "a.jpg.png",
        "a.png.png",
        "c.png",
    ]


def test_equal_names_from_two_folders_are_refused_up_front(tmp_path: Path) -> None:
    one, two = picture(tmp_path / "one/a.png"), picture(tmp_path / "two/a.png")
    with pytest.raises(
        PlanError, match=r"one/a\.png and .*two/a\.png would be written to the same"
    ):
        plan(one, two, out=tmp_path / "out")


def test_existing_outputs_and_inputs_are_never_replaced_uninvited(tmp_path: Path) -> None:
    a = picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "out" / "a.png")
    assert "--overwrite" in plan(a, out=tmp_path / "out")[0].refusal
    assert plan(a, out=tmp_path / "out", overwrite=True)[0].refusal == ""
    for overwrite in (False, True):
        refusal = plan(a, out=tmp_path / "in", overwrite=overwrite)[0].refusal
        assert "is itself an input" in refusal
    os.link(a, tmp_path / "out" / "linked.png")
    b = picture(tmp_path / "linked.png")
    tasks = plan(a, b, out=tmp_path / "out", overwrite=True)
    assert "is itself an input" in tasks[1].refusal


def test_masks_are_inputs_too(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.jpg")
    picture(tmp_path / "masks" / "a.png")
    masks = tmp_path / "masks"
    tasks = plan(tmp_path / "in", out=masks, mask=masks, overwrite=True)
    assert "is itself an input" in tasks[0].refusal


def test_a_folder_is_not_protected_into_itself(tmp_path: Path) -> None:
    a = picture(tmp_path / "in" / "a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for out in (tmp_path / "in", tmp_path / "link", tmp_path / "masks" / ".." / "in"):
        (tmp_path / "masks").mkdir(exist_ok=True)
        with pytest.raises(PlanError, match=r"output folder .*: is also an input"):
            plan(tmp_path / "in", out=out)
    with pytest.raises(PlanError, match=r"mask folder .*in: is also an input"):
        plan(a, tmp_path / "in", out=tmp_path / "out", mask=tmp_path / "in")
    for _ in range(2):  # a single file: the second run names it again and nothing else
        (task,) = plan(a, out=tmp_path / "in", overwrite=True)
        assert (task.target, task.refusal) == (tmp_path / "in" / "a.png", "")
        picture(tmp_path / "in" / "a.png")


def test_senseless_requests(tmp_path: Path) -> None:
    a = picture(tmp_path / "in" / "a.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PlanError, match=r"no images in .*--recursive"):
        plan(tmp_path / "empty", out=tmp_path / "out")
    with pytest.raises(PlanError, match=r"output folder .*is a file"):
        plan(a, out=a)
    with pytest.raises(PlanError, match=r"mask folder .*no such folder"):
        plan(a, out=tmp_path / "out", mask=tmp_path / "gone")
    with pytest.raises(PlanError, match=r"mask folder .*a\.png: is a file, expected a folder"):
        plan(a, out=tmp_path / "out", mask=a)
    with pytest.raises(PlanError, match=r"holds no PNG named like .*a\.png"):
        plan(a, out=tmp_path / "out", mask=tmp_path / "empty")


def test_masks_are_found_by_stem_and_folder(tmp_path: Path) -> None:
    for name in ("in/x/a.jpg", "in/y/a.jpg", "in/y/b.jpg", "masks/a.png", "masks/y/a.png"):
        picture(tmp_path / name)
    tasks = plan(tmp_path / "in", out=tmp_path / "o", recursive=True, mask=tmp_path / "masks")
    assert [t.mask for t in tasks] == [tmp_path / "masks/a.png", tmp_path / "masks/y/a.png", None]
    assert tasks[2].mask_notes == ("no mask: the whole photo is protected",)


def test_masks_of_no_photograph_are_named(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    for name in ("in/a.jpg", "in/b.jpg", "masks/a.png", "masks/c.png", "masks/sub/d.png"):
        picture(tmp_path / name)
    picture(tmp_path / "masks" / "b.jpg")
    (masks / ".hidden").touch()
    tasks = plan(tmp_path / "in", out=tmp_path / "out", mask=masks)
    (line,) = unused_masks(masks, tasks)
    assert line.endswith("no photograph is named so: b.jpg (a mask is a .png), c.png")
    assert f"sub{os.sep}d.png" in unused_masks(masks, tasks, recursive=True)[0]
    for index in range(30):
        (masks / f"many-{index:02d}.png").touch()
    (line,) = unused_masks(masks, tasks)
    assert line.endswith("many-09.png and 20 more")
    beside = plan(tmp_path / "in" / "a.jpg", masks / "b.jpg", out=tmp_path / "out", mask=masks)
    assert "b.jpg" not in unused_masks(masks, beside)[0]
    assert unused_masks(None, tasks) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"format": "gif"}, "format: got 'gif'"),
        ({"device": "tpu"}, "device: got 'tpu'"),
        ({"device": "cuda:99"}, "device: got 'cuda:99', but"),
        ({"group_pixels": 0}, "group_pixels: got 0"),
        ({"max_pixels": 0}, "max_pixels: got 0"),
        ({"steps": 0}, "steps: got 0, expected at least 1"),
        ({"eps": "8"}, "eps: got"),
        ({"eps": 0.001}, "eps: got 0.001, .*expected at least 1/255"),
        ({"method": "glaze"}, "method: got 'glaze', expected one of"),
        ({"extra": {"colour": 1}}, "unknown colour"),
    ],
)
def test_options_are_checked_where_they_are_made(given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Options(**given)


def test_what_changes_nothing_needs_no_budget() -> None:
    assert Options(method="none", eps=Budget.linf(0)).eps.levels == 0


def test_a_closed_subfolder_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "closed").mkdir()
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    tasks = plan(tmp_path / "in", out=tmp_path / "out", recursive=True)
    assert [(t.source.name, t.refusal) for t in tasks] == [
        ("a.png", ""),
        ("closed", "the folder cannot be read"),
    ]
