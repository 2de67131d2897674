"""conv3x3 on every backend: the definition, layouts, sizes that no tile divides, equal bits."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import udp_fast
from udp_fast.backends.cpu import native
from udp_fast.ops import conv3x3

SHAPES = {
    "tiles fit": (2, 32, 64, 16, 16),
    "one row short of a tile": (1, 32, 32, 15, 16),
    "one more than tiles": (1, 48, 32, 17, 13),
    "channels no vector divides": (1, 29, 37, 12, 12),
    "a part of a block of output channels": (3, 40, 25, 8, 8),
    "two depths of input channels": (1, 150, 33, 8, 12),
    "bands of one thread's": (1, 512, 24, 12, 512),
    "bands of all threads'": (1, 8600, 24, 16, 32),
    "few channels": (1, 4, 8, 12, 12),
    "no tile saves anything": (4, 24, 24, 2, 2),
    "wide and flat": (4, 24, 24, 1, 40),
    "one pixel": (1, 16, 16, 1, 1),
}


def operands(shape: tuple[int, ...], *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    images, channels, out, height, width = shape
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(images, channels, height, width, generator=g)
    weight = torch.randn(out, channels, 3, 3, generator=g) / (9 * channels) ** 0.5
    return (
        x.contiguous(memory_format=torch.channels_last),
        weight,
        torch.randn(out, generator=g),
    )


@cache
def exactly(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The convolution of these operands in float64, a gradient of it, and that of x."""
    x, weight, bias = (v.double() for v in operands(shape))
    y = F.conv2d(x.requires_grad_(), weight, bias, padding=1)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(9))
    (dx,) = torch.autograd.grad(y, x, dy.double())
    return y.detach(), dy, dx


