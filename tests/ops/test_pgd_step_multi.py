"""The contract of pgd_step_multi_: each image as `pgd_step_` would do it alone, on every backend."""

from __future__ import annotations

import math

import pytest
import torch
from cases import BF16, F16, F32, F64, FLOATS, LAYOUTS, floats, images, opcheck, same_bits
from hypothesis import given
from hypothesis import strategies as st

from udp_fast import explain
from udp_fast.ops import Budget, pgd_step_, pgd_step_multi_

shapes = st.lists(
    st.one_of(
        st.sampled_from([(), (0,), (3, 0, 2), (1,), (7,), (1025,), (3, 5, 7), (3, 32, 33)]),
        st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 17)),
    ),
    max_size=6,
)
calls = st.fixed_dictionaries(
    {
        "shapes": shapes,
        "seed": st.integers(0, 2**32),
        "layouts": st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
        "dtypes": st.tuples(
            st.sampled_from(FLOATS),
            st.sampled_from(FLOATS),
            st.sampled_from([*FLOATS, torch.uint8]),
        ),
        "per_image": st.booleans(),
        "step": st.sampled_from(["sign", "raw"]),
        "maximize": st.booleans(),
        "out_range": st.sampled_from([None, (-1.0, 1.0), (0.0, 255.0)]),
        "out_dtype": st.sampled_from(FLOATS),
    }
)


def laid_out(image, layout):
    """`cases.in_layout` of a batch of one, without the batch."""
    if layout == "channels_last":
        return image.movedim(0, -1).contiguous().movedim(-1, 0) if image.dim() == 3 else image
    if layout == "strided" and image.dim() > 0:
        return torch.stack([image, image], -1)[..., 0]
    if layout == "reversed_dims":
        order = list(range(image.dim()))[::-1]
        return image.permute(order).contiguous().permute(order)
    if layout == "expanded" and image.dim() > 1:
        return image[:1].clone().expand(image.shape)
    return image


def build(c):
    """The operands of one drawn case: deltas, grads, xs, and the options."""
    d, g, x = c["dtypes"]
    of_delta = "contiguous" if c["layouts"][0] == "expanded" else c["layouts"][0]
    deltas = [
        laid_out(floats(s, c["seed"] + i, d, scale=0.02), of_delta)
        for i, s in enumerate(c["shapes"])
    ]
    grads = [
        laid_out(floats(s, c["seed"] + 100 + i, g, extremes=True), c["layouts"][1])
        for i, s in enumerate(c["shapes"])
    ]
    xs = [
        laid_out(images(s, c["seed"] + 200 + i, x), c["layouts"][2])
        for i, s in enumerate(c["shapes"])
    ]
    alpha, eps = 0.01, 8 / 255
    if c["per_image"]:
        alpha = torch.linspace(0, alpha, len(deltas))
        eps = torch.linspace(eps, eps / 2, len(deltas))
    options = {k: c[k] for k in ("step", "maximize", "out_range", "out_dtype")}
    return deltas, grads, xs, {**options, "alpha": alpha, "eps": eps}


@given(calls)
def test_each_image_is_done_as_if_alone(backend_name, c):
    deltas, grads, xs, o = build(c)
    alone = [d.clone() for d in deltas]
    places = [d.data_ptr() for d in deltas]
    result = pgd_step_multi_(deltas, grads, xs, **o)
    assert [d.data_ptr() for d in deltas] == places
    assert len(result.advs) == len(deltas)
    assert result.skipped.shape == (len(deltas),)
    assert result.skipped.dtype == torch.int64
    for i, delta in enumerate(alone):
        one = {k: v[i] if isinstance(v, torch.Tensor) else v for k, v in o.items()}
        expected = pgd_step_(delta[None], grads[i][None], xs[i][None], **one)
        assert same_bits(deltas[i], delta)
        assert same_bits(result.advs[i], expected.adv[0])
        assert result.skipped[i] == expected.skipped[0]


def test_more_images_than_a_launch_takes(backend_name):
    deltas = [torch.zeros(3, 4, i) for i in range(150)]
    ones = [torch.ones_like(d) for d in deltas]
    eps = torch.linspace(0, 0.02, 150)
    advs, skipped = pgd_step_multi_(deltas, ones, [0.5 * x for x in ones], alpha=0.01, eps=eps)
    for i in range(1, 150):
        step = min(torch.tensor(0.01), eps[i])
        assert torch.equal(deltas[i], step.expand_as(deltas[i]))
        assert torch.equal(advs[i], deltas[i] + 0.5)
    assert not skipped.any()


def test_a_poisoned_gradient_is_counted_for_its_image(backend_name):
    deltas = [torch.zeros(2, 3), torch.zeros(5)]
    grads = [torch.ones(2, 3), torch.tensor([math.nan, math.inf, 1.0, -1.0, 0.0])]
    xs = [torch.full_like(d, 0.5) for d in deltas]
    skipped = pgd_step_multi_(deltas, grads, xs, alpha=0.25, eps=Budget.linf("64/255")).skipped
    assert skipped.tolist() == [0, 2]
    assert deltas[1].tolist() == [0.0, 0.0, 0.25, -0.25, 0.0]


