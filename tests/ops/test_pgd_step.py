"""The contract of pgd_step, judged in float64, on every backend."""

from __future__ import annotations

import contextlib
import importlib
import math

import numpy as np
import pytest
import torch
from cases import BF16, F16, F32, F64, FLOATS, LAYOUTS, floats, images, same_bits, shapes, ulp
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from udp_fast.backends.reference import pgd_step as definition
from udp_fast.backends.reference.arithmetic import per_image
from udp_fast.backends.reference.pgd_step import original_as_float
from udp_fast.backends.reference.pgd_step import pgd_step_ as reference
from udp_fast.ops import Budget, PGDStep, pgd_step, pgd_step_, pgd_step_multi_

module = importlib.import_module("udp_fast.ops.pgd_step")

RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))

calls = st.fixed_dictionaries(
    {
        "shape": shapes,
        "seed": st.integers(0, 2**32),
        "layouts": st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
        "delta_dtype": st.sampled_from(FLOATS),
        "grad_dtype": st.sampled_from(FLOATS),
        "x_dtype": st.sampled_from([*FLOATS, torch.uint8]),
        "step": st.sampled_from(["sign", "l2", "raw"]),
        "norm": st.sampled_from(["linf", "l2"]),
        "maximize": st.booleans(),
        "range": st.sampled_from(RANGES),
        "out_range": st.sampled_from(RANGES),
        "out_dtype": st.sampled_from(FLOATS),
        "alpha": st.sampled_from([0.0, 1 / 255, 0.05, 3.0]),  # 3.0 is far above eps
        "eps": st.sampled_from([0.0, 1e-7, 4 / 255, 8 / 255, 0.5]),
        "budget_per_image": st.booleans(),
        "mask": st.sampled_from([None, torch.bool, torch.uint8, F32]),
        "extremes": st.booleans(),
    }
)


def build(c):
    """The operands of one drawn case: (delta, grad, x) and the options."""
    shape, seed = c["shape"], c["seed"]
    lo, hi = c["range"]
    delta_layout = "contiguous" if c["layouts"][0] == "expanded" else c["layouts"][0]
    delta = floats(shape, seed, c["delta_dtype"], delta_layout, scale=0.02 * (hi - lo))
    grad = floats(shape, seed + 1, c["grad_dtype"], c["layouts"][1], 1e-3, c["extremes"])
    x = images(shape, seed + 2, c["x_dtype"], c["layouts"][2], lo, hi)
    alpha, eps = c["alpha"] * (hi - lo), c["eps"] * (hi - lo)
    if c["budget_per_image"]:
        alpha = torch.linspace(0, alpha, shape[0])
        eps = torch.linspace(eps, eps / 2, shape[0])
    mask = None
    if c["mask"] is not None:
        mask_shape = [1 if i == 1 and len(shape) > 2 else n for i, n in enumerate(shape)]
        mask = (floats(tuple(mask_shape), seed + 3) > 0).to(c["mask"])
        if c["mask"] == F32:
            mask = mask * 0.5
    options = {k: c[k] for k in ("step", "norm", "maximize", "range", "out_range", "out_dtype")}
    return delta, grad, x, {**options, "alpha": alpha, "eps": eps, "mask": mask}


def as_tensor(value):
    return value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=F32)


def judge(delta, grad, x, o, dtype=F64):
    """The reference in ``dtype`` from the same operands: (delta, adv, skipped)."""
    expected = delta.to(dtype)
    source = x if x.dtype == torch.uint8 else x.to(dtype)
    arguments = (o["mask"], o["step"], o["norm"], o["maximize"], *o["range"], *o["out_range"])
    alpha, eps = as_tensor(o["alpha"]), as_tensor(o["eps"])
    out_dtype = dtype if dtype == F64 else o["out_dtype"]
    adv, skipped = reference(expected, grad.to(dtype), source, alpha, eps, *arguments, out_dtype)
    return expected, adv, skipped


def defined(delta, grad, x, o):
    """The reference on the operands as they are: (delta, adv, skipped)."""
    expected = delta.clone()
    arguments = (o["mask"], o["step"], o["norm"], o["maximize"], *o["range"], *o["out_range"])
    alpha, eps = as_tensor(o["alpha"]), as_tensor(o["eps"])
    return expected, *reference(expected, grad, x, alpha, eps, *arguments, o["out_dtype"])


