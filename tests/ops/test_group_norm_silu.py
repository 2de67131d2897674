"""The contract of group_norm_silu, judged in float64, on every backend that serves it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as nn
from cases import BF16, F16, F32, F64, FLOATS, LAYOUTS, floats, in_layout, opcheck, same_bits, ulp
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from udp_fast import explain
from udp_fast.backends.dispatch import BackendError
from udp_fast.backends.reference.group_norm_silu import group_norm_silu as forward_reference
from udp_fast.backends.reference.group_norm_silu import (
    group_norm_silu_backward as backward_reference,
)
from udp_fast.backends.registry import backend
from udp_fast.ops import group_norm_silu

OPS = torch.ops.udp_fast


@pytest.fixture(autouse=True)
def _served(request):
    """A backend may serve other ops only."""
    if "backend_name" in request.fixturenames:
        name = request.getfixturevalue("backend_name")
        if "group_norm_silu" not in backend(name).ops:
            pytest.skip(f"{name}: has no group_norm_silu")


#: (shape, groups): tails of every kind, one channel and all of them a group, rows of one pixel, more
#: than one piece of a channel and of a group, and what Stable Diffusion has at its lowest resolution.
SHAPES = [
    ((2, 8, 5, 4), 2),
    ((2, 32, 16, 16), 8),
    ((1, 6, 67, 70), 3),
    ((1, 48, 17, 16), 16),
    ((3, 8), 4),
    ((2, 6, 33), 3),
    ((1, 40, 3, 5, 7), 4),
    ((2, 5, 9, 9), 1),
    ((2, 3, 4, 4), 3),
    ((1, 1, 7, 5), 1),
    ((2, 320, 8, 8), 32),
    ((1, 160, 5, 5), 32),
]

calls = st.fixed_dictionaries(
    {
        "shape": st.one_of(
            st.sampled_from(SHAPES),
            st.tuples(
                st.integers(1, 3),
                st.integers(1, 9),
                st.integers(1, 4),
                st.integers(1, 9),
                st.integers(1, 19),
            ).map(lambda s: ((s[0], s[1] * s[2], s[3], s[4]), s[1])),
        ),
        "seed": st.integers(0, 2**32),
        "layouts": st.tuples(*[st.sampled_from(LAYOUTS)] * 2),  # of x, of the gradient
        "dtype": st.sampled_from(FLOATS),
        "weights": st.tuples(*[st.sampled_from([F32, BF16, F16, None])] * 2),
        "act": st.sampled_from(["silu", None]),
        "offset": st.sampled_from([0.0, 0.0, 3.0, -300.0]),
    }
)


def build(c):
    """(x, weight, bias, grad_y)"""
    (shape, _), seed = c["shape"], c["seed"]
    x = in_layout((floats(shape, seed) + c["offset"]).to(c["dtype"]), c["layouts"][0])
    weight, bias = (
        None if dtype is None else floats((shape[1],), seed + i, dtype)
        for i, dtype in enumerate(c["weights"], 1)
    )
    return x, weight, bias, floats(shape, seed + 3, c["dtype"], c["layouts"][1])


def run(x, weight, bias, grad_y, groups, act="silu", eps=1e-5, needs=(True, True, True)):
    """{y, dx, dweight, dbias} through autograd, as far as they are needed and exist."""
    x, weight, bias = (
        v if v is None or not n else v.detach().requires_grad_()
        for v, n in zip((x, weight, bias), needs, strict=True)
    )
    y = group_norm_silu(x, weight, bias, num_groups=groups, eps=eps, act=act)
    wanted = {
        name: v
        for name, v, n in zip(("dx", "dweight", "dbias"), (x, weight, bias), needs, strict=True)
        if n and v is not None
    }
    found = torch.autograd.grad(y, list(wanted.values()), grad_y) if wanted else ()
    return {"y": y.detach(), **dict(zip(wanted, found, strict=True))}


def exactly(x, weight, bias, grad_y, groups, act="silu", eps=1e-5):
    """The same in float64."""
    x, weight, bias, grad_y = (None if v is None else v.double() for v in (x, weight, bias, grad_y))
    y, mean, rstd = forward_reference(x, weight, bias, groups, eps, act)
    needs = [True, True, True]
    grads = backward_reference(grad_y, x, mean, rstd, weight, bias, groups, act, needs)
    return {"y": y, **dict(zip(("dx", "dweight", "dbias"), grads, strict=True)), "rstd": rstd}


def bits_are_kept(backend_name) -> None:
    if backend_name == "reference":
        pytest.skip("torch's sigmoid of an element depends on the thread that it falls to")


def per_group(value: Tensor, groups: int) -> Tensor:
    """The largest magnitude in each group, shaped to compare with the elements."""
    elements = value.shape[1] // groups * value.shape[2:].numel()
    peaks = value.abs().reshape(value.shape[0], groups, elements).amax(2, keepdim=True)
    return peaks.expand(-1, -1, elements).reshape(value.shape)


def rounding(x, weight, bias, grad_y, groups, act, exact) -> dict[str, Tensor]:
    """What float32 may be off in y and dx: a few roundings of the largest terms that enter them.

    x̂ may be off by the rounding of the mean (half a unit in the last place of it, in units of the
    standard deviation) and of x̂ itself.
    """
    x, grad_y = x.double(), grad_y.double()
    shape = (-1, *[1] * (x.dim() - 2))
    scale = torch.ones(x.shape[1]) if weight is None else weight.double()
    shift = torch.zeros(x.shape[1]) if bias is None else bias.double()
    scale, shift = scale.double().reshape(shape).abs(), shift.double().reshape(shape).abs()
    elements = x.shape[1] // groups * x.shape[2:].numel()
    rstd = exact["rstd"][..., None].expand(-1, -1, elements).reshape(x.shape)
    unit = torch.finfo(F32).eps
    mean = per_group(x, groups) * rstd
    hat = mean.clamp(max=elements**0.5)  # the largest |x̂| there can be
    off_hat = unit * (mean + 3 * hat)
    y = scale * off_hat * 1.2 + 3 * unit * (scale * hat + shift) + 1e-30
    # h moves by at most SiLU's curvature (1/2) times u's error, and a few roundings of its size.
    off_h = grad_y.abs() * ((scale * off_hat + unit * shift) * 0.5 + 4 * unit * 1.1)
    if act is None:
        off_h = torch.zeros_like(off_h)
    terms = per_group(scale * grad_y.abs() * 1.1, groups)
    off_sums = per_group(scale * off_h, groups) + 6 * unit * terms
    dx = rstd * (off_sums * (1 + hat * hat.clamp(max=1.0 * elements**0.5)) + off_hat * terms * 2)
    return {"y": y, "dx": dx}


def check(found, exact, off, dtype) -> None:
    for name in ("y", "dx"):
        if name not in found:
            continue
        assert found[name].dtype == dtype
        error = (found[name].double() - exact[name]).abs()
        allowed = off[name] + ulp(exact[name], dtype) * (0.5 if dtype != F32 else 1.0)
        assert (error <= allowed).all(), (name, (error / allowed).max().item())


def agreement(dx: Tensor, exact: Tensor, level: Tensor) -> float:
    """The share of signs that agree where the exact gradient is above the rounding level."""
    clear = exact.abs() > level
    assert clear.any()
    return (dx.double().sign() == exact.sign())[clear].double().mean().item()


@given(calls)
def test_agrees_with_the_float64_reference(backend_name, c):
    x, weight, bias, grad_y = build(c)
    arguments = (x, weight, bias, grad_y, c["shape"][1], c["act"])
    found, exact = run(*arguments), exactly(*arguments)
    assert found["y"].stride() == torch.empty_like(x).stride()
    assert found["dx"].stride() == torch.empty_like(x).stride()
    check(found, exact, rounding(*arguments, exact), c["dtype"])
    # Sums over many elements: of the size of what is summed, not of what is left.
    unit = torch.finfo(F32).eps
    hat = (per_group(x.double(), c["shape"][1]).amax() * exact["rstd"].max()).item() + 1
    size = grad_y.double().abs().sum() * (1 + hat)
    for name, weights in (("dweight", weight), ("dbias", bias)):
        if weights is None:
            assert name not in found
            continue
        assert found[name].dtype == weights.dtype
        error = (found[name].double() - exact[name]).abs()
        slack = 8 * unit * size * (1 + hat if name == "dweight" else 1)
        assert (error <= slack + ulp(exact[name], weights.dtype)).all()


def silu_slope_at_the_normalised_value(x, weight, bias, grad_y, groups, act="silu", eps=1e-5):
    """The control: SiLU's slope at x̂ instead of at weight * x̂ + bias, in float64."""
    x, weight, grad_y = x.double(), weight.double(), grad_y.double()
    _, mean, rstd = forward_reference(x, None, None, groups, eps, None)
    elements = x.shape[1] // groups * x.shape[2:].numel()
    mean, rstd = (v[..., None].expand(-1, -1, elements).reshape(x.shape) for v in (mean, rstd))
    hat = (x - mean) * rstd
    s = torch.sigmoid(hat)
    g = weight.reshape(-1, *[1] * (x.dim() - 2)) * grad_y * s * (1 + hat * (1 - s))
    grouped = [v.reshape(x.shape[0], groups, elements) for v in (g, hat, rstd)]
    g, hat, rstd = grouped
    dx = rstd * (g - g.mean(2, keepdim=True) - hat * (g * hat).mean(2, keepdim=True))
    return dx.reshape(x.shape)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("act", ["silu", None])