def test_memory_formats_follow_the_deltas(backend_name):
    delta = torch.zeros(6, 5, 3).permute(2, 0, 1)
    adv = pgd_step_multi_(
        [delta], [torch.ones(3, 6, 5)], [torch.ones(3, 6, 5)], alpha=0.1, eps=0.1, out_dtype=BF16
    ).advs[0]
    assert adv.dtype == BF16
    assert adv.stride() == delta.stride()


def test_nothing_to_do(backend_name):
    advs, skipped = pgd_step_multi_([], [], [], alpha=0.1, eps=torch.zeros(0))
    assert advs == []
    assert skipped.shape == (0,)


def test_float64_is_left_to_the_reference(monkeypatch):
    deltas = [torch.zeros(3, dtype=F64)]
    asked = explain("pgd_step_multi_", deltas, deltas, deltas, alpha=0.1, eps=0.1, out_dtype=F64)
    assert asked.chosen == "reference"
    assert "float64" in str(asked) or "not installed" in str(asked)
    monkeypatch.setenv("UDP_FAST_BACKEND", "reference")
    ones = [torch.ones(3, dtype=F64)]
    advs, _ = pgd_step_multi_(deltas, ones, ones, alpha=0.1, eps=0.1, out_dtype=F64)
    assert advs[0].dtype == F64


def zeros(**changes):
    """Good arguments, some of them changed."""
    shape = [(3, 4, 4), (3, 2, 2)]
    return {
        "deltas": [torch.zeros(s) for s in shape],
        "grads": [torch.ones(s) for s in shape],
        "xs": [torch.ones(s) for s in shape],
        "alpha": 0.01,
        "eps": 0.03,
        **changes,
    }


Z, TWICE = torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)
BAD = {
    "a tensor for a list": ({"deltas": Z}, TypeError, "deltas: got Tensor, expected a list"),
    "one gradient short": ({"grads": [Z]}, ValueError, "grads: got 1 tensors, expected 2"),
    "another shape": ({"xs": [Z, Z]}, ValueError, r"xs\[1\]: got shape \[3, 4, 4\]"),
    "two dtypes": (
        {"grads": [Z, torch.zeros(3, 2, 2, dtype=F16)]},
        TypeError,
        r"grads\[1\]: got dtype float16, expected one of float32",
    ),
    "integers": (
        {"deltas": [Z.int(), Z.int()]},
        TypeError,
        r"deltas\[0\]: got dtype int32",
    ),
    "no tensor": ({"xs": [Z, None]}, TypeError, r"xs\[1\]: got NoneType"),
    "another device": (
        {"deltas": [Z, torch.zeros(3, 2, 2, device="meta")]},
        ValueError,
        r"deltas\[1\]: got a tensor on meta",
    ),
    "one tensor twice": (
        {"deltas": [TWICE, TWICE], "grads": [Z, Z], "xs": [Z, Z]},
        ValueError,
        r"deltas\[1\]: got a tensor for the second time",
    ),
    "elements that share memory": (
        {"deltas": [Z, torch.zeros(1, 2, 2).expand(3, 2, 2)]},
        ValueError,
        r"deltas\[1\]: got an expanded tensor",
    ),
    "requires grad": (
        {"deltas": [Z, torch.zeros(3, 2, 2, requires_grad=True)]},
        ValueError,
        r"deltas\[1\]: requires grad",
    ),
    "an l2 step": ({"step": "l2"}, ValueError, "step: got 'l2', expected one of sign, raw"),
    "eps is NaN": ({"eps": math.nan}, ValueError, "eps: got nan"),
    "alpha of the wrong length": (
        {"alpha": torch.ones(3)},
        ValueError,
        r"alpha: got float32\[3\], expected a float tensor of shape \[\] or \[2\]",
    ),
    "range reversed": ({"range": (1, 0)}, ValueError, "range: got"),
    "integer output": ({"out_dtype": torch.int32}, TypeError, "out_dtype: got torch.int32"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_arguments_are_named(case):
    change, error, message = BAD[case]
    with pytest.raises(error, match=f"pgd_step_multi_: {message}"):
        pgd_step_multi_(**zeros(**change))


def test_opcheck(backend_name):
    operands = zeros()
    lists = [operands[name] for name in ("deltas", "grads", "xs")]
    lists.insert(1, [torch.empty_like(d, dtype=F16) for d in lists[0]])
    rest = (torch.tensor(0.01), torch.tensor([0.03, 0.02]), "sign", True, 0.0, 1.0, -1.0, 1.0)
    opcheck(torch.ops.udp_fast.pgd_step_multi_, (*lists, *rest))


def test_compiles_without_a_graph_break(backend_name):
    def step(deltas, grads, xs):
        advs = pgd_step_multi_(deltas, grads, xs, alpha=0.01, eps=0.03, out_dtype=F32).advs
        return [2 * adv for adv in advs], deltas

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    args = [[floats(s, i) for s in ((3, 4, 5), (7,))] for i in range(3)]
    expected = step([d.clone() for d in args[0]], *args[1:])
    got = compiled([d.clone() for d in args[0]], *args[1:])
    for ours, theirs in zip(got, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
