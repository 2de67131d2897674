"""Tests of the emulator itself; the GPU kernels' own tests use emulation.py the same way."""

from __future__ import annotations

import shutil
import sys

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if sys.platform == "linux" and shutil.which("g++"):
        return
    for item in items:
        if "emulator" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason="the emulator needs Linux and g++"))
