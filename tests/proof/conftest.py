"""The proof's own tests: it must fail where it should. They need no GPU."""

from __future__ import annotations

import importlib.util

import pytest

from benchmarks.proof import cuda, machine_code


@pytest.fixture(scope="session")
def toolchain() -> None:
    """Skips where kernels cannot be compiled or read."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("no Triton, whose wheel also has the disassembler: pip install triton")
    if cuda.load_build().nvcc() is None:
        pytest.skip("no nvcc: install the CUDA toolkit, or nvidia-cuda-nvcc from PyPI")
    missing = [t for t in ("cuobjdump", "nvdisasm") if not (machine_code.tools() / t).exists()]
    if missing:
        pytest.skip(f"Triton's wheel has no {', '.join(missing)}")
