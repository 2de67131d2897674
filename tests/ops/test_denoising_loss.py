"""The contract of denoising_loss, judged in float64, on every backend."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from cases import F32, F64, FLOATS, LAYOUTS, Stop, floats, same_bits, shapes, timesteps, ulp
from hypothesis import given
from hypothesis import strategies as st

from udp_fast.backends import dispatch
from udp_fast.backends.reference.denoising_loss import denoising_loss as reference
from udp_fast.ops import accumulate_timesteps_, denoising_loss, noise_key, q_sample

TYPES = ("epsilon", "v_prediction", "sample", "flow")


def table():
    return torch.linspace(0.9999, 0.001, 50)


calls = st.fixed_dictionaries(
    {
        "shape": shapes,
        "seed": st.integers(0, 2**32),
        "layouts": st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
        "dtypes": st.tuples(*[st.sampled_from(FLOATS)] * 3),
        "target": st.sampled_from(["explicit", *TYPES]),
        "noise": st.booleans(),  # stored noise instead of a key
        "weighted": st.booleans(),
    }
)


def build(c):
    """(pred, target, x, t, table, noise, key, weight, prediction_type): the schema's arguments."""
    shape, seed = c["shape"], c["seed"]
    pred = floats(shape, seed, c["dtypes"][0], c["layouts"][0])
    weight = torch.linspace(0, 2, shape[0]) if c["weighted"] else None
    other = floats(shape, seed + 1, c["dtypes"][1], c["layouts"][1])
    if c["target"] == "explicit":
        return pred, other, None, None, None, None, None, weight, "epsilon"
    noise = key = None
    if c["target"] != "sample":
        if c["noise"]:
            noise = floats(shape, seed + 2, c["dtypes"][2], c["layouts"][2])
        else:
            key = noise_key(seed, range(shape[0]), step=3)
    x = other if c["target"] != "epsilon" else None
    t = schedule = None
    if c["target"] == "v_prediction":
        t, schedule = timesteps(shape[0], seed), table()
    return pred, None, x, t, schedule, noise, key, weight, c["target"]


def double(args):
    return [
        v.double() if isinstance(v, torch.Tensor) and v.dtype in FLOATS and v.dim() > 1 else v
        for v in args
    ]


@given(calls)
def test_agrees_with_the_float64_reference(backend_name, c):
    args = build(c)
    pred = args[0]
    loss, grad = dispatch.call("denoising_loss", *args, True, 0.5)
    exact, exact_grad = reference(*double(args), True, 0.5)
    assert loss.dtype == F32
    # Where pred nearly is the target little is left but the error of a derived target; weights are <= 2.
    target_error = 0.0 if c["target"] == "explicit" else 1.5e-6
    left = 2 * target_error * (2 * exact).sqrt() + 2 * target_error**2
    assert ((loss.double() - exact).abs() <= 1e-6 * exact + left + 1e-12).all()
    assert grad.dtype == pred.dtype
    # The residual carries the rounding of its operands' float32 arithmetic and the normals' 1e-6.
    numel = max(pred[:1].numel(), 1)
    noise_error = 2 * (1.5e-6 + 8 * ulp(torch.tensor(4.0, dtype=F64), F32)) / numel
    tolerance = ulp(exact_grad, pred.dtype) + noise_error
    error = (grad.double() - exact_grad).abs()
    assert (error <= tolerance).all()
    # The gradient enters sign methods: its sign must be right wherever it is above rounding.
    clear = exact_grad.abs() > 4 * tolerance
    assert torch.equal(grad.double().sign()[clear], exact_grad.sign()[clear])


@given(calls)
def test_rows_do_not_depend_on_the_batch_or_the_threads(backend_name, c):
    args = build(c)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        loss, grad = dispatch.call("denoising_loss", *args, True, 1.0)
        torch.set_num_threads(1)
        for b in range(args[0].shape[0]):
            row = [
                v[b : b + 1] if isinstance(v, torch.Tensor) and v is not args[4] else v
                for v in args
            ]
            alone, alone_grad = dispatch.call("denoising_loss", *row, True, 1.0)
            assert same_bits(alone, loss[b : b + 1])
            assert same_bits(alone_grad, grad[b : b + 1])
    finally:
        torch.set_num_threads(threads)


