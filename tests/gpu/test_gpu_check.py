"""`make gpu-check` where there is no GPU: it says so, lists what it would do, and invents nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.measure import COPY, Case, Result
from udp_fast.backends.registry import backend


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The current folder, on a machine without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu_check", *arguments])
    return gpu_check.main()


def test_without_a_gpu_nothing_is_written(
    without_gpu: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch) == 2
    assert "no CUDA GPU found" in capsys.readouterr().out
    assert list(without_gpu.iterdir()) == []


def test_a_dry_run_lists_every_case_with_every_provider(
    without_gpu: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--dry-run") == 0
    out = capsys.readouterr().out
    listed = {line.strip().split(",")[0] for line in out.splitlines() if line[:3] == "   "}
    for name in gpu_check.BACKENDS:
        ops = {op.removesuffix("_").removesuffix("_backward") for op in backend(name).ops}
        assert ops <= listed
    assert "conv3x3" not in listed  # torch's there
    assert "fresh noise, bfloat16, 8×3×512×512: cuda, triton, eager, compile, copy" in out
    assert "-m gpu" in out
    assert list(without_gpu.iterdir()) == []


def test_shares_are_of_the_copy_of_the_same_bytes() -> None:
    case = Case("op", "form", (1, 2), {}, 100)
    result = Result(case, {"cuda": [2e-6], "eager": [8e-6], "other": [4e-6], COPY: [1e-6]})
    assert gpu_check.row(result) == [
        "op", "form", "1×2", "2.0 (50%)", "–", "8.0 (12%)", "–", "other 4.0 (25%)", "1.0",
    ]  # fmt: skip