def test_signs_of_the_gradient(backend_name, dtype, layout, act):
    x, grad_y = (floats((2, 64, 32, 32), i, dtype, layout) for i in (0, 1))
    weight, bias = floats((64,), 2) + 1, floats((64,), 3)
    arguments = (x, weight, bias, grad_y, 32, act)
    exact = exactly(*arguments)
    off = rounding(*arguments, exact)
    found = run(*arguments, needs=(True, False, False))
    check(found, exact, off, dtype)
    level = 1e-6 * exact["dx"].abs().mean()
    assert agreement(found["dx"], exact["dx"], level) >= 0.999


def test_the_wrong_slope_is_rejected():
    """Both checks above must see it: it is what they are for."""
    x, grad_y = floats((2, 64, 32, 32), 0), floats((2, 64, 32, 32), 1)
    weight, bias = floats((64,), 2) + 1, floats((64,), 3)
    arguments = (x, weight, bias, grad_y, 32)
    exact = exactly(*arguments)
    wrong = silu_slope_at_the_normalised_value(*arguments)
    with pytest.raises(AssertionError, match="dx"):
        check({"dx": wrong.float()}, exact, rounding(*arguments, "silu", exact), F32)
    level = 1e-6 * exact["dx"].abs().mean()
    assert agreement(wrong, exact["dx"], level) < 0.95
    # And nothing is wrong with the control but this: without weights the two are one formula.
    plain = (x, torch.ones(64), torch.zeros(64), grad_y, 32)
    same = silu_slope_at_the_normalised_value(*plain)
    assert torch.allclose(same, exactly(*plain)["dx"], rtol=1e-9, atol=1e-12)


