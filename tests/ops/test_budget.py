"""Budgets are typed because 8, 8/255 and 16/255 mean the same in different scripts."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from udp_fast import Budget


@pytest.mark.parametrize(
    ("written", "eps", "levels"),
    [
        ("8/255", 8 / 255, 8),
        ("16 / 510", 8 / 255, 8),
        ("8 levels", 8 / 255, 8),
        ("6.4 levels", 6.4 / 255, 6),
        ("0.05", 0.05, 12),
        (8 / 255, 8 / 255, 8),
        (0, 0.0, 0),
        (1.0, 1.0, 255),
        (Budget.linf("4/255"), 4 / 255, 4),
        (np.float32(8 / 255), np.float32(8 / 255), 8),
        (np.int64(1), 1.0, 255),
        (Fraction(8, 255), 8 / 255, 8),
    ],
    ids=str,
)
def test_reads_what_people_write(written, eps, levels):
    budget = Budget.linf(written)
    assert budget.eps == pytest.approx(eps, rel=1e-12)
    assert budget.levels == levels


def test_whole_levels_survive_their_own_arithmetic():
    for k in range(256):
        assert Budget.linf(f"{k}/255").levels == k
        assert Budget.linf(k / 255).levels == k
        assert str(Budget.linf(k / 255)) == f"{k}/255"


@pytest.mark.parametrize(
    "bad", ["8", "-1/255", "nan", "eight", "1/0", "1e999", 8, -0.1, float("nan"), "inf"]
)
def test_refuses_what_is_ambiguous_or_wrong(bad):
    with pytest.raises(ValueError, match="eps: got"):
        Budget.linf(bad)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("8", r"got '8', expected a finite fraction of the range in \[0, 1\] \(8/255, not 8\)$"),
        (8, r"\(8/255, not 8\)$"),
        ("-1/255", r"got '-1/255', .* \(a budget has no sign\)$"),
        (-0.1, r"got -0.1, .* \(a budget has no sign\)$"),
        (float("nan"), r"in \[0, 1\]$"),
    ],
)
def test_the_hint_suits_what_came(bad, words):
    with pytest.raises(ValueError, match=words):
        Budget.linf(bad)


@pytest.mark.parametrize("bad", [None, True, np.True_, [8 / 255]], ids=str)
def test_refuses_other_types(bad):
    with pytest.raises(TypeError, match="eps: got"):
        Budget.linf(bad)