def error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("layout", ["channels_last", "contiguous", "a slice of channels"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_is_the_convolution_and_its_gradient(
    backend_name: str, shape: tuple[int, ...], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, bias = operands(shape)
    if layout == "contiguous":
        x = x.contiguous()
    elif layout == "a slice of channels":
        x = torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last)[:, : shape[1]]
    if udp_fast.explain("conv3x3", x, weight, bias).chosen is None:
        monkeypatch.delenv("UDP_FAST_BACKEND")
    x.requires_grad_()
    y = conv3x3(x, weight, bias)
    exact, dy, exact_dx = exactly(shape)
    if layout != "contiguous":
        dy = dy.contiguous(memory_format=torch.channels_last)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert error(y, exact) < 2e-5
    assert error(dx, exact_dx) < 2e-5
    sure = exact_dx.abs() > 1e-4 * exact_dx.abs().max()
    assert torch.equal(dx.sign()[sure].double(), exact_dx.sign()[sure])
    if shape[2] > 1 and y[0, 0].numel() > 1:
        assert (y.stride(1) == 1) == (x.stride(1) == 1)


def test_the_native_kernel_takes_what_it_is_for() -> None:
    if native.MISSING or native.module().isa() == "baseline":
        pytest.skip("no native kernel for this processor")
    x, weight, _ = operands(SHAPES["tiles fit"])
    assert udp_fast.explain("conv3x3", x, weight).chosen == "cpu"
    for other, reason in (
        (x.contiguous(), "do not lie side by side"),
        (x.bfloat16(), "only float32"),
        (x[:1, :, :4, :4], "1 tiles of 4×4 pixels"),
    ):
        explanation = udp_fast.explain("conv3x3", other, weight.to(other.dtype))
        assert explanation.chosen == "reference"
        assert reason in str(explanation)


def test_equal_bits_for_any_threads_and_instruction_set() -> None:
    if native.MISSING:
        pytest.skip(native.MISSING)
    x, weight, bias = operands((3, 150, 70, 20, 16))
    found: list[tuple[Tensor, Tensor]] = []
    threads, isas = torch.get_num_threads(), native.module().supported_isas()
    try:
        for isa in isas:
            if isa == "baseline":
                continue
            native.module().use_isa(isa)
            for count in (1, 2, 5, 9):  # of which the last share the tiles
                torch.set_num_threads(count)
                v = x.clone().requires_grad_()
                y = conv3x3(v, weight, bias)
                found.append((y.detach(), torch.autograd.grad(y.sum(), v)[0]))
            alone = torch.cat([conv3x3(image[None], weight, bias) for image in x])
            assert torch.equal(alone, found[0][0])
    finally:
        native.module().use_isa("")
        torch.set_num_threads(threads)
    for y, dx in found[1:]:
        assert torch.equal(y, found[0][0])
        assert torch.equal(dx, found[0][1])


def test_weights_in_any_layout(backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = operands(SHAPES["tiles fit"])
    if udp_fast.explain("conv3x3", x, weight, bias).chosen is None:
        monkeypatch.delenv("UDP_FAST_BACKEND")
    expected = conv3x3(x, weight, bias)
    interleaved = weight.contiguous(memory_format=torch.channels_last)
    assert error(conv3x3(x, interleaved, bias), expected.double()) < 1e-6
    assert (
        error(
            conv3x3(x, weight.flip(2).flip(2), None),
            expected.double() - bias.double()[:, None, None],
        )
        < 2e-5
    )


def test_changed_weights_take_effect() -> None:
    x, weight, _ = operands(SHAPES["tiles fit"])
    before = conv3x3(x, weight)
    weight.data.mul_(2.0)  # which leaves torch's own counter of changes as it was
    assert error(conv3x3(x, weight), 2.0 * before.double()) < 1e-6


def test_saves_nothing_but_the_weight() -> None:
    x, weight, bias = operands(SHAPES["tiles fit"])
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        conv3x3(x.requires_grad_(), weight, bias)
    assert [t.data_ptr() for t in kept] == [weight.data_ptr()]


def test_derivatives_of_all_orders() -> None:
    x, weight, bias = operands((1, 3, 2, 5, 4))
    x, weight, bias = x.double().requires_grad_(), weight.double(), bias.double()
    assert torch.autograd.gradcheck(lambda v: torch.ops.udp_fast.conv3x3(v, weight, bias), x)
    assert torch.autograd.gradgradcheck(lambda v: torch.ops.udp_fast.conv3x3(v, weight, bias), x)
    assert torch.autograd.gradgradcheck(lambda v: conv3x3(v, weight, bias).square(), x)


def test_opcheck() -> None:
    x, weight, bias = operands(SHAPES["tiles fit"])
    for v in (x, x.contiguous()):
        torch.library.opcheck(
            torch.ops.udp_fast.conv3x3, (v.clone().requires_grad_(), weight, bias)
        )
        torch.library.opcheck(
            torch.ops.udp_fast.conv3x3_dx,
            (torch.randn_like(conv3x3(v, weight)).requires_grad_(), weight),
        )


def test_compiles_to_one_graph() -> None:
    x, weight, bias = operands(SHAPES["tiles fit"])
    run = torch.compile(
        lambda v: conv3x3(v, weight, bias).square(), fullgraph=True, backend="aot_eager"
    )
    a, b = (x.clone().requires_grad_() for _ in range(2))
    (got,) = torch.autograd.grad(run(a).sum(), a)
    (expected,) = torch.autograd.grad(conv3x3(b, weight, bias).square().sum(), b)
    assert error(got, expected.double()) < 1e-6


def test_empty(backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UDP_FAST_BACKEND")
    weight = torch.randn(16, 16, 3, 3)
    assert conv3x3(torch.empty(0, 16, 8, 8), weight).shape == (0, 16, 8, 8)


def test_not_a_number_stays_in_its_image() -> None:
    x, weight, bias = operands(SHAPES["tiles fit"])
    clean = conv3x3(x, weight, bias)
    x[1, 3, 5, 5] = float("nan")
    y = conv3x3(x, weight, bias)
    assert torch.equal(y[0], clean[0])
    assert y[1, :, 4:7, 4:7].isnan().all()
    assert not y[1, :, 8:, 8:].isnan().any()


X, W = torch.ones(1, 4, 8, 8), torch.ones(6, 4, 3, 3)


@pytest.mark.parametrize(
    ("args", "error_type", "message"),
    [
        ((None, W), TypeError, "x: got NoneType, expected a tensor"),
        ((X[0], W), ValueError, "x: got shape [4, 8, 8], expected [B, C, H, W]"),
        ((X, W[:, :3]), ValueError, "weight: got shape [6, 3, 3, 3], expected [K, 4, 3, 3]"),
        ((X, W.double()), TypeError, "weight: got dtype float64, expected one of float32"),
        ((X, W, torch.ones(5)), ValueError, "bias: got shape [5], expected [6]"),
        ((X, W.clone().requires_grad_()), ValueError, "weight: requires grad"),
        ((X, W, torch.ones(6, requires_grad=True)), ValueError, "bias: requires grad"),
        ((X, W.to("meta")), ValueError, "weight: got a tensor on meta, expected cpu"),
    ],
    ids=["no tensor", "no batch", "channels", "dtype", "bias", "trains", "bias trains", "device"],
)
def test_errors(args: tuple[object, ...], error_type: type[Exception], message: str) -> None:
    with pytest.raises(error_type, match=re.escape(message)):
        conv3x3(*args)
