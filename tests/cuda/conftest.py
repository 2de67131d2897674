"""The CUDA backend on CPU tensors, by way of the emulator."""

from __future__ import annotations

import shutil
import sys

import pytest
from emulated_module import EmulatedModule, no_stream

from udp_fast.backends.cpu import native as cpu
from udp_fast.backends.cuda import native


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> EmulatedModule:
    """In place of the extension; records the launches with their counters."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("the emulator needs Linux and g++")
    if cpu.MISSING:
        pytest.skip(cpu.MISSING)
    module = EmulatedModule()
    monkeypatch.setattr(native, "_module", module)
    monkeypatch.setattr(native, "stream_of", no_stream)
    return module