@given(calls)
def test_agrees_with_the_float64_reference(backend_name, c):
    delta, grad, x, o = build(c)
    before = delta.clone()
    expected, _, skipped = judge(delta, grad, x, o)
    result = pgd_step_(delta, grad, x, **o)

    lo, hi = o["range"]
    out_lo, out_hi = o["out_range"]
    assert torch.equal(result.skipped, skipped)
    assert torch.isfinite(delta).all()

    # Delta: one rounding to its dtype, and a few of the float32 arithmetic on the way.
    scale = torch.maximum(before.double().abs(), expected.abs()).clamp(min=0)
    step = per_image(as_tensor(o["alpha"]).double(), delta) * (1 if o["step"] != "raw" else 1e-2)
    tolerance = ulp(expected, delta.dtype) + 4 * ulp(scale + step + (hi - lo), F32)
    if o["norm"] == "l2":
        tolerance = tolerance + 1e-6 * expected.abs()
    if o["step"] == "raw" and c["extremes"]:
        # A step of 1e38 times alpha saturates or is projected: compare where the budget bounds it.
        tolerance = tolerance + 1e-6 * expected.abs()
    bad = (delta.double() - expected).abs() > tolerance
    assert not bad.any(), (delta[bad], expected[bad])

    # The image: x + the delta that is stored, within the range, rounded once.
    original = original_as_float(x if x.dtype == torch.uint8 else x.double(), lo, hi, F64)
    adv = (original + delta.double()).clamp(lo, hi)
    adv = out_lo + (adv - lo) * (out_hi - out_lo) / (hi - lo)
    spread = 4 * ulp(torch.tensor(max(abs(lo), abs(hi)), dtype=F64), F32) * (out_hi - out_lo)
    tolerance = ulp(adv, o["out_dtype"]) + spread / (hi - lo)
    assert ((result.adv.double() - adv).abs() <= tolerance).all()
    assert result.adv.dtype == o["out_dtype"]
    assert (result.adv.double() >= out_lo).all()
    assert (result.adv.double() <= out_hi).all()


@given(calls)
def test_the_stored_perturbation_is_within_the_budget_exactly(backend_name, c):
    delta, grad, x, o = build({**c, "norm": "linf"})
    pgd_step_(delta, grad, x, **o)
    # The comparison is in float64, against the float32 budget: no slack.
    assert (delta.double().abs() <= per_image(as_tensor(o["eps"]).double(), delta)).all()


@given(calls)
def test_sign_steps_are_the_reference_bit_for_bit(backend_name, c):
    delta, grad, x, o = build({**c, "step": "sign", "norm": "linf"})
    expected, adv, skipped = defined(delta, grad, x, o)
    result = pgd_step_(delta, grad, x, **o)
    assert same_bits(delta, expected)
    assert same_bits(result.adv, adv)
    assert torch.equal(result.skipped, skipped)


@given(calls, st.sampled_from(FLOATS))
def test_originals_of_any_value_are_the_reference_bit_for_bit(backend_name, c, x_dtype):
    """Negative zeros and values outside the range among them; the order of zeros must not show."""
    delta, grad, _, o = build({**c, "step": "sign", "norm": "linf"})
    x = floats(c["shape"], c["seed"] + 2, x_dtype, c["layouts"][2], o["range"][1], extremes=True)
    expected, adv, _ = defined(delta, grad, x, o)
    result = pgd_step_(delta, grad, x, **o)
    assert same_bits(delta, expected)
    assert same_bits(result.adv, adv)
    assert torch.equal(torch.isnan(delta), ~torch.isfinite(x))


def clamp_preferring_bounds(v, low, high):
    """Of two zeros the bound's, where the reference keeps the value's."""
    v = torch.where(v <= low, low, v)
    return torch.where(v >= high, high, v)


@given(calls, st.sampled_from([*FLOATS, torch.uint8]))
def test_it_does_not_matter_which_of_two_zeros_a_processor_calls_the_lesser(c, x_dtype):
    delta, grad, x, o = build({**c, "extremes": True})
    if x_dtype != torch.uint8:
        x = floats(c["shape"], c["seed"] + 2, x_dtype, c["layouts"][2], extremes=True)
    kept = defined(delta, grad, x, o)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(definition, "_clamp", clamp_preferring_bounds)
        chosen = defined(delta, grad, x, o)
    assert all(map(same_bits, chosen, kept))


