"""Runs the kernels in Triton's interpreter, in processes of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from udp_fast.backends.registry import ORDER

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def interpret(*arguments: str, **variables: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "TRITON_INTERPRET": "1", **variables}
    done = subprocess.run(
        command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    sys.stdout.write(done.stdout.splitlines()[-1])


@needs_triton
@pytest.mark.slow
def test_kernels_agree_with_the_other_backends():
    interpret(str(HERE / "interpreted"))


@needs_triton
@pytest.mark.slow
@pytest.mark.skipif("triton" not in ORDER, reason="the registry does not name the backend")
def test_contracts_of_the_ops():
    """The contract tests of tests/ops, few examples each: an interpreted call takes 0.1 s."""
    files = ("pgd_step", "q_sample", "denoising_loss", "quantize")
    slow = "every_dtype or unbiased or large_images or bad_arguments"
    interpret(
        *(str(HERE.parent / "ops" / f"test_{name}.py") for name in files),
        *("-k", f"triton and not ({slow})", "-p", "few_examples"),
        PYTHONPATH=str(HERE),
    )