@given(calls)
def test_images_do_not_depend_on_the_batch_or_the_threads(backend_name, c):
    bits_are_kept(backend_name)
    x, weight, bias, grad_y = build(c)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        whole = run(x, weight, bias, grad_y, c["shape"][1], c["act"])
        torch.set_num_threads(1)
        alone = run(x, weight, bias, grad_y, c["shape"][1], c["act"])
        for name, value in whole.items():
            assert same_bits(value, alone[name]), name
        for b in range(x.shape[0]):
            row = slice(b, b + 1)
            part = run(x[row], weight, bias, grad_y[row], c["shape"][1], c["act"])
            for name in ("y", "dx"):
                assert same_bits(part[name], whole[name][row]), name
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_threads_do_not_change_a_bit_at_full_size(backend_name, layout):
    """Large enough that the work is cut in more than one way."""
    bits_are_kept(backend_name)
    x, grad_y = (floats((2, 320, 64, 64), i, F32, layout) for i in (0, 1))
    weight, bias = floats((320,), 2), floats((320,), 3)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 7, 64):
            torch.set_num_threads(count)
            found.append(run(x, weight, bias, grad_y, 32))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for name, value in other.items():
            assert same_bits(value, found[0][name]), name


@given(calls)
def test_only_what_is_needed_and_equal_bits(backend_name, c):
    x, weight, bias, grad_y = build(c)
    everything = run(x, weight, bias, grad_y, c["shape"][1], c["act"])
    for needs in ((True, False, False), (False, True, False), (False, False, True)):
        found = run(x, weight, bias, grad_y, c["shape"][1], c["act"], needs=needs)
        for name, value in found.items():
            assert same_bits(value, everything[name]), (needs, name)