@given(calls)
def test_rows_do_not_depend_on_the_batch_or_the_threads(backend_name, c):
    delta, grad, x, o = build({**c, "budget_per_image": False, "mask": None})
    whole = delta.clone()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        result = pgd_step_(whole, grad, x, **o)
        torch.set_num_threads(1)
        for b in range(delta.shape[0]):
            row = delta[b : b + 1].clone()
            alone = pgd_step_(row, grad[b : b + 1], x[b : b + 1], **o)
            assert same_bits(row, whole[b : b + 1])
            assert same_bits(alone.adv, result.adv[b : b + 1])
    finally:
        torch.set_num_threads(threads)


def test_signed_zeros_take_no_step(backend_name):
    delta = torch.full((1, 4), 0.01)
    grad = torch.tensor([[0.0, -0.0, 1e-45, -1e-45]])
    pgd_step_(delta, grad, torch.full((1, 4), 0.5), alpha=0.002, eps=0.5)
    assert delta.tolist()[0] == pytest.approx([0.01, 0.01, 0.012, 0.008])


def test_a_poisoned_gradient_is_counted_and_skipped(backend_name):
    delta = torch.full((2, 5), 0.01, dtype=F16)
    grad = torch.tensor([[math.nan, math.inf, -math.inf, 1.0, -1.0], [1.0] * 5])
    for step in ("sign", "l2", "raw"):
        d = delta.clone()
        result = pgd_step_(d, grad, torch.full((2, 5), 0.5), alpha=0.001, eps=0.5, step=step)
        assert result.skipped.tolist() == [3, 0]
        assert same_bits(d[0, :3], delta[0, :3])
        assert (d[0, 3:] != delta[0, 3:]).all()


@pytest.mark.parametrize("levels", [0, 255], ids=["black image", "white image"])
def test_images_at_the_ends_of_the_range_move_inwards_only(backend_name, levels):
    x = torch.full((1, 3, 8, 8), levels, dtype=torch.uint8)
    inwards = 1.0 if levels == 0 else -1.0
    for direction in (1.0, -1.0):
        delta = torch.zeros(1, 3, 8, 8)
        adv = pgd_step_(delta, torch.full_like(delta, direction), x, alpha=0.01, eps=0.03).adv
        expected = 0.01 * inwards if direction == inwards else 0.0
        assert torch.equal(delta, torch.full_like(delta, expected))
        assert torch.equal(adv, torch.full_like(adv, levels / 255) + expected)


def test_descending_mirrors_ascending(backend_name):
    grad = floats((2, 3, 5, 7), 1)
    up, down = torch.zeros_like(grad), torch.zeros_like(grad)
    x = torch.full_like(grad, 0.5)
    pgd_step_(up, grad, x, alpha=0.01, eps=0.02)
    pgd_step_(down, grad, x, alpha=0.01, eps=0.02, maximize=False)
    assert torch.equal(up, -down)


def test_l2_projection_meets_its_budget(backend_name):
    delta = floats((3, 3, 33, 31), 2, scale=0.1)
    x = torch.full_like(delta, 0.5)
    eps = torch.tensor([0.5, 1.0, 1e9])
    pgd_step_(delta, torch.zeros_like(delta), x, alpha=0.1, eps=eps, norm="l2")
    lengths = delta.double().flatten(1).norm(dim=1)
    assert lengths[:2].tolist() == pytest.approx([0.5, 1.0], rel=1e-6)
    assert torch.equal(delta[2], floats((3, 3, 33, 31), 2, scale=0.1)[2].clamp(-0.5, 0.5))