def test_large_images_sum_the_same_on_any_number_of_threads(backend_name):
    pred = floats((1, 3, 301, 401), 0)
    key = noise_key(0, [1])
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(
                dispatch.call("denoising_loss", pred, *[None] * 5, key, None, "epsilon", True, 1.0)
            )
    finally:
        torch.set_num_threads(threads)
    for loss, grad in results[1:]:
        assert torch.equal(grad, results[0][1])
        if backend_name != "reference":  # torch's own sums promise no order
            assert same_bits(loss, results[0][0])


def test_the_loss_is_that_of_the_noise_that_q_sample_drew(backend_name):
    x, t, key = floats((2, 3, 16, 16), 0), torch.tensor([3, 40]), noise_key(5, [1, 2], draw=4)
    _, noise = q_sample(x, t, table(), key=key, return_noise=True)
    assert denoising_loss(noise, key=key) == 0


T, WEIGHT = [4, 30], [0.5, 2.0]


def loss_of(kind, reduction, pred, x, noise):
    """With the weights WEIGHT; ``x`` is the target itself where that is explicit."""
    weight = torch.tensor(WEIGHT)
    if kind == "explicit":
        return denoising_loss(pred, x, weight=weight, reduction=reduction)
    return denoising_loss(
        pred,
        x=x,
        t=torch.tensor(T),
        alphas_cumprod=table(),
        weight=weight,
        prediction_type=kind,
        reduction=reduction,
        **({"noise": noise} if kind != "sample" else {}),
    )


def loss_by_torch(kind, reduction, pred, x, noise):
    level = table()[torch.tensor(T)]
    a = level.sqrt().double().view(-1, 1, 1, 1)
    s = (1 - level).sqrt().double().view(-1, 1, 1, 1)
    target = {
        "explicit": x,
        "epsilon": noise,
        "v_prediction": a * noise - s * x,
        "sample": x,
        "flow": noise - x,
    }
    per_image = (pred - target[kind]).square().flatten(1).mean(1) * torch.tensor(WEIGHT)
    return {"mean": per_image.mean(), "sum": per_image.sum(), "none": per_image}[reduction]


@pytest.mark.parametrize("kind", ["explicit", *TYPES])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_autograd_matches_torch(backend_name, way, kind, reduction):
    tensors = [floats((2, 3, 6, 6), i).requires_grad_() for i in range(3)]
    twins = [v.detach().double().requires_grad_() for v in tensors]
    upstream = torch.tensor([1.0, 3.0]) if reduction == "none" else torch.tensor(1.0)

    loss = loss_of(kind, reduction, *tensors)
    loss.backward(upstream)
    expected = loss_by_torch(kind, reduction, *twins)
    expected.backward(upstream.double())

    assert torch.allclose(loss.double(), expected, rtol=1e-6)
    for got, want in zip(tensors, twins, strict=True):
        if want.grad is None:
            assert got.grad is None or not got.grad.any()
        else:
            assert torch.allclose(got.grad.double(), want.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", ["explicit", *TYPES])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives_match_torch(backend_name, way, kind, reduction):
    tensors = [floats((2, 3, 6, 6), i).requires_grad_() for i in range(3)]
    twins = [v.detach().double().requires_grad_() for v in tensors]

    def penalised(loss, pred, x, noise):
        """Its gradient takes the loss's through pred and target, upstream factor and both together."""
        grads = torch.autograd.grad(
            loss(kind, reduction, pred**2, x**2, noise**2).square().sum(),
            (pred, x, noise),
            create_graph=True,
            allow_unused=True,
        )
        again = loss(kind, reduction, pred, x, noise).sum()
        return again + sum((1 + i) * g.square().sum() for i, g in enumerate(grads) if g is not None)

    penalised(loss_of, *tensors).backward()
    penalised(loss_by_torch, *twins).backward()
    for got, want in zip(tensors, twins, strict=True):
        if want.grad is None:
            assert got.grad is None or not got.grad.any()
        else:
            assert torch.allclose(got.grad.double(), want.grad, rtol=1e-4, atol=1e-6)


def test_derivatives_of_any_order_in_float64(way):
    x = floats((2, 3), 0, F64).requires_grad_()
    target = floats((2, 3), 1, F64)

    def third(loss):
        y = loss(x**2, target) ** 2
        for _ in range(3):
            (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y

    assert torch.allclose(third(denoising_loss), third(torch.nn.functional.mse_loss))


def test_a_first_gradient_has_no_graph(backend_name, way):
    pred = floats((2, 3, 6, 6), 0).requires_grad_()
    (grad,) = torch.autograd.grad(denoising_loss(pred, floats((2, 3, 6, 6), 1)), pred)
    assert not grad.requires_grad


def test_an_undefined_upstream_gradient_is_zero(backend_name, way):
    pred = floats((2, 3, 6, 6), 0).requires_grad_()
    loss = denoising_loss(pred, floats((2, 3, 6, 6), 1))
    (Stop.apply(loss) + pred.sum()).backward()
    assert torch.equal(pred.grad, torch.ones_like(pred))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.1, 30.0]], ids=["unweighted", "weighted"])
