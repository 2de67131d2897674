"""The contract of quantize, judged in float64, on every backend."""

from __future__ import annotations

import math

import pytest
import torch
from cases import F16, F32, F64, FLOATS, LAYOUTS, floats, images, shapes
from hypothesis import given
from hypothesis import strategies as st

from udp_fast.backends.reference.philox import uniforms
from udp_fast.backends.reference.quantize import quantize as reference
from udp_fast.ops import Budget, noise_key, quantize

RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))

calls = st.fixed_dictionaries(
    {
        "shape": shapes,
        "seed": st.integers(0, 2**32),
        "layouts": st.tuples(*[st.sampled_from(LAYOUTS)] * 2),
        "dtype": st.sampled_from(FLOATS),
        "kind": st.sampled_from(["delta", "image"]),
        "range": st.sampled_from(RANGES),
        "levels": st.sampled_from([0, 1, 4, 8, 16, 255]),
        "eps_per_image": st.booleans(),
        "stochastic": st.booleans(),
        "extremes": st.booleans(),
    }
)


def build(c):
    shape, seed = c["shape"], c["seed"]
    lo, hi = c["range"]
    original = images(shape, seed, torch.uint8, c["layouts"][0])
    value = floats(shape, seed + 1, F32, scale=0.05 * (hi - lo), extremes=c["extremes"])
    if c["kind"] == "image":
        value = value + original / 255 * (hi - lo) + lo
    layout = "contiguous" if c["layouts"][1] == "expanded" else c["layouts"][1]
    out = torch.empty_like(floats(shape, 0, c["dtype"], layout))
    value = out.copy_(value)
    eps = torch.full((shape[0],) if c["eps_per_image"] else (), c["levels"] / 255)
    key = noise_key(seed, range(shape[0])) if c["stochastic"] else None
    return value, original, eps, key


@given(calls)
def test_never_leaves_the_budget(backend_name, c):
    value, original, eps, key = build(c)
    out = quantize(value, original, eps=eps, kind=c["kind"], range=c["range"], key=key)
    assert out.dtype == torch.uint8
    assert ((out.int() - original.int()).abs() <= c["levels"]).all()


def test_halves_go_to_the_even_level(backend_name):
    delta = torch.arange(-7.5, 8).reshape(1, 1, 4, 4)
    original = torch.full(delta.shape, 128, dtype=torch.uint8)
    out = quantize(delta, original, eps=8 / 255, range=(0.0, 255.0))
    even = [-8, -6, -6, -4, -4, -2, -2, 0, 0, 2, 2, 4, 4, 6, 6, 8]
    assert (out.int() - 128).flatten().tolist() == even


@given(calls)
def test_agrees_with_the_float64_reference(backend_name, c):
    value, original, eps, key = build(c)
    out = quantize(value, original, eps=eps, kind=c["kind"], range=c["range"], key=key)
    lo, hi = c["range"]
    exact = reference(value.double(), original, eps, key, c["kind"], lo, hi)
    # Only a value that float32 cannot tell from a tie may go to the neighbouring level.
    d = value.double() * 255 / (hi - lo)
    if c["kind"] == "image":
        d = (value.double() - lo) * 255 / (hi - lo) - original
    tie = 0.5 if key is None else 0.0
    if key is not None:
        d = d + uniforms(key, value.shape, F64)
    near_tie = ((d - tie) - (d - tie).round()).abs() < 1e-4
    difference = (out.int() - exact.int()).abs()
    assert (difference[~near_tie.nan_to_num(0).bool() & d.isfinite()] == 0).all()
    assert (difference <= 1).all()


def test_whole_budgets_stay_whole_in_every_dtype(backend_name):
    original = torch.full((1, 3, 4, 4), 128, dtype=torch.uint8)
    for levels in range(256):
        budget = Budget.linf(f"{levels}/255")
        delta = torch.full((1, 3, 4, 4), budget.eps)
        expected = torch.full_like(original, min(128 + levels, 255))
        assert torch.equal(quantize(delta, original, eps=budget), expected)
        if levels <= 16:
            assert torch.equal(quantize(delta.to(F16), original, eps=budget), expected)


def test_fractional_budgets_round_down(backend_name):
    original = torch.full((1, 4), 100, dtype=torch.uint8)
    out = quantize(torch.ones(1, 4), original, eps=6.4 / 255)
    assert out.tolist() == [[106] * 4]


def test_black_and_white_stay_bytes(backend_name):
    original = torch.tensor([[0, 0, 255, 255]], dtype=torch.uint8)
    out = quantize(torch.tensor([[-1.0, 1.0, -1.0, 1.0]]), original, eps=8 / 255)
    assert out.tolist() == [[0, 8, 247, 255]]


def test_poison_leaves_the_pixel(backend_name):
    original = torch.tensor([[10, 10, 10]], dtype=torch.uint8)
    value = torch.tensor([[math.nan, math.inf, -math.inf]])
    assert quantize(value, original, eps=4 / 255).tolist() == [[10, 14, 6]]
    assert quantize(value, original, eps=4 / 255, key=noise_key(0, [1])).tolist() == [[10, 14, 6]]


def test_stochastic_rounding_is_unbiased(backend_name):
    original = torch.full((1, 3, 256, 256), 100, dtype=torch.uint8)
    delta = torch.full((1, 3, 256, 256), 2.3 / 255)
    out = quantize(delta, original, eps=8 / 255, key=noise_key(0, [1])).double() - 100
    assert set(out.unique().tolist()) == {2.0, 3.0}
    assert abs(out.mean() - 2.3) < 4 * (0.21 / out.numel()) ** 0.5


def test_memory_format_follows_the_original(backend_name):
    original = images((2, 3, 8, 8), 0, torch.uint8, "channels_last")
    out = quantize(floats((2, 3, 8, 8), 1), original, eps=8 / 255)
    assert out.is_contiguous(memory_format=torch.channels_last)


BAD = {
    "float original": ({"original": torch.zeros(2, 4)}, TypeError, "original: got dtype float32"),
    "eps negative": ({"eps": -0.1}, ValueError, "eps: got -0.1"),
    "eps in levels": ({"eps": 8}, ValueError, r"eps: got 8, expected a fraction in \[0, 1\]"),
    "eps in levels, a tensor": (
        {"eps": torch.tensor([0.1, 8.0])},
        ValueError,
        r"eps: got 8, expected a fraction in \[0, 1\]",
    ),
    "unknown kind": ({"kind": "pixel"}, ValueError, "kind: got 'pixel'"),
    "empty range": ({"range": (1.0, 1.0)}, ValueError, "range: got"),
    "bytes for a value": (
        {"value": torch.zeros(2, 4, dtype=torch.uint8)},
        TypeError,
        "value: got dtype uint8",
    ),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_arguments_are_named(case):
    change, error, message = BAD[case]
    arguments = {
        "value": torch.zeros(2, 4),
        "original": torch.zeros(2, 4, dtype=torch.uint8),
        "eps": 8 / 255,
        **change,
    }
    with pytest.raises(error, match=f"quantize: {message}"):
        quantize(**arguments)