def test_memory_format_follows_delta_and_operands_are_left_alone(backend_name):
    delta = torch.zeros(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    grad, x = floats((2, 3, 8, 8), 3), images((2, 3, 8, 8), 4, torch.uint8)
    grad_before, x_before = grad.clone(), x.clone()
    adv = pgd_step_(delta, grad, x, alpha=0.01, eps=0.03, out_dtype=BF16).adv
    assert adv.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(grad, grad_before)
    assert torch.equal(x, x_before)


def test_functional_form_leaves_delta_and_agrees(backend_name):
    delta, grad = floats((2, 3, 8, 8), 5, scale=0.01), floats((2, 3, 8, 8), 6)
    x = images((2, 3, 8, 8), 7, F32)
    before = delta.clone()
    out = pgd_step(delta, grad, x, alpha=0.01, eps=Budget.linf("8/255"), out_range=(-1, 1))
    assert torch.equal(delta, before)
    result = pgd_step_(delta, grad, x, alpha=0.01, eps=Budget.linf("8/255"), out_range=(-1, 1))
    assert same_bits(out.delta, delta)
    assert same_bits(out.adv, result.adv)


@pytest.mark.parametrize("lo_hi", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)], ids=str)
def test_a_budget_is_a_fraction_of_the_range(lo_hi, backend_name):
    """Eight levels are eight levels, whatever the units of x."""
    lo, hi = lo_hi
    x = torch.full((1, 4), (lo + hi) / 2)
    delta = torch.zeros_like(x)
    budget = Budget.linf("8/255")
    pgd_step_(delta, torch.ones_like(x), x, alpha=Budget.linf(0.5), eps=budget, range=lo_hi)
    assert torch.allclose(delta / (hi - lo) * 255, torch.full_like(x, 8.0))
    images_, deltas = [x[0]], [torch.zeros_like(x[0])]
    pgd_step_multi_(deltas, [torch.ones_like(x[0])], images_, alpha=budget, eps=budget, range=lo_hi)
    assert torch.equal(deltas[0], delta[0])


def test_a_mask_that_requires_grad_makes_no_graph(backend_name):
    delta, mask = torch.zeros(1, 4), torch.ones(1, 4, requires_grad=True)
    pgd_step_(delta, torch.ones(1, 4), torch.full((1, 4), 0.5), alpha=0.1, eps=0.2, mask=mask)
    assert not delta.requires_grad
    assert (delta > 0).all()


BAD = {
    "eps is NaN": ({"eps": math.nan}, ValueError, "eps: got nan"),
    "eps is negative": ({"eps": -0.1}, ValueError, "eps: got -0.1"),
    "eps in levels": (
        {"eps": 8},
        ValueError,
        r"eps: got 8, expected at most 1, the width of range \(0, 1\): 8/255 is eight levels",
    ),
    "eps in levels of a wider range": (
        {"eps": np.float32(8), "range": (-1, 1)},
        ValueError,
        r"eps: got 8.0, expected at most 2, the width of range \(-1, 1\): 16/255 is eight",
    ),
    "alpha is no bool": ({"alpha": True}, TypeError, "alpha: got bool"),
    "eps is numpy's bool": ({"eps": np.True_}, TypeError, "eps: got bool"),
    "alpha is infinite": ({"alpha": math.inf}, ValueError, "alpha: got inf"),
    "alpha is no float32": ({"alpha": 1e39}, ValueError, r"alpha: got 1e\+39"),
    "alpha is negative": ({"alpha": -1.0}, ValueError, "alpha: got -1.0"),
    "alpha tensor has a NaN": (
        {"alpha": torch.tensor([0.1, math.nan])},
        ValueError,
        "alpha: got nan",
    ),
    "eps of the wrong length": ({"eps": torch.ones(3)}, ValueError, r"eps: got float32\[3\]"),
    "alpha is text": ({"alpha": "fast"}, TypeError, "alpha: got str"),
    "unknown step": ({"step": "adam"}, ValueError, "step: got 'adam', expected one of sign"),
    "unknown norm": ({"norm": "l1"}, ValueError, "norm: got 'l1'"),
    "range reversed": ({"range": (1, 0)}, ValueError, r"range: got \(1.0, 0.0\)"),
    "range no pair": ({"range": 3}, ValueError, "range: got 3"),
    "mask too small": ({"mask": torch.ones(2, 1, 4, 3)}, ValueError, "mask: got shape"),
    "mask of ints": ({"mask": torch.ones(2, 1, 4, 4, dtype=torch.int64)}, TypeError, "mask: got"),
    "integer output": ({"out_dtype": torch.int32}, TypeError, "out_dtype: got torch.int32"),
    "grad of another shape": ({"grad": torch.ones(2, 3, 4, 5)}, ValueError, "grad: got shape"),
    "grad of integers": (
        {"grad": torch.ones(2, 3, 4, 4, dtype=torch.int32)},
        TypeError,
        "grad: got dtype int32",
    ),
    "x no tensor": ({"x": None}, TypeError, "x: got NoneType"),
    "delta uint8": (
        {"delta": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)},
        TypeError,
        "delta: got dtype uint8",
    ),
    "delta expanded": (
        {"delta": torch.zeros(1, 3, 4, 4).expand(2, 3, 4, 4)},
        ValueError,
        "delta: got an expanded tensor",
    ),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_arguments_are_named(case):
    change, error, message = BAD[case]
    arguments = {
        "delta": torch.zeros(2, 3, 4, 4),
        "grad": torch.ones(2, 3, 4, 4),
        "x": torch.full((2, 3, 4, 4), 0.5),
        "alpha": 0.01,
        "eps": 0.03,
        **change,
    }
    with pytest.raises(error, match=f"pgd_step_: {message}"):
        pgd_step_(**arguments)


