"""geglu on every backend: the definition, extremes, gradients, what is saved."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from udp_fast.backends.registry import backend
from udp_fast.ops import geglu


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """The same numbers on every device, on the one where tensors are made."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), device="cpu")
    return values.to(torch.empty(0).device)


def definition(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, -1)
    return value * F.gelu(gate)


@pytest.mark.parametrize("shape", [(6,), (3, 32), (2, 5, 74), (1, 1, 2), (0, 8), (3, 0)], ids=str)
def test_is_the_definition(backend_name: str, shape: tuple[int, ...]) -> None:
    x = 2.0 * drawn(*shape)
    x.requires_grad_()
    double = x.detach().double().requires_grad_()
    y, exact = geglu(x), definition(double)
    assert y.shape == exact.shape
    dy = drawn(*y.shape, seed=1)
    (dx,) = torch.autograd.grad(y, x, dy)
    (exact_dx,) = torch.autograd.grad(exact, double, dy.double())
    assert torch.allclose(y.double(), exact, rtol=2e-6, atol=2e-6)
    assert torch.allclose(dx.double(), exact_dx, rtol=2e-6, atol=2e-6)
    sure = exact_dx.abs() > 1e-5
    assert torch.equal(dx.sign()[sure].double(), exact_dx.sign()[sure])


def test_far_gates(backend_name: str) -> None:
    gate = torch.linspace(-12, 12, 4801)
    x = torch.cat([torch.ones_like(gate), gate])
    exact = gate.double() * 0.5 * torch.erfc(-gate.double() / math.sqrt(2.0))
    got = geglu(x).double()
    inside = gate.abs() <= 9
    # Small values to a relative error: what a far gate lets through still has its sign.
    relative = ((got - exact).abs() / exact.abs().clamp(min=1e-30))[inside & (gate != 0)]
    assert relative.max() < 1e-5
    assert (got - exact).abs().max() < 2e-6


def test_not_a_number_stays_where_it_is(backend_name: str) -> None:
    x = drawn(4, 40)
    clean = geglu(x)
    x[1, 3], x[2, 25] = math.nan, math.nan
    y = geglu(x)
    broken = torch.zeros_like(y, dtype=torch.bool)
    broken[1, 3] = broken[2, 5] = True
    assert torch.equal(y.isnan(), broken)
    assert torch.equal(y[~broken], clean[~broken])
    x = torch.tensor([2.0, 3.0, math.inf, 0.0])
    assert geglu(x).tolist() == [math.inf, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(
    backend_name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, dy = drawn(64, 64).to(dtype), drawn(64, 32, seed=1).to(dtype)
    if backend(backend_name).not_supported_reasons("geglu", (x,)):
        monkeypatch.delenv("UDP_FAST_BACKEND")  # another takes it
    x.requires_grad_()
    y, exact = geglu(x), x.detach().double().requires_grad_()
    (dx,) = torch.autograd.grad(y, x, dy)
    exact_y = definition(exact)
    (exact_dx,) = torch.autograd.grad(exact_y, exact, dy.double())
    for got, wanted in ((y, exact_y), (dx, exact_dx)):
        assert got.dtype == dtype
        # Half a place of the result, and what float32 loses where two terms cancel.
        half = torch.finfo(dtype).eps / 2
        assert torch.allclose(got.double(), wanted, rtol=1.01 * half, atol=1e-6)


def test_strides(backend_name: str) -> None:
    x = drawn(6, 5, 32)
    assert torch.equal(geglu(x.transpose(0, 1)), geglu(x.transpose(0, 1).contiguous()))


@pytest.mark.skipif(bool(backend("cpu").missing), reason=f"cpu: {backend('cpu').missing}")
@pytest.mark.parametrize(("columns", "first"), [(1280, 0), (1280, 3), (1290, 0)])
def test_large_results_are_those_of_pieces(
    columns: int, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may go past the caches, where whole lines of them are written, and small ones do not."""
    monkeypatch.setenv("UDP_FAST_BACKEND", "cpu")
    rows = 2100  # 10 MB and twice as many
    x = torch.randn(rows * 2 * columns + first)[first:].view(rows, 2 * columns).requires_grad_()
    y = geglu(x)
    dy = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, dy)
    for piece, of_y, of_dy, of_dx in zip(*(t.split(300) for t in (x, y, dy, dx)), strict=True):
        alone = piece.detach().requires_grad_()
        again = geglu(alone)
        assert torch.equal(again, of_y)
        assert torch.equal(torch.autograd.grad(again, alone, of_dy)[0], of_dx)


def test_saves_its_input_alone() -> None:
    x = torch.randn(4, 32, requires_grad=True)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        geglu(x)
    assert [t.data_ptr() for t in kept] == [x.data_ptr()]


def test_opcheck() -> None:
    x = torch.randn(3, 16, requires_grad=True)
    torch.library.opcheck(torch.ops.udp_fast.geglu, (x,))
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        torch.ops.udp_fast.geglu_backward, (torch.randn(3, 8), x.detach()), test_utils=tests
    )
    assert torch.autograd.gradcheck(geglu, torch.randn(2, 6).double().requires_grad_())


def test_second_derivative_is_refused() -> None:
    x = torch.randn(3, 16, requires_grad=True)
    (dx,) = torch.autograd.grad(geglu(x).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        dx.sum().backward()


def test_compiles_to_one_graph() -> None:
    x = torch.randn(4, 32)
    run = torch.compile(lambda v: geglu(v).square(), fullgraph=True, backend="aot_eager")
    a, b = (x.clone().requires_grad_() for _ in range(2))
    (got,) = torch.autograd.grad(run(a).sum(), a)
    (expected,) = torch.autograd.grad(geglu(b).square().sum(), b)
    assert torch.allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "error_type", "message"),
    [
        (3, TypeError, "x: got int, expected a tensor"),
        (torch.ones(3), ValueError, "x: got shape [3], expected [..., 2D]"),
        (torch.tensor(1.0), ValueError, "x: got shape [], expected [..., 2D]"),
        (torch.ones(4, dtype=torch.int32), TypeError, "x: got dtype int32"),
    ],
    ids=["no tensor", "odd", "no dimension", "integers"],
)
def test_errors(x: object, error_type: type[Exception], message: str) -> None:
    with pytest.raises(error_type, match=re.escape(message)):
        geglu(x)  # type: ignore[arg-type]
