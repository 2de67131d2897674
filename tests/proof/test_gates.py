"""All kernels against all gates on all architectures: what `make prove` does, but for its counting."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from benchmarks.proof import table
from benchmarks.proof.chips import ARCHITECTURES
from benchmarks.proof.counting import Counting
from benchmarks.proof.examine import LANGUAGES, Examination, examine
from udp_fast.backends.triton import INTERPRETS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(INTERPRETS, reason="kernels are interpreted, not compiled"),
]


@pytest.fixture(scope="module")
def found(toolchain: None) -> Examination:
    return examine(ARCHITECTURES)


def test_every_gate_is_met(found: Examination) -> None:
    print(table.plain(table.summary(found)))
    assert found.failures == []


def test_every_streaming_form_has_a_main_loop(found: Examination) -> None:
    """Without one the counts that the gates look at would be of nothing."""
    streaming = [e for e in found.entries if e.form.stream is not None]
    found_of = Counter((e.form.language, e.architecture) for e in streaming)
    assert all(found_of[at] > 25 for at in itertools.product(LANGUAGES, ARCHITECTURES))
    assert all(e.code.loop for e in streaming)


def test_the_page_names_every_kernel_and_failure(found: Examination) -> None:
    found = Examination(found.entries, ["a planted failure"])
    page = table.page(found, Counting([], ["another"]), "compilers")
    assert "- a planted failure\n- another\n" in page
    assert all(f"| {e.form.kernel} |" in page for e in found.entries if e.turn is not None)
