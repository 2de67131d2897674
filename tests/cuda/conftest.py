"""The CUDA backend on CPU tensors, by way of the emulator."""

from __future__ import annotations

import shutil
import sys

import pytest
from emulated_module import EmulatedModule, no_stream
from emulation import FEW_SEEDS, SEEDS

from udp_fast.backends.cpu import native as cpu
from udp_fast.backends.cuda import native


@pytest.fixture
def emulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> EmulatedModule:
    """In place of the extension; records the launches with their counters.

    Under two schedules. Every kernel has a test marked `every_schedule`, which takes three times as long.
    """
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("the emulator needs Linux and g++")
    if cpu.MISSING:
        pytest.skip(cpu.MISSING)
    every = request.node.get_closest_marker("every_schedule")
    module = EmulatedModule(SEEDS if every else FEW_SEEDS)
    monkeypatch.setattr(native, "_module", module)
    monkeypatch.setattr(native, "stream_of", no_stream)
    return module
