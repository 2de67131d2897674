"""The command as a person meets it."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import udp_fast
from udp_fast import cli
from udp_fast.diffusion import DEFAULT_SURROGATE
from udp_fast.engine import Options, RunResult
from udp_fast.engine.manifest import Manifest
from udp_fast.images import read_image
from udp_fast.methods import METHODS

HAS_SURROGATE = any(DEFAULT_SURROGATE.glob("*.safetensors"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate(("a.png", "b.jpg")):
        generator = np.random.default_rng(seed)
        picture = generator.integers(0, 256, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / name)
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.cli, [str(argument) for argument in arguments])


def control(*arguments: object) -> Result:
    """`protect` without a model: fast."""
    return call("protect", *arguments, "--method", "random", "--no-evaluate")


def test_help_reads_like_help() -> None:
    result = call("protect", "--help")
    assert result.exit_code == 0
    text = result.output
    for heading in ("Output:", "Protection:", "Photographs:", "Computation:", "Display:"):
        assert f"\n{heading}\n" in text
    assert text.index("Output:") < text.index("Protection:") < text.index("Display:")
    assert "Examples:\n    udp-fast protect holiday/" in text
    assert "Exit codes:\n    0 " in text
    assert "Time grows with pixels" in text
    assert call("protect").output.startswith("Usage: "), "no arguments: help, not a scolding"
    assert "protect" in call("--help").output


def test_help_tells_the_true_defaults() -> None:
    """They are spelled out in cli.py so that --help need not import torch."""
    options, settings = Options(), Options().settings()
    truth = {
        "eps": str(options.eps),
        "method": options.method,
        "seed": options.seed,
        "device": options.device,
        "format_": options.format,
        "group_pixels": options.group_pixels,
        "evaluate": options.evaluate,
    }
    parameters = {parameter.name: parameter for parameter in cli.protect.params}
    for name, value in truth.items():
        assert parameters[name].default == value, name
    for name in ("steps", "rounds"):
        option = parameters[name]
        assert isinstance(option, click.Option)
        assert f"[default: {getattr(settings, name)}]" in (option.help or "")
    assert isinstance(parameters["method"].type, click.Choice)
    assert list(parameters["method"].type.choices) == list(METHODS)


def test_help_and_version_need_no_torch() -> None:
    program = "import sys; from udp_fast import cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    assert call("--version").output.strip() == f"udp-fast, version {udp_fast.__version__}"


def test_info() -> None:
    result = call("info")
    assert result.exit_code == 0
    assert "quantize" in result.output


def test_a_folder(photos: Path, tmp_path: Path) -> None:
    result = control(photos, "-o", tmp_path / "out", "--picture", tmp_path / "look.png")
    assert result.exit_code == 0, result.output
    table = result.output
    assert "2 of 2 protected in" in table
    assert "ε = 8/255 (8 levels), seed 0" in table
    assert "statistical" in table
    assert "max|Δ|" in table
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "b.png", "manifest.json"]
    with Image.open(tmp_path / "look.png") as picture:
        assert picture.width > 3 * 36
    assert json.loads((tmp_path / "out/manifest.json").read_text())["command"]


def test_broken_files_are_named_and_stop_nothing(photos: Path, tmp_path: Path) -> None:
    (photos / "bad.png").write_text("text")
    (photos / "empty.jpg").touch()
    (photos / "credits.txt").write_text("by me")
    half = (photos / "a.png").read_bytes()
    (photos / "half.png").write_bytes(half[: len(half) // 2])
    Image.new("1", (4000, 4000)).save(photos / "bomb.png")
    result = control(photos, tmp_path / "gone.png", "-o", tmp_path / "out", "--max-pixels", 10**6)
    assert result.exit_code == 1
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert "failed: not an image" in rows["bad.png"]
    assert "failed: is empty (0 bytes)" in rows["empty.jpg"]
    assert "failed: truncated or damaged" in rows["half.png"]
    assert "failed: too large" in rows["bomb.png"]
    assert "failed: no such file" in rows["gone.png"]
    assert "skipped: not an image" in rows["credits.txt"]
    assert "protected" in rows["a.png"]
    assert "2 of 7 protected" in result.stdout
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "b.png", "manifest.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--eps", "8"], "eps: got '8', expected a finite fraction"),
        (["--eps", "-1/255"], "eps: got '-1/255', expected"),
        (["--eps", "lots"], "eps: got 'lots'"),
        (["--eps", "1/1000"], "eps: got 0.001, which is less than one of 255 levels"),
        (["--eps", "0"], "eps: got 0/255, which is less than one of 255 levels"),
        (["--device", "cuda:77"], "device: got 'cuda:77', but"),
        (["--device", "fridge"], "device: got 'fridge'"),
        (["--steps", "0"], "steps: got 0, expected at least 1"),
        (["--group-pixels", "0"], "group_pixels: got 0"),
        (["--mask", "nowhere"], "mask folder nowhere: no such folder"),
        (["--picture", "look.xyz"], "--picture look.xyz"),
        (["--model", "/no/such/model", "--evaluate"], "no such folder: /no/such/model"),
        (["--method", "glaze"], "'glaze' is not one of"),
        (["--overwrite", "--skip-existing"], "overwrite, skip_existing: got both"),
        (["--colour"], "No such option"),
    ],
)
def test_usage_errors_are_2_and_write_nothing(
    photos: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    result = call(
        "protect", photos, "-o", tmp_path / "out", "--method", "random", "--no-evaluate", *arguments
    )
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_nothing_to_do_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = control(tmp_path / "empty", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "no images in" in result.output


def test_overwrite(photos: Path, tmp_path: Path) -> None:
    assert control(photos, "-o", tmp_path / "out").exit_code == 0
    again = control(photos, "-o", tmp_path / "out")
    assert again.exit_code == 1
    assert "exists already (--overwrite replaces it, --skip-existing leaves it out)" in again.output
    assert control(photos, "-o", tmp_path / "out", "--overwrite").exit_code == 0
    into_inputs = control(photos / "a.png", "-o", photos, "--overwrite")
    assert into_inputs.exit_code == 1
    assert "is itself an input" in into_inputs.output
    into_itself = control(photos, "-o", photos, "--overwrite")
    assert into_itself.exit_code == 2
    assert f"output folder {photos}: is also an input" in " ".join(into_itself.output.split())


def test_a_finished_or_interrupted_folder_is_gone_on_with(photos: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "out", tmp_path / "look.png"
    assert control(photos / "a.png", "-o", out, "--picture", picture).exit_code == 0
    before = (out / "a.png").read_bytes(), picture.read_bytes()
    for done in (1, 0):
        result = control(photos, "-o", out, "--skip-existing", "--picture", picture)
        assert result.exit_code == 0, result.output
        assert f"skipped: {out / 'a.png'} exists already" in result.stdout
        assert f"{done} of {done} protected" in result.stdout
        assert f"; {2 - done} more existed already" in result.stdout
        assert (out / "b.png").exists()
    assert ((out / "a.png").read_bytes(), picture.read_bytes()) == before
    (out / "b.png").unlink()
    (out / "b.png").mkdir()
    result = control(photos, "-o", out, "--skip-existing")
    assert result.exit_code == 1, "a folder is no result"
    assert "failed" in result.stdout


def test_the_picture_replaces_no_photograph(photos: Path, tmp_path: Path) -> None:
    before = (photos / "a.png").read_bytes()
    for path in (photos / "a.png", tmp_path / "out" / "a.png"):
        result = control(photos, "-o", tmp_path / "out", "--overwrite", "--picture", path)
        assert result.exit_code == 2
        assert "is the same file as" in " ".join(result.output.split())
    assert (photos / "a.png").read_bytes() == before
    assert not (tmp_path / "out").exists()


def test_quiet_says_nothing_but_what_failed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "credits.txt").write_text("by me")
    result = control(photos, "-o", tmp_path / "out", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    (photos / "bad.png").write_text("text")
    result = control(photos / "bad.png", "-o", tmp_path / "two", "--quiet")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"{photos / 'bad.png'}: not an image (expected PNG, JPEG, WebP, TIFF, BMP or GIF)\n"
    )
    real = Manifest.write

    def full(self: Manifest, result: RunResult, status: str, timings: dict[str, float]) -> None:
        if status == "complete":
            raise OSError(28, "No space left on device")
        real(self, result, status, timings)

    monkeypatch.setattr(Manifest, "write", full)
    result = control(photos / "a.png", "-o", tmp_path / "three", "--quiet")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "three/manifest.json: no space left" in result.stderr


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("UDP_FAST_BACKEND", "gpu", "UDP_FAST_BACKEND: got 'gpu', expected auto or one of"),
        ("UDP_FAST_BACKEND", "sdpa", "UDP_FAST_BACKEND=sdpa pins a backend that cannot serve"),
        ("UDP_FAST_LOG_DISPATCH", "yes", "UDP_FAST_LOG_DISPATCH: got 'yes', expected 0 or 1"),
        ("UDP_FAST_CPU_ISA", "sse9", "UDP_FAST_CPU_ISA: got sse9"),
    ],
)
def test_an_environment_that_leaves_no_backend(
    name: str, value: str, words: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    if name == "UDP_FAST_CPU_ISA":
        native = pytest.importorskip("udp_fast._native", reason="the native kernels are not built")
        native.use_isa("")  # it is looked up once in a process
    result = control(photos, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
    with pytest.raises(ValueError, match=name):
        udp_fast.protect(photos / "a.png", out=tmp_path / "out", method="random", evaluate=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("terminal", [False, True])
def test_masks_of_no_photograph_are_named(
    photos: Path, tmp_path: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for name in ("a.png", "bb.png"):
        Image.new("L", (36, 40), 255).save(masks / name)
    monkeypatch.setattr(cli, "_is_terminal", lambda stream: terminal)
    result = control(photos, "-o", tmp_path / "out", "--mask", masks)
    assert result.exit_code == 0
    assert "no photograph is named so: bb.png" in " ".join(result.stdout.split())


@pytest.mark.parametrize("terminal", [False, True])
def test_a_name_with_a_line_break_is_one_row(
    photos: Path, tmp_path: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "a.png").rename(photos / "first\nsecond\u2028third.png")
    monkeypatch.setattr(cli, "_is_terminal", lambda stream: terminal)
    monkeypatch.setenv("COLUMNS", "200")
    result = control(photos, "-o", tmp_path / "out")
    table = result.stdout.split("\n\n")[0]
    # Both headings of a terminal take two lines.
    assert len(table.splitlines()) == 3 + terminal
    assert "first\\nsecond\\u2028third.png" in table


def test_jpeg_warns(photos: Path, tmp_path: Path) -> None:
    result = control(photos, "-o", tmp_path / "out", "--format", "jpeg")
    assert result.exit_code == 0
    assert "Warning: JPEG is lossy" in result.output
    assert "of the change survives" in result.output


def test_names_cannot_confuse_the_terminal() -> None:
    assert cli.printable("caf\udce9\x1b[31m.png") == "caf\\xe9\\x1b[31m.png"
    assert cli.printable("Müller [bold] 山.png") == "Müller [bold] 山.png"


@pytest.mark.parametrize("columns", [80, 160])
def test_on_a_terminal(
    photos: Path, tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The live bar and the drawn table: numbers are never cut, every reason is there."""
    (photos / "[red]bad.png").write_text("text")
    monkeypatch.setattr(cli, "_is_terminal", lambda stream: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    result = control(photos, "-o", tmp_path / "out")
    assert result.exit_code == 1
    table = result.stdout
    for name in ("a.png", "b.jpg", "[red]bad.png"):
        assert name in table
    assert table.count("40") >= 2
    assert "failed: not an image (expected PNG, JPEG, WebP, TIFF, BMP or GIF)" in table
    assert all(len(line) <= columns for line in table.split("\n\n")[0].splitlines())


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_ends_the_process_cleanly(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    generator = np.random.default_rng(0)
    for index in range(30):
        picture = generator.integers(0, 256, (700, 700, 3), dtype=np.uint8)
        Image.fromarray(picture).save(photos / f"{index:02d}.bmp")
    command = [sys.executable, "-m", "udp_fast", "protect", str(photos), "-o", str(out)]
    command += ["--method", "random", "--no-evaluate", "--group-pixels", "1"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        deadline = time.monotonic() + 60
        while not list(out.glob("*.png")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "interrupted, every file written is whole" in output
    found = json.loads((out / "manifest.json").read_text())
    assert found["status"] == "interrupted"
    written = {row["output"] for row in found["images"] if row["status"] == "protected"}
    assert 0 < len(written) < 30
    assert set(os.listdir(out)) == {*written, "manifest.json"}
    for name in written:
        read_image(out / name)


def test_a_polite_kill_is_an_interrupt(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        cli._Lines, "result", lambda self, image: os.kill(os.getpid(), signal.SIGTERM)
    )
    before = signal.getsignal(signal.SIGTERM)
    result = control(photos, "-o", tmp_path / "out")
    assert result.exit_code == 130
    assert "1 of 2 protected" in result.output
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "manifest.json"]
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.skipif(not HAS_SURROGATE, reason="the surrogate in the package is not built")
def test_the_default_path_on_one_small_photo(photos: Path, tmp_path: Path) -> None:
    result = call("protect", photos / "a.png", "-o", tmp_path / "out", "--steps", 1, "--rounds", 1)
    assert result.exit_code == 0, result.output
    assert "surrogate's denoising loss against the originals: protected +" in result.output
    (row,) = json.loads((tmp_path / "out/manifest.json").read_text())["images"]
    assert row["max_difference"] == 8
    assert row["loss_protected"] > 0
    difference = read_image(tmp_path / "out/a.png").colour.int()
    difference -= read_image(photos / "a.png").colour.int()
    assert int(difference.abs().max()) == 8


def test_the_readme_can_be_pasted_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commands and then its Python, in one folder: none finds its output there already."""
    page = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = page.split("\n## The command\n")[1].split("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    for folder in ("holiday", "art", "masks"):
        Path(folder).mkdir()
        Image.new("L", (36, 40), 255).save(f"{folder}/a.png")
    Image.new("RGB", (36, 40), (90, 120, 150)).save("portrait.jpg")
    commands = re.findall(r"^    udp-fast (protect .*? -o [^#\n]*)", section, re.M)
    assert len(commands) >= 4
    for command in commands:
        result = control(*command.split()[1:])
        assert result.exit_code == 0, (command, result.output)
    quick = functools.partial(udp_fast.protect, method="random", evaluate=False)
    monkeypatch.setattr(udp_fast, "protect", quick)
    (example,) = re.findall(r"```python\n(.*?)```", section, re.S)
    scope: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert scope["paths"]
    assert None not in scope["paths"]
    assert isinstance(scope["protected"], Image.Image)
