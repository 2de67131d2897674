"""Runs the kernels in Triton's interpreter, in processes of their own."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def interpret(least: int, *arguments: str, plugins: Sequence[str] = ()) -> None:
    """Runs tests, of which at least so many must have passed, and none been skipped."""
    plugins = [f"-p{name}" for name in ("no:cacheprovider", "patched_once", *plugins)]
    command = [sys.executable, "-m", "pytest", "-q", "-x", *plugins, *arguments]
    path = os.pathsep.join(map(str, (HERE, HERE.parent / "ops")))
    # NumPy's matrix products are small: threads would wait for each other and round as the cores are many.
    own = {"TRITON_INTERPRET": "1", "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
    environment = {**os.environ, **own}
    done = subprocess.run(
        command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed, skipped = (re.search(rf"(\d+) {word}", done.stdout) for word in ("passed", "skipped"))
    assert passed is not None, done.stdout
    assert int(passed[1]) >= least, done.stdout
    assert skipped is None, done.stdout


@needs_triton
@pytest.mark.slow
def test_kernels_agree_with_the_other_backends_and_definitions():
    files = ("test_agreement.py", "test_attention_kernels.py")
    interpret(530, *(str(HERE / name) for name in files))


@needs_triton
@pytest.mark.slow
def test_contracts_of_the_ops():
    """The contract tests of tests/ops, few examples each."""
    files = ("pgd_step", "q_sample", "denoising_loss", "quantize")
    slow = "every_dtype or unbiased or large_images or bad_arguments"
    slow += " or (loss_scale and (library or sum or none))"  # of one kernel, as the two that stay
    interpret(
        110,
        *(str(HERE.parent / "ops" / f"test_{name}.py") for name in files),
        *("-k", f"triton and not ({slow})"),
        plugins=["few_examples"],
    )


@needs_triton
@pytest.mark.slow
def test_contract_of_attention():
    """On small shapes: every head dim in float32, every bias and layout."""
    slow = "threads or in_a_batch"
    slow += " or opcheck or compiles"  # what is registered does not depend on the backend
    # What test_attention_kernels.py has as well.
    slow += " or every_set_of_gradients or (test_values and (float16 or bfloat16))"
    interpret(
        95,
        str(HERE.parent / "ops/test_attention.py"),
        *("-k", f"triton and not ({slow})"),
        plugins=["small_attention"],
    )