def test_what_is_not_needed_is_empty(backend_name):
    x, weight, bias = floats((2, 8, 4, 4), 0), floats((8,), 1), floats((8,), 2)
    _, mean, rstd = OPS.group_norm_silu(x, weight, bias, 2, 1e-5, "silu")
    for needs in ([True, False, False], [False, True, True], [False, False, False]):
        out = OPS.group_norm_silu_backward(x, x, mean, rstd, weight, bias, 2, "silu", needs)
        assert [o.numel() for o in out] == [
            v.numel() if n else 0 for v, n in zip((x, weight, bias), needs, strict=True)
        ]
    out = OPS.group_norm_silu_backward(x, x, mean, rstd, None, None, 2, None, [True] * 3)
    assert [o.numel() for o in out] == [x.numel(), 0, 0]


def test_two_floats_a_group_and_the_input_are_all_that_is_kept(backend_name):
    x = floats((2, 8, 16, 16), 0).requires_grad_()
    weight, bias = floats((8,), 1), floats((8,), 2)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        group_norm_silu(x, weight, bias, num_groups=4)
    given = {t.data_ptr() for t in (x, weight, bias)}
    new = [t for t in kept if t.data_ptr() not in given]
    assert sorted(t.numel() for t in new) == [8, 8]
    assert all(t.dtype == F32 for t in new)


SPREADS = {
    "mean 1e4, deviation 1": (1e4, 1.0),
    "mean -1e4, deviation 0.1": (-1e4, 0.1),
    "mean 300, deviation 1e-3": (300.0, 1e-3),
    "deviation 1e15": (0.0, 1e15),
    "deviation 1e-12": (0.0, 1e-12),
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", SPREADS)
def test_the_variance_is_taken_about_the_mean(backend_name, case, layout):
    """E[x²] - m² has no correct digit in most of these."""
    offset, deviation = SPREADS[case]
    x = in_layout((floats((2, 32, 24, 24), 0).double() * deviation + offset).float(), layout)
    eps = min(1e-5, 1e-5 * deviation**2)
    y, mean, rstd = OPS.group_norm_silu(x, None, None, 8, eps, None)
    exact_y, exact_mean, exact_rstd = forward_reference(x.double(), None, None, 8, eps, None)
    assert ((mean - exact_mean).abs() <= ulp(exact_mean, F32) + 3e-7 * deviation).all()
    assert ((rstd - exact_rstd).abs() <= 5e-7 * exact_rstd).all()
    rounded_mean = ulp(torch.tensor(offset, dtype=F64), F32) * exact_rstd.max()
    assert (y - exact_y).abs().max() <= 2e-6 + rounded_mean
    if offset:  # the control: the case is one in which that formula fails
        groups = x.reshape(2, 8, -1)
        naive = groups.square().mean(2) - groups.mean(2).square()
        close = ((naive + eps).rsqrt() - exact_rstd).abs() <= 1e-4 * exact_rstd
        assert not close.all()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [0.0, 1.0, -123.456, 1e6])
