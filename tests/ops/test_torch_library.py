"""The ops as torch.library ops: opcheck's rules, and torch.compile without a graph break."""

from __future__ import annotations

import pytest
import torch
from cases import F16, F32, floats, here, images, opcheck
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from udp_fast.ops import (
    denoising_loss,
    image_scale,
    noise_key,
    pgd_step,
    pgd_step_,
    pgd_step_multi_,
    q_sample,
    quantize,
)
from udp_fast.ops.image_scale import image_scale_

OPS = torch.ops.udp_fast
SHAPE = (2, 3, 6, 5)
KEY = noise_key(0, [1, 2])
T = torch.tensor([1, 3])
TABLE = torch.tensor([0.9, 0.7, 0.5, 0.2])
ALPHA, EPS = torch.tensor(0.01), torch.tensor([0.03, 0.02])
LOSS = (None, "epsilon", True, 0.5)


def x(seed=0, grad=False, layout="contiguous"):
    return floats(SHAPE, seed, layout=layout).requires_grad_(grad)


SAMPLES = {
    "q_sample, key": (
        OPS.q_sample,
        lambda: (x(0, True), here(T), here(TABLE), None, here(KEY), "diffusion", True, F32),
    ),
    "q_sample, noise": (
        OPS.q_sample,
        lambda: (x(0, True), here(T), here(TABLE), x(1, True), None, "flow", False, F16),
    ),
    "q_sample, channels_last": (
        OPS.q_sample,
        lambda: (
            x(0, True, "channels_last"),
            here(T),
            here(TABLE),
            None,
            here(KEY),
            "flow",
            True,
            F32,
        ),
    ),
    "denoising_loss, explicit": (
        OPS.denoising_loss,
        lambda: (x(0, True), x(1, True), *[None] * 5, *LOSS),
    ),
    "denoising_loss, v": (
        OPS.denoising_loss,
        lambda: (
            x(0, True),
            None,
            x(1, True),
            here(T),
            here(TABLE),
            None,
            here(KEY),
            None,
            "v_prediction",
            True,
            1.0,
        ),
    ),
    "denoising_loss, flow, stored noise": (
        OPS.denoising_loss,
        lambda: (
            x(0, True),
            None,
            x(1, True),
            None,
            None,
            x(2, True),
            None,
            None,
            "flow",
            True,
            1.0,
        ),
    ),
    "pgd_step_": (
        OPS.pgd_step_,
        lambda: (
            x(),
            x(1),
            x(2),
            ALPHA,
            here(EPS),
            None,
            "sign",
            "linf",
            True,
            0.0,
            1.0,
            -1.0,
            1.0,
            F16,
        ),
    ),
    "pgd_step, masked": (
        OPS.pgd_step,
        lambda: (
            *(x(), x(1), images(SHAPE, 2, torch.uint8), ALPHA, here(EPS), x(3)[:, :1] > 0),
            *("l2", "l2", False, 0.0, 1.0, 0.0, 1.0, F32),
        ),
    ),
    "quantize": (
        OPS.quantize,
        lambda: (x(), images(SHAPE, 1, torch.uint8), here(EPS), here(KEY), "delta", 0.0, 1.0),
    ),
    "image_scale": (OPS.image_scale, lambda: (x(0, True), torch.tensor([1.0, 2.0]))),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(backend_name, name):
    op, arguments = SAMPLES[name]
    opcheck(op, arguments())


def protection_step(delta, x, original):
    """All ops in the order in which a protection step calls them."""
    adv = pgd_step(delta, x, original, alpha=0.01, eps=0.03, out_range=(-1, 1)).adv
    x_t = q_sample(adv, here(T), here(TABLE), key=here(KEY))
    loss = denoising_loss(torch.tanh(x_t), key=here(KEY), weight=torch.ones(2))
    pgd_step_(delta, x, original, alpha=0.01, eps=0.03)
    out = quantize(delta, original, eps=0.03)
    return loss, image_scale(x_t, torch.ones(2)), out, delta


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_without_a_graph_break(backend_name, dynamic):
    original = images(SHAPE, 2, torch.uint8)
    compiled = torch.compile(protection_step, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    torch._dynamo.reset()
    expected = protection_step(torch.zeros(SHAPE), x(), original)
    got = compiled(torch.zeros(SHAPE), x(), original)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_compiled_training_has_the_same_gradients(backend_name):
    torch._dynamo.reset()

    def loss(x):
        return denoising_loss(
            torch.tanh(q_sample(x, here(T), here(TABLE), key=here(KEY))), key=here(KEY)
        )

    eager, compiled = x(0, True), x(0, True)
    loss(eager).backward()
    torch.compile(loss, backend="aot_eager", fullgraph=True)(compiled).backward()
    assert torch.allclose(eager.grad, compiled.grad, rtol=1e-6, atol=1e-9)


def test_fake_tensors_say_what_real_ones_do(backend_name):
    with torch._subclasses.FakeTensorMode():
        fake = torch.empty(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
        adv = pgd_step_(
            fake, torch.empty_like(fake), torch.empty_like(fake), alpha=0.1, eps=0.1, out_dtype=F16
        ).adv
        assert adv.dtype == F16
        assert adv.is_contiguous(memory_format=torch.channels_last)


# --- what a kernel that is called directly would escape --------------------------------------------


def test_a_trace_holds_the_op(backend_name):
    images_ = x()
    traced = torch.jit.trace(lambda v: image_scale(v, torch.tensor([1.0, 2.0])) + 0, images_)
    assert torch.equal(traced(images_ + 1), image_scale(images_ + 1, torch.tensor([1.0, 2.0])))
    graph = make_fx(lambda v: image_scale(v, torch.ones(2)) + 0)(images_)
    assert "torch.ops.udp_fast.image_scale" in graph.code


@pytest.mark.parametrize("scaled", [image_scale, lambda v, _: q_sample(v, T, TABLE, key=KEY)])
def test_a_tangent_is_refused(scaled):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x(), x(1))
        with pytest.raises(NotImplementedError, match="a tangent of forward-mode autograd"):
            scaled(dual, torch.ones(2))
        scaled(x(), torch.ones(2))


def negated(shape):
    """A tensor whose memory holds the opposite of what it is, as the gradient of an imaginary part is."""
    lazy = torch.complex(floats(shape, 1), floats(shape, 2)).conj().imag
    assert lazy.is_neg()
    return lazy


def test_numbers_that_torch_negates_only_when_it_reads_them(backend_name):
    lazy, original = negated(SHAPE), images(SHAPE, 3, torch.uint8)
    real = lazy.clone()
    assert torch.equal(image_scale(lazy, torch.ones(2)), real)
    options = {"alpha": 0.01, "eps": 0.03}
    got = pgd_step(torch.zeros(SHAPE), lazy, original, mask=negated((2, 1, 6, 5)), **options)
    mask = negated((2, 1, 6, 5)).clone()
    assert torch.equal(
        got.delta, pgd_step(torch.zeros(SHAPE), real, original, mask=mask, **options).delta
    )
    assert denoising_loss(lazy, real) == 0
    weight, zeros = negated((2, 1))[:, 0], torch.zeros(SHAPE)
    losses = denoising_loss(real, zeros, weight=weight, reduction="none")
    assert torch.equal(losses, denoising_loss(real, zeros, weight=weight.clone(), reduction="none"))
    with pytest.raises(ValueError, match="pgd_step_: delta: got a tensor that torch negates only"):
        pgd_step_(lazy, real, original, **options)


def test_autograd_learns_of_what_is_written(backend_name):
    """A backward that needs what was there before must fail, and not be wrong."""
    deltas = {
        "pgd_step_": lambda d: pgd_step_(d, d.clone(), d.clone(), alpha=0.1, eps=0.2),
        "pgd_step_multi_": lambda d: pgd_step_multi_(
            [d], [d.clone()], [d.clone()], alpha=0.1, eps=0.2
        ),
        "image_scale_": lambda d: image_scale_(d, torch.full((2,), 3.0)),
    }
    lazy = negated(SHAPE)
    by_the_library = {
        "pgd_step_": lambda d: pgd_step_(d, lazy, d.clone(), alpha=0.1, eps=0.2),
        "pgd_step_multi_": lambda d: pgd_step_multi_([d], [lazy], [d.clone()], alpha=0.1, eps=0.2),
    }
    for write in (*deltas.values(), *by_the_library.values()):
        weight, delta = x(0, True), x(1)
        loss = (weight * delta).sum()
        write(delta)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    with torch.inference_mode():  # where there are no versions
        for write in deltas.values():
            write(x(1).clone())
