"""What all tests share."""

from __future__ import annotations

import gc
import signal
from pathlib import Path

import pytest

#: Begun first, so that no worker is left alone with one of them at the end; minutes each.
LONGEST = (
    "triton/test_interpreted.py",
    "compat/test_compiled.py",
    "cuda/test_cuda_build.py",
    "cuda/test_cuda_attention.py",
    "proof/test_counting.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in that order, for `--dist loadfile --no-loadscope-reorder`."""
    here = Path(__file__).parent
    place = {here / name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))


def pytest_collection_finish() -> None:
    """Thousands of tests and all that they import stay until the end: the collector need not look at
    them again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or a library that looks for what is left at the end finds all of it


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Ctrl-C is under test; a shell that starts the tests in the background leaves it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
