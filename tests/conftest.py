"""What all tests share."""

from __future__ import annotations

import signal

import pytest


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Ctrl-C is under test; a shell that starts the tests in the background leaves it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
