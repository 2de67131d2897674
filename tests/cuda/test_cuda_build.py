"""The build of the CUDA kernels: what asks for it, for which GPUs, and what ptxas says of the result.

`make prove` looks into the machine code of all architectures; here is a quick look.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache/cuda"
SOURCES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/cuda/*.cu"))


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cuda_build", ROOT / "csrc/cuda/build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A fresh csrc/cuda/build.py in an environment that asks for nothing."""
    names = ("UDP_NO_CUDA", "FORCE_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CUDA_PATH")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    return load()


def test_every_source_is_built(build: ModuleType) -> None:
    assert sorted(build.SOURCES) == SOURCES


def test_no_cuda_wins(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_CUDA", "1")
    monkeypatch.setenv("UDP_NO_CUDA", "1")
    assert not build.wanted()


@pytest.mark.parametrize("name", ["FORCE_CUDA", "TORCH_CUDA_ARCH_LIST"])
def test_demanded_but_impossible_is_an_error_that_helps(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1" if name == "FORCE_CUDA" else "9.0")
    monkeypatch.setattr(build, "nvcc", lambda: None)
    with pytest.raises(SystemExit, match="CUDA_HOME"):
        build.wanted()


def test_flags_are_zero_or_one(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_CUDA", "yes")
    with pytest.raises(SystemExit, match="FORCE_CUDA: got 'yes', expected 0 or 1"):
        build.wanted()


def test_a_cuda_home_without_nvcc_is_an_error(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(SystemExit, match="no bin/nvcc"):
        build.nvcc()


def test_nvcc_is_found_in_a_package(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc = tmp_path / "nvidia/cu13/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    if not Path("/usr/local/cuda/bin/nvcc").is_file():
        assert build.nvcc() == nvcc
    monkeypatch.setenv("CUDA_HOME", str(nvcc.parents[1]))
    build.nvcc.cache_clear()
    assert build.nvcc() == nvcc


@pytest.mark.parametrize(
    ("asked", "code", "ptx"),
    [
        ("8.0", ("80",), ()),
        ("8.0;8.6 9.0+PTX", ("80", "86", "90"), ("90",)),
        ("9.0a, 10.0+PTX", ("90a", "100"), ("100",)),
    ],
)
def test_architectures_as_torch_names_them(
    build: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    code: tuple[str, ...],
    ptx: tuple[str, ...],
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    assert build.architectures() == (code, ptx)


@pytest.mark.parametrize("asked", ["7.5", "Ampere", "8"])
def test_other_architectures_are_errors(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST: got"):
        build.architectures()


def ptxas_report(build: ModuleType, source: str, architecture: str) -> str:
    """What ptxas -v said; compiled once per content of csrc."""
    command = build.cubin_command(source, "OUTPUT", architecture)
    digest = hashlib.sha256(repr(command).encode())
    for path in sorted([*ROOT.glob("csrc/cuda/*"), *ROOT.glob("csrc/math/*")]):
        if path.suffix in (".cuh", ".h") or str(path.relative_to(ROOT)) == source:
            digest.update(path.read_bytes())
    report = CACHE / f"{Path(source).stem}-{architecture}-{digest.hexdigest()[:20]}.txt"
    if not report.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command[command.index("OUTPUT")] = str(report.with_suffix(".cubin"))
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr, done.stderr
        report.with_suffix(".cubin").unlink()
        report.write_text(done.stderr)
    return report.read_text()


@pytest.mark.parametrize("architecture", ["80", "90"])
@pytest.mark.parametrize("source", SOURCES)
def test_kernels_compile_without_spills(build: ModuleType, source: str, architecture: str) -> None:
    if build.nvcc() is None:
        pytest.skip("no nvcc: install the CUDA toolkit, or nvidia-cuda-nvcc from PyPI")
    report = ptxas_report(build, source, architecture)
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", report)
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", report)]
    assert frames
    assert all(frame == ("0", "0", "0") for frame in frames)
    assert max(registers) <= 102  # five blocks of 128 threads on a multiprocessor
