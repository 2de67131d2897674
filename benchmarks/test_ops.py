"""The cases of `python -m benchmarks` under pytest-benchmark, to save and compare runs."""

from __future__ import annotations

import pytest

from .measure import OURS
from .ops import cases


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.title)
def test_op(benchmark, case):
    benchmark.group = case.op
    benchmark.pedantic(case.providers[OURS], rounds=15, warmup_rounds=3)