def test_a_loss_scale_saves_float16_gradients(backend_name, way, reduction, weights):
    """Most of this image's gradients are below float16's smallest; an upstream factor, as a GradScaler's,
    must find them."""
    shape, scale = (2, 3, 256, 256), 65536.0
    weight = torch.tensor(weights)
    pred = floats(shape, 0, torch.float16, scale=0.05)
    target = torch.zeros_like(pred)
    ours, torchs = (pred.clone().requires_grad_() for _ in range(2))
    (denoising_loss(ours, target, weight=weight, reduction=reduction).sum() * scale).backward()
    per_image = (torchs.float() - target.float()).square().flatten(1).mean(1) * weight
    ((per_image.mean() if reduction == "mean" else per_image.sum()) * scale).backward()
    factor = 2 * scale / (pred[0].numel() * (2 if reduction == "mean" else 1))
    exact = factor * weight.double().view(-1, 1, 1, 1) * pred.double()
    for b in range(2):
        error, torch_error = (
            ((g.grad[b].double() - exact[b]).norm() / exact[b].norm()).item()
            for g in (ours, torchs)
        )
        assert error < 1.25 * torch_error < 3e-4
        lost, lost_by_torch = (
            ((g.grad[b] == 0) & (exact[b] != 0)).double().mean() for g in (ours, torchs)
        )
        # Kept is what exceeds 2e-6 / weight, which a few of 200,000 such numbers do not.
        assert lost <= lost_by_torch + 1.2e-4 / weights[b]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("error", [1e4, 1.0, 1e-3])
