"""The same kernels built for AddressSanitizer and UndefinedBehaviorSanitizer.

Those sanitizers must be in a process from its start, so each case is a process of its own, without
torch. A fault that they find ends it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulation import ROOT

CORRECT = """
import numpy as np
from emulation import ROOT, emulate
from test_emulator_faults import FAULTS, arguments

faults = emulate(ROOT / "tests/emulator/kernels/faults.cu")
for name in FAULTS:
    out, data = arguments()
    faults.run(f"launch_{name}", 0, out, data, writes=[out])

collectives = emulate(ROOT / "tests/emulator/kernels/collectives.cu")
rows = np.ones((5, 1000), np.float32)
sums = np.zeros(5, np.float32)
collectives.run("launch_row_sums", sums, rows, 5, 1000, writes=[sums])
assert (sums == 1000).all()
"""

FAULTY = """
from emulation import ROOT, emulate
from test_emulator_faults import arguments

out, data = arguments()
faults = emulate(ROOT / "tests/emulator/kernels/faults.cu")
faults.run("launch_{name}", 1, out, data, writes=[out], seeds=[{seed}])
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    """In a process that can load what g++ built with -fsanitize=address."""
    found = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    library = found.stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("g++ has no AddressSanitizer here")
    environment = {
        **os.environ,
        "UDP_EMULATOR_SANITIZE": "1",
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself never frees all it has
        "PYTHONPATH": str(ROOT / "tests/emulator"),
        "PYTHONMALLOC": "malloc",
    }
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )


def test_correct_kernels_pass() -> None:
    done = run(CORRECT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("shared_overrun", "index 128 out of bounds for type 'float"),
        ("dynamic_shared_overrun", "use-after-poison"),
        ("global_overrun", "heap-buffer-overflow"),
        ("wide_load_overrun", "heap-buffer-overflow"),
        ("misaligned_load", "misaligned: load of 16 bytes at faults.cu"),
    ],
)
def test_fault_is_caught(name: str, report: str, seed: int) -> None:
    done = run(FAULTY.format(name=name, seed=seed))
    assert done.returncode != 0
    assert report in done.stderr, done.stderr
    assert "faults.cu" in done.stderr or "instructions.h" in done.stderr


@pytest.mark.parametrize("name", ["missing_barrier", "missing_wait"])
def test_schedules_disagree_even_where_accesses_are_not_followed(name: str) -> None:
    done = run(FAULTY.replace("[{seed}]", "range(6)").format(name=name))
    assert done.returncode != 0
    assert "schedules 0 and 1 differ from byte" in done.stderr, done.stderr
