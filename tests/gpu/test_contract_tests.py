"""That the contract tests can run on a GPU: every tensor is made where it belongs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pretended_gpu import PretendedGPU

from udp_fast.backends.registry import backend

ROOT = Path(__file__).parents[2]
CONSTANT = torch.ones(3)


def test_what_a_gpu_would_refuse_is_refused() -> None:
    with PretendedGPU() as gpu:
        x = torch.zeros(3)
        assert gpu.is_there(x[1:] * 2 + 1)
        assert not gpu.is_there(torch.zeros(3, device="cpu"))
        assert not gpu.is_there(x.cpu())
        with pytest.raises(RuntimeError, match=r"add: operands on two devices, \(3,\) on the CPU"):
            x + CONSTANT
        assert gpu.is_there(x + CONSTANT.clone().to(x.device))
        with pytest.raises(RuntimeError, match="the generator is not the GPU's"):
            torch.rand(3, generator=torch.Generator())
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        assert x.cpu().numpy().sum() == 0


def pytest_of_ops(*arguments: str) -> str:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/ops",
        *arguments,
    ]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests/gpu", ROOT / "tests/ops")))
    environment = {**os.environ, "PYTHONPATH": path, "CI": "1"}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_contract_tests_keep_to_one_device() -> None:
    if backend("cpu").missing:
        pytest.skip(backend("cpu").missing)
    # What torch does with an op's registration tells nothing of where tensors are made; conv3x3 has
    # no kernel for a GPU.
    untold = "compile or opcheck or test_torch_library or conv3x3"
    out = pytest_of_ops(
        *("-p", "pretended_gpu", "-p", "few_examples"),
        *("-k", f"cpu and not ({untold})"),
    )
    passed = re.search(r"(\d+) passed", out)
    assert passed is not None
    assert int(passed[1]) >= 50
    assert "skipped" not in out


def test_a_gpu_box_runs_the_whole_contract() -> None:
    """`-m gpu` has every contract test once for each GPU backend."""
    listed = re.findall(r"^tests/ops/\S+$", pytest_of_ops("--collect-only", "-m", "gpu"), re.M)
    cuda, triton = (
        sorted(re.sub(rf"\b{name}\b", "NAME", test) for test in listed if f"[{name}" in test)
        for name in ("cuda", "triton")
    )
    assert cuda == triton
    assert len(cuda) >= 50
    assert len(listed) == 2 * len(cuda)