def test_a_number_that_bounds_nothing_is_refused_by_the_list_too():
    image = torch.full((3, 4), 0.5)
    with pytest.raises(ValueError, match="pgd_step_multi_: eps: got 8, expected at most 1"):
        pgd_step_multi_([torch.zeros(3, 4)], [image], [image], alpha=0.1, eps=8)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_infinite_budget_is_none(norm, backend_name):
    x = floats((2, 3, 8, 8), 1).clamp(0, 1)
    grad = floats((2, 3, 8, 8), 2)
    free, bounded = torch.zeros_like(x), torch.zeros_like(x)
    pgd_step_(free, grad, x, alpha=0.5, eps=math.inf, norm=norm)
    wide = torch.full((2,), 1e9)  # a tensor is believed
    pgd_step_(bounded, grad, x, alpha=0.5, eps=wide, norm=norm)
    assert same_bits(free, bounded)
    pgd_step_(free, grad, x, alpha=2.0, eps=1e3, norm="l2")  # a length, and not of one value


def test_numpys_numbers_are_numbers(backend_name):
    x, grad = torch.full((2, 4), 0.5), floats((2, 4), 3)
    ours, numpys = torch.zeros_like(x), torch.zeros_like(x)
    pgd_step_(ours, grad, x, alpha=float(np.float32(0.01)), eps=float(np.float32(0.03)))
    pgd_step_(numpys, grad, x, alpha=np.float32(0.01), eps=np.float32(0.03))
    assert same_bits(ours, numpys)
    pgd_step_(numpys, grad, x, alpha=np.int64(1), eps=np.float64(0.03))


def test_a_leaf_that_requires_grad_is_refused():
    delta = torch.zeros(1, 4, requires_grad=True)
    with pytest.raises(ValueError, match="delta: requires grad"):
        pgd_step_(delta, torch.ones(1, 4), torch.ones(1, 4), alpha=0.1, eps=0.1)


def test_a_call_like_an_earlier_one_is_neither_checked_nor_chosen_for(remembered, monkeypatch):
    x, grad = images((2, 3, 5, 4), 0, torch.uint8, "contiguous", 0, 1), floats((2, 3, 5, 4), 1)
    grad[0, 0, 0, 0] = math.nan
    first, again = torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, 5, 4)
    options = {"alpha": 2 / 255, "eps": 8 / 255, "out_range": (-1.0, 1.0), "out_dtype": BF16}
    expected = pgd_step_(first, grad, x, **options)
    assert len(remembered) == 1
    with monkeypatch.context() as patch:
        for name in ("_arguments", "dispatch"):
            patch.setattr(module, name, None)
        version = again._version
        got = pgd_step_(again, grad, x, **options)
    assert again._version > version
    assert isinstance(got, PGDStep)
    assert got.skipped.tolist() == [1, 0]
    assert all(map(same_bits, (again, *got), (first, *expected)))