def test_float16_gradients_without_a_loss_scale(backend_name, way, reduction, error):
    shape = (4, 3, 64, 64)
    pred = (floats(shape, 0).sign() * error).to(torch.float16).requires_grad_()
    target = torch.zeros(shape, requires_grad=True)
    denoising_loss(pred, target, reduction=reduction).backward()
    elements = pred.numel() if reduction == "mean" else pred[0].numel()
    exact = pred.detach().double() * 2 / elements
    assert ((pred.grad.double() - exact).abs() <= ulp(exact, torch.float16)).all()
    # A float32 target's has float32's range.
    assert torch.allclose(target.grad.double(), -exact, rtol=2e-3, atol=0)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_float16_gradients_are_the_same(backend_name, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(denoising_loss, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for side in (16, 33):
        target = floats((3, 3, side, side), 1, torch.float16, scale=0.05)
        preds = [torch.zeros_like(target).requires_grad_() for _ in range(2)]
        for loss, pred in zip((denoising_loss, compiled), preds, strict=True):
            (loss(pred, target) * 1024).backward()
        assert torch.allclose(preds[0].grad, preds[1].grad, rtol=1e-3, atol=0)


def test_backward_twice_and_upstream_factors(backend_name):
    pred = floats((2, 3, 6, 6), 0).requires_grad_()
    target = floats((2, 3, 6, 6), 1)
    loss = denoising_loss(pred, target)
    loss.backward(retain_graph=True)
    once = pred.grad.clone()
    loss.backward()
    assert torch.equal(pred.grad, 2 * once)
    pred.grad = None
    (3 * denoising_loss(pred, target)).backward()
    assert torch.allclose(pred.grad, 3 * once, rtol=1e-6)


@pytest.fixture
def unknown_factor(monkeypatch):
    """As on a GPU, where nobody waits to see whether a factor is one."""
    monkeypatch.setattr(sys.modules[denoising_loss.__module__], "_all_ones", lambda factor: False)


@pytest.mark.parametrize("kind", ["explicit", "sample", "flow"])
def test_a_factor_that_nobody_looks_at(backend_name, unknown_factor, kind):
    """Forms with a second gradient, which must not see the first one's scaling in place."""
    pred, other = (floats((2, 3, 6, 6), i).requires_grad_() for i in (0, 1))
    options = {"explicit": {"target": other}, "sample": {"x": other, "prediction_type": "sample"}}
    flow = {"x": other, "prediction_type": "flow", "noise": floats((2, 3, 6, 6), 2)}
    for upstream in (1.0, 3.0):
        loss = denoising_loss(pred, **options.get(kind, flow))
        got = torch.autograd.grad(upstream * loss, (pred, other))
        target = flow["noise"] - other if kind == "flow" else other
        want = torch.autograd.grad(upstream * (pred - target).square().mean(), (pred, other))
        for g, w in zip(got, want, strict=True):
            assert torch.allclose(g, w, rtol=1e-5, atol=1e-8)


def test_gradients_of_a_kept_graph_are_the_callers_own(backend_name, unknown_factor):
    pred, target = floats((2, 3, 6, 6), 0).requires_grad_(), floats((2, 3, 6, 6), 1)
    loss = denoising_loss(pred, target)
    (first,) = torch.autograd.grad(loss, pred, retain_graph=True)
    once = first.clone()
    first.zero_()
    three = torch.full_like(loss, 3.0)
    (second,) = torch.autograd.grad(loss, pred, three, retain_graph=True)
    (third,) = torch.autograd.grad(loss, pred, three)
    assert not first.any()
    assert torch.allclose(second, 3 * once, rtol=1e-6)
    assert same_bits(second, third)


def test_a_graph_that_is_kept_unnoticed_is_an_error(backend_name, unknown_factor, monkeypatch):
    monkeypatch.setattr(sys.modules[denoising_loss.__module__], "_graph_is_kept", lambda: False)
    pred = floats((2, 3, 6, 6), 0).requires_grad_()
    loss = denoising_loss(pred, floats((2, 3, 6, 6), 1))
    torch.autograd.grad(loss, pred, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, pred)


def test_without_grad_none_is_computed(backend_name):
    pred = floats((2, 3, 6, 6), 0)
    loss, grad = dispatch.call("denoising_loss", pred, pred + 1, *[None] * 6, "epsilon", False, 1.0)
    assert grad.numel() == 0
    assert loss.tolist() == pytest.approx([1.0, 1.0], rel=1e-6)


def test_nan_stays_in_its_image(backend_name):
    pred, target = floats((2, 3, 6, 6), 0), floats((2, 3, 6, 6), 1)
    clean = denoising_loss(pred, target, reduction="none")
    pred[0, 0, 0, 0] = math.nan
    loss = denoising_loss(pred, target, reduction="none")
    assert loss[0].isnan()
    assert same_bits(loss[1:], clean[1:])


def test_timestep_sums(backend_name):
    sums = torch.zeros(5, 2, dtype=F64)
    accumulate_timesteps_(sums, torch.tensor([1, 3, 1]), torch.tensor([0.5, 2.0, 0.25]))
    accumulate_timesteps_(sums, torch.tensor([3]), torch.tensor([1.0]))
    assert sums.tolist() == [[0, 0], [0.75, 2], [0, 0], [3, 2], [0, 0]]
    with pytest.raises(IndexError, match="t: got values from 5 to 5"):
        accumulate_timesteps_(sums, torch.tensor([5]), torch.tensor([1.0]))
    with pytest.raises(TypeError, match="sums: got dtype float32"):
        accumulate_timesteps_(sums.float(), torch.tensor([1]), torch.tensor([1.0]))


def test_timestep_sums_of_a_large_batch(backend_name):
    t = timesteps(700, 0, below=40)
    losses = floats((700,), 1)
    sums = torch.zeros(41, 2, dtype=F64)
    accumulate_timesteps_(sums, t, losses)
    for row in range(41):
        of_row = losses[t == row].double()
        assert sums[row, 0].item() == pytest.approx(of_row.sum().item(), rel=1e-12)
        assert sums[row, 1] == len(of_row)


def test_a_nan_stays_in_its_timestep(backend_name):
    sums = torch.zeros(3, 2, dtype=F64)
    accumulate_timesteps_(sums, torch.tensor([0, 1, 0]), torch.tensor([1.0, math.nan, 2.0]))
    assert sums[0].tolist() == [3, 2]
    assert sums[1, 0].isnan()


def test_no_losses_change_no_sums(backend_name):
    sums = torch.ones(3, 2, dtype=F64)
    accumulate_timesteps_(sums, torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    assert torch.equal(sums, torch.ones_like(sums))


BAD_SUMS = {
    "no sums": ({"sums": None}, TypeError, "sums: got NoneType"),
    "sums of one dimension": (
        {"sums": torch.zeros(5, dtype=F64)},
        ValueError,
        r"sums: got shape \[5\], expected \[T, 2\]",
    ),
    "sums of no dimension": (
        {"sums": torch.zeros((), dtype=F64)},
        ValueError,
        r"sums: got shape \[\], expected \[T, 2\]",
    ),
    "sums without counts": (
        {"sums": torch.zeros(5, 1, dtype=F64)},
        ValueError,
        r"sums: got shape \[5, 1\], expected \[T, 2\]",
    ),
    "sums that share memory": (
        {"sums": torch.zeros(1, 2, dtype=F64).expand(5, 2)},
        ValueError,
        "sums: got an expanded tensor",
    ),
    "one loss": ({"losses": torch.tensor(1.0)}, ValueError, r"losses: got shape \[\]"),
    "losses of pixels": ({"losses": torch.zeros(2, 3)}, ValueError, r"losses: got shape \[2, 3\]"),
    "no losses": ({"losses": None}, TypeError, "losses: got NoneType"),
    "t of two dimensions": (
        {"t": torch.zeros(2, 1, dtype=torch.int64)},
        ValueError,
        r"t: got shape \[2, 1\], expected \[2\]",
    ),
    "t of floats": ({"t": torch.zeros(2)}, TypeError, "t: got dtype float32"),
}


@pytest.mark.parametrize("case", BAD_SUMS, ids=str)
def test_bad_arguments_of_the_sums_are_named(case):
    change, error, message = BAD_SUMS[case]
    arguments = {
        "sums": torch.zeros(5, 2, dtype=F64),
        "t": torch.tensor([0, 1]),
        "losses": torch.zeros(2),
        **change,
    }
    with pytest.raises(error, match=f"accumulate_timesteps_: {message}"):
        accumulate_timesteps_(**arguments)


KEY = noise_key(0, [1, 2])
BAD = {
    "target and key": ({"target": torch.zeros(2, 4), "key": KEY}, ValueError, "got target and one"),
    "target of another shape": ({"target": torch.zeros(2, 5)}, ValueError, "target: got shape"),
    "neither": ({}, ValueError, "exactly one of noise and key"),
    "noise for a sample": (
        {"key": KEY, "prediction_type": "sample", "x": torch.zeros(2, 4)},
        ValueError,
        "expected neither for a sample",
    ),
    "v without x": ({"key": KEY, "prediction_type": "v_prediction"}, TypeError, "x: got NoneType"),
    "v without t": (
        {"key": KEY, "prediction_type": "v_prediction", "x": torch.zeros(2, 4)},
        TypeError,
        "t: got NoneType",
    ),
    "unknown type": ({"key": KEY, "prediction_type": "eps"}, ValueError, "prediction_type: got"),
    "unknown reduction": ({"key": KEY, "reduction": "max"}, ValueError, "reduction: got 'max'"),
    "weight of another length": (
        {"key": KEY, "weight": torch.ones(3)},
        ValueError,
        r"weight: got shape \[3\]",
    ),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_arguments_are_named(case):
    change, error, message = BAD[case]
    with pytest.raises(error, match=f"denoising_loss: .*{message}"):
        denoising_loss(torch.zeros(2, 4), **change)


def test_float16_gradients_of_large_weights_are_finite(backend_name):
    """A loss scale may come as the weight."""
    pred = (4.0 * torch.randn(2, 3, 64, 64)).clamp(-16, 16).half().requires_grad_()
    denoising_loss(pred, torch.zeros_like(pred), weight=torch.full((2,), 65536.0)).backward()
    exact = 2 * 65536.0 * pred.detach().double() / pred.numel()
    assert pred.grad.isfinite().all()
    assert (pred.grad.double() - exact).norm() <= 1e-3 * exact.norm()