def test_a_constant_group_is_its_bias(backend_name, value, layout):
    x = in_layout(torch.full((2, 8, 5, 7), value), layout)
    weight, bias = floats((8,), 0), floats((8,), 1)
    found = run(x, weight, bias, floats((2, 8, 5, 7), 2), 4)
    expected = nn.silu(bias.double()).reshape(1, 8, 1, 1).expand(x.shape)
    assert torch.allclose(found["y"].double(), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(found["dweight"], torch.zeros(8))


def test_one_element_a_group_has_no_gradient(backend_name):
    x = floats((3, 8), 0)
    found = run(x, floats((8,), 1), floats((8,), 2), floats((3, 8), 3), 8)
    assert torch.equal(found["dx"], torch.zeros(3, 8))
    assert found["dbias"].abs().min() > 0


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4), (0, 8), (2, 0, 3, 3)], ids=str)
def test_of_nothing_comes_nothing(backend_name, shape):
    x = torch.zeros(shape)
    found = run(x, torch.ones(shape[1]), torch.ones(shape[1]), x, 2)
    assert found["y"].shape == found["dx"].shape == x.shape
    assert torch.equal(found["dweight"], torch.zeros(shape[1]))
    _, mean, rstd = OPS.group_norm_silu(x, None, None, 2, 0.25, None)
    assert torch.equal(mean, torch.zeros(shape[0], 2))
    assert torch.equal(rstd, torch.full((shape[0], 2), 2.0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_what_is_not_finite_stays_in_its_group(backend_name, bad, layout):
    x = in_layout(floats((2, 8, 6, 6), 0), layout)
    clean = run(x, None, None, x, 4)
    x[1, 3, 2, 2] = bad
    dirty = run(x, None, None, floats((2, 8, 6, 6), 0), 4)
    touched = torch.zeros(2, 8, 6, 6, dtype=torch.bool)
    touched[1, 2:4] = True
    for name in ("y", "dx"):
        assert torch.equal(dirty[name][~touched], clean[name][~touched])
        assert dirty[name][touched].isnan().all()


def test_torchs_default_dtype_does_not_matter(backend_name):
    arguments = (
        floats((2, 8, 6, 6), 0),
        floats((8,), 1),
        floats((8,), 2),
        floats((2, 8, 6, 6), 3),
        4,
    )
    expected = run(*arguments)
    torch.set_default_dtype(F64)
    try:
        found = run(*arguments)
    finally:
        torch.set_default_dtype(F32)
    for name, value in found.items():
        assert same_bits(value, expected[name]), name


def test_silu_at_its_ends(backend_name):
    """Far out SiLU is u or nearly nothing, and its slope one or nearly none."""
    bias = torch.tensor([-1e4, -150.0, -89.0, -20.0, 20.0, 89.0, 150.0, 1e4])
    x = floats((1, 8, 6, 6), 0)
    found = run(x, torch.zeros(8), bias, torch.ones(1, 8, 6, 6), 4)
    expected = nn.silu(bias.double()).reshape(1, 8, 1, 1)
    assert ((found["y"] - expected).abs() <= 1e-6 * expected.abs() + 1e-30).all()
    u = bias.double().requires_grad_()
    nn.silu(u).sum().backward()
    assert torch.allclose(found["dbias"].double(), 36 * u.grad, rtol=2e-6, atol=1e-30)


def test_gradcheck(monkeypatch):
    monkeypatch.setenv("UDP_FAST_BACKEND", "reference")
    x, weight, bias = (
        floats(s, i).double().requires_grad_() for i, s in enumerate([(2, 6, 3, 4), (6,), (6,)])
    )
    for act in ("silu", None):
        assert torch.autograd.gradcheck(
            lambda x, w, b, act=act: group_norm_silu(x, w, b, num_groups=3, act=act),
            (x, weight, bias),
        )


def test_float64_is_the_references(monkeypatch):
    x = floats((2, 8, 4, 4), 0).double()
    assert explain("group_norm_silu", x, num_groups=2).chosen == "reference"
    y, mean, _ = OPS.group_norm_silu(x, None, None, 2, 1e-5, "silu")
    assert y.dtype == mean.dtype == F64
    monkeypatch.setenv("UDP_FAST_STRICT", "1")
    with pytest.raises(BackendError, match="float64"):
        group_norm_silu(x, num_groups=2)


def sample(layout="contiguous", grad=True):
    x = in_layout(floats((2, 8, 6, 5), 0), layout).requires_grad_(grad)
    return x, floats((8,), 1).requires_grad_(grad), floats((8,), 2).requires_grad_(grad)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_opcheck(backend_name, layout):
    opcheck(OPS.group_norm_silu, (*sample(layout), 4, 1e-5, "silu"))
    opcheck(OPS.group_norm_silu, (sample(layout)[0], None, None, 4, 1e-5, None))
    x, weight, bias = sample(layout, grad=False)
    _, mean, rstd = OPS.group_norm_silu(x, weight, bias, 4, 1e-5, "silu")
    for needs in ([True, True, True], [True, False, False]):
        opcheck(
            OPS.group_norm_silu_backward,
            (x.contiguous(), x, mean, rstd, weight, bias, 4, "silu", needs),
        )


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_without_a_graph_break(backend_name, dynamic):
    torch._dynamo.reset()

    def block(x, weight, bias):
        y = group_norm_silu(x * 2, weight, bias, num_groups=4)
        return group_norm_silu(y, num_groups=2, act=None).square().sum()

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    eager, traced = sample(), sample()
    expected, got = block(*eager), compiled(*traced)
    expected.backward()
    got.backward()
    assert torch.equal(got, expected)
    for a, b in zip(traced, eager, strict=True):
        assert torch.equal(a.grad, b.grad)


def test_a_second_derivative_is_refused(backend_name):
    x, weight, bias = sample()
    (dx,) = torch.autograd.grad(
        group_norm_silu(x, weight, bias, num_groups=4).sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="group_norm_silu: has no second derivative"):
        dx.sum().backward()


def test_the_inputs_are_left_alone(backend_name):
    x, weight, bias = sample(grad=False)
    before = [v.clone() for v in (x, weight, bias)]
    run(x, weight, bias, floats(x.shape, 5), 4)
    for value, old in zip((x, weight, bias), before, strict=True):
        assert torch.equal(value, old)


BAD = {
    "x of bytes": ({"x": torch.zeros(2, 8, 2, dtype=torch.uint8)}, TypeError, "x: got dtype uint8"),
    "x a list": ({"x": [1.0]}, TypeError, "x: got list"),
    "x without channels": ({"x": torch.zeros(8)}, ValueError, r"x: got shape \[8\], expected \[N"),
    "groups that do not divide": (
        {"num_groups": 3},
        ValueError,
        "num_groups: got 3, expected a di",
    ),
    "no group": ({"num_groups": 0}, ValueError, "num_groups: got 0"),
    "groups of the wrong type": ({"num_groups": 2.0}, TypeError, "num_groups: got float"),
    "a negative eps": (
        {"eps": -1e-5},
        ValueError,
        "eps: got -1e-05, expected a finite number >= 0",
    ),
    "eps not a number": ({"eps": float("nan")}, ValueError, "eps: got nan"),
    "eps of the wrong type": ({"eps": "small"}, TypeError, "eps: got str"),
    "weight of another length": (
        {"weight": torch.ones(4)},
        ValueError,
        r"weight: got shape \[4\], expected \[8\]",
    ),
    "bias of integers": ({"bias": torch.ones(8, dtype=torch.int64)}, TypeError, "bias: got dtype"),
    "another activation": ({"act": "gelu"}, ValueError, "act: got 'gelu', expected one of silu"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_arguments_are_named(case):
    change, error, message = BAD[case]
    arguments = {
        "x": torch.zeros(2, 8, 2),
        "weight": torch.ones(8),
        "bias": torch.zeros(8),
        "num_groups": 4,
        **change,
    }
    with pytest.raises(error, match=f"group_norm_silu: .*{message}"):
        group_norm_silu(**arguments)
