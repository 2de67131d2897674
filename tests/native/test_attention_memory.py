"""The memory that attention's backward takes at its peak, beside torch's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("udp_fast._native", reason="the native kernels are not built")

#: Prints by how many bytes one backward, its results included, raised the process' peak.
PROGRAM = """
import sys, torch
from udp_fast.backends.registry import backend
ops = backend(sys.argv[1]).ops
def gradients(n):
    q, k, v, grad = (torch.ones(1, n, 8, 40).transpose(1, 2) for _ in range(4))
    out, lse = ops["attention"](q, k, v, None, 0.1, True)
    args = grad, q, k, v, None, out, lse, 0.1, [True] * 3
    return lambda: ops["attention_backward"](*args)
def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))
gradients(32)()  # threads and libraries are there
run = gradients(1024)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts again from here
before = status("VmRSS")
kept = run()
print(status("VmHWM") - before)
"""


def peak(backend: str) -> int:
    command = [sys.executable, "-c", PROGRAM, backend]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_self_attention_takes_no_more_than_torch():
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        pytest.skip(f"the peak cannot be read here ({error})")
    gradients = 3 * 1024 * 8 * 40 * 4
    ours = min(peak("cpu") for _ in range(2))
    assert ours >= 0.9 * gradients, "nothing was measured"
    assert ours <= min(peak("sdpa") for _ in range(2))