@pytest.mark.usefixtures("remembered")
def test_a_call_is_checked_anew_where_anything_differs():
    delta, grad, x = torch.zeros(2, 3, 5, 4), floats((2, 3, 5, 4), 1), torch.rand(2, 3, 5, 4)
    options = {"alpha": 1.0, "eps": 1.0}
    pgd_step_(delta, grad, x, **options)
    pgd_step_(delta, grad, x, **options)
    for changed, error, match in [
        ({"alpha": True}, TypeError, "alpha: got bool"),
        ({"eps": 8.0}, ValueError, "eps: got 8.0"),
        ({"alpha": math.nan}, ValueError, "alpha: got nan"),
        ({"range": (0.0, 1.0, 2.0)}, ValueError, "range: got"),
        ({"range": (1.0, 0.0)}, ValueError, "range: got"),
        ({"step": "Sign"}, ValueError, "step: got 'Sign'"),
        ({"out_dtype": torch.int8}, TypeError, "out_dtype: got"),
        ({"mask": torch.ones(3)}, ValueError, "mask: got"),
    ]:
        with pytest.raises(error, match=match):
            pgd_step_(delta, grad, x, **options | changed)
    for wrong, error, match in [
        ((delta, grad[1:], x), ValueError, "grad: got shape"),
        ((delta, grad.to(torch.int32), x), TypeError, "grad: got dtype"),
        ((delta[:1].expand(2, 3, 5, 4), grad, x), ValueError, "delta: got an expanded tensor"),
        ((torch.zeros(2, 3, 5, 4, requires_grad=True), grad, x), ValueError, "requires grad"),
        ((torch._neg_view(delta), grad, x), ValueError, "delta: got a tensor that torch negates"),
        ((delta, grad, x.to_sparse()), TypeError, "x: got layout"),
        ((delta, None, x), TypeError, "grad: got NoneType"),
    ]:
        with pytest.raises(error, match=match):
            pgd_step_(*wrong, **options)
    # Another sign, another size: what was remembered is not taken for it.
    same, down = torch.zeros_like(delta), {"alpha": 0.125, "eps": 1.0, "maximize": False}
    pgd_step_(same, grad, x, **down)
    expected = torch.where(grad == 0, 0.0, -0.125 * grad.sign())
    assert torch.equal(same, torch.maximum(torch.minimum(expected, 1 - x), -x))
    assert (same != 0).any()


def test_a_range_that_is_no_pair_of_plain_numbers_is_not_remembered(remembered):
    delta, grad, x = torch.zeros(1, 4), torch.ones(1, 4), torch.zeros(1, 4)
    for pair in ([0.0, 1.0], (torch.tensor(0.0), 1.0), (np.float64(0), 1.0)):
        pgd_step_(delta, grad, x, alpha=0.5, eps=1.0, range=pair)
    pgd_step_(delta, grad, x, alpha=torch.tensor(0.5), eps=1.0)
    assert not remembered


def test_a_budget_is_remembered_beside_the_range(remembered):
    """As the methods give it: a half is 0.5 of [0, 1] and 1 of [-1, 1]."""
    for count, (lo, hi) in enumerate([(0.0, 1.0), (-1.0, 1.0)], 1):
        for _ in range(2):
            delta, grad, x = torch.zeros(1, 4), torch.ones(1, 4), torch.full((1, 4), lo)
            pgd_step_(delta, grad, x, alpha=2.0, eps=Budget(0.5), range=(lo, hi))
            assert torch.equal(delta, torch.full((1, 4), 0.5 * (hi - lo)))
        assert len(remembered) == count


def test_nothing_is_remembered_of_fake_tensors(remembered):
    """Made within the mode of real ones, which have no memory afterwards."""
    delta, grad, x = torch.zeros(1, 4), torch.ones(1, 4), torch.zeros(1, 4)
    with FakeTensorMode(allow_non_fake_inputs=True), contextlib.suppress(Exception):
        pgd_step_(delta, grad, x, alpha=0.5, eps=1.0)
    assert not remembered
    delta.zero_()
    pgd_step_(delta, grad, x, alpha=0.5, eps=1.0)
    assert torch.equal(delta, torch.full((1, 4), 0.5))


def test_one_tensor_twice_is_not_kept(remembered):
    delta, x = torch.zeros(1, 4), torch.ones(1, 4)
    for _ in range(2):
        pgd_step_(delta, x, x, alpha=0.5, eps=1.0)
    assert not remembered
