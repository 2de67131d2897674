"""The GPU backends on a GPU, against the CPU backend. Skipped where there is none.

Updates, bytes and Philox's integers must agree bit for bit, normals within 1e-6 (a GPU's square root
may be off by a unit in the last place), losses within 1e-6 relative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from udp_fast.backends.registry import backend
from udp_fast.ops import (
    denoising_loss,
    group_norm_silu,
    image_scale,
    noise_key,
    pgd_step_,
    q_sample,
    quantize,
)
from udp_fast.ops.pgd_step_multi import pgd_step_multi_

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

DEVICE = "cuda"
SHAPES = ((3, 3, 64, 48), (2, 4, 33, 17), (1, 3, 511, 513))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FORMATS = (torch.contiguous_format, torch.channels_last)
TABLE = torch.linspace(0.9999, 0.01, 1000)


@pytest.fixture(params=["cuda", "triton"], autouse=True)
def gpu_backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if backend(name).missing:
        pytest.skip(f"{name}: {backend(name).missing}")
    return name


@pytest.fixture
def both(gpu_backend: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """call(place) on the GPU and on the CPU; place moves a copy of a tensor there."""

    def run(call: Callable[..., Any]) -> tuple[Any, Any]:
        def to(device: str) -> Callable[[Tensor], Tensor]:
            return lambda tensor: tensor.clone().to(device)

        monkeypatch.setenv("UDP_FAST_BACKEND", gpu_backend)
        on_gpu = [r.cpu() for r in call(to(DEVICE))]
        monkeypatch.setenv("UDP_FAST_BACKEND", "cpu")
        return on_gpu, list(call(to("cpu")))

    return run


def values(shape: tuple[int, ...], seed: int, dtype: torch.dtype, layout: Any) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(dtype).contiguous(memory_format=layout)


def pixels(shape: tuple[int, ...], layout: Any) -> Tensor:
    drawn = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(9))
    return drawn.to(torch.uint8).contiguous(memory_format=layout)


def operands(test: Any) -> Any:
    """Every shape, dtype and memory format."""
    for name, choices in (("shape", SHAPES), ("dtype", DTYPES), ("layout", FORMATS)):
        test = pytest.mark.parametrize(name, choices, ids=str)(test)
    return test


@operands
@pytest.mark.parametrize("step", ["sign", "raw"])
@pytest.mark.parametrize("bytes_", [False, True])
def test_pgd_step(both, shape, dtype, layout, step, bytes_):
    delta, grad = values(shape, 1, dtype, layout) * 0.02, values(shape, 2, dtype, layout)
    grad[0, 0, 0, :3] = torch.tensor([torch.nan, torch.inf, 0.0])
    x = pixels(shape, layout)
    x = x if bytes_ else x.float() / 255

    def call(to: Callable[[Tensor], Tensor]) -> list[Tensor]:
        own = to(delta)
        settings = {"alpha": 2 / 255, "eps": 8 / 255, "step": step, "out_range": (-1.0, 1.0)}
        adv, skipped = pgd_step_(own, to(grad), to(x), **settings, out_dtype=dtype)
        return [own, adv, skipped]

    for got, expected in zip(*both(call), strict=True):
        assert torch.equal(got, expected)


@operands
def test_q_sample(both, shape, dtype, layout):
    x = values(shape, 3, dtype, layout)
    key, t = noise_key(5, range(shape[0])), torch.arange(shape[0]) * 100 + 7

    def call(to: Callable[[Tensor], Tensor]) -> list[Tensor]:
        return [q_sample(to(x), to(t), to(TABLE), key=to(key))]

    (got,), (expected,) = both(call)
    # Beyond the normals' 1e-6: the last place of a 16-bit result may round the other way.
    spacing = torch.finfo(dtype).eps if dtype != torch.float32 else 0.0
    torch.testing.assert_close(got, expected, rtol=spacing, atol=2e-6)


@operands
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
def test_denoising_loss(both, shape, dtype, layout, kind):
    pred, x = values(shape, 4, dtype, layout), values(shape, 5, dtype, layout)
    key, t = noise_key(5, range(shape[0])), torch.arange(shape[0]) * 100 + 7
    weight = torch.linspace(0.5, 1.5, shape[0])

    def call(to: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaf = to(pred).requires_grad_()
        given: dict[str, Any] = {} if kind == "epsilon" else {"x": to(x)}
        if kind == "v_prediction":
            given |= {"t": to(t), "alphas_cumprod": to(TABLE)}
        if kind != "sample":
            given["key"] = to(key)
        loss = denoising_loss(leaf, weight=to(weight), prediction_type=kind, **given)
        loss.backward()
        assert leaf.grad is not None
        return [loss.detach(), leaf.grad]

    (loss, grad), (expected_loss, expected_grad) = both(call)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    scale = float(expected_grad.abs().max())
    spacing = torch.finfo(dtype).eps
    torch.testing.assert_close(grad, expected_grad, rtol=2 * spacing, atol=2e-6 * scale)
    clear = expected_grad.abs() > 4e-6 * scale
    assert torch.equal(grad.sign()[clear], expected_grad.sign()[clear])


#: Features between layers, with one image and with few pixels; channels of no whole vectors.
FEATURES = (((1, 320, 64, 64), 32), ((2, 1280, 8, 8), 32), ((2, 36, 33, 17), 3), ((8, 64), 8))


@pytest.mark.parametrize("act", ["silu", None])
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "groups"), FEATURES, ids=str)
def test_group_norm_silu(both, shape, groups, dtype, layout, act):
    if len(shape) != 4:
        layout = torch.contiguous_format
    x, grad = values(shape, 1, dtype, layout) + 0.5, values(shape, 2, dtype, layout)
    weight = values(shape[1:2], 3, torch.float32, torch.contiguous_format) + 0.5
    bias = values(shape[1:2], 4, torch.float32, torch.contiguous_format)

    def call(to: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaves = [to(v).requires_grad_() for v in (x, weight, bias)]
        y = group_norm_silu(*leaves, num_groups=groups, act=act)
        y.backward(to(grad))
        grads = [leaf.grad for leaf in leaves]
        assert all(g is not None for g in grads)
        return [y.detach(), *grads]

    for got, expected in zip(*both(call), strict=True):
        scale = float(expected.abs().max())
        spacing = torch.finfo(dtype).eps if got.dtype != torch.float32 else 1e-6
        torch.testing.assert_close(got, expected, rtol=spacing, atol=2e-6 * scale)
        clear = expected.abs() > 4e-6 * scale
        assert torch.equal(got.sign()[clear], expected.sign()[clear])


@operands
@pytest.mark.parametrize("stochastic", [False, True])
def test_quantize(both, shape, dtype, layout, stochastic):
    delta, original = values(shape, 6, dtype, layout) * 0.02, pixels(shape, layout)
    key = noise_key(3, range(shape[0]))

    def call(to: Callable[[Tensor], Tensor]) -> list[Tensor]:
        return [quantize(to(delta), to(original), eps=8 / 255, key=to(key) if stochastic else None)]

    (got,), (expected,) = both(call)
    assert torch.equal(got, expected)


@operands
def test_image_scale(both, shape, dtype, layout):
    x, scale = values(shape, 7, dtype, layout), torch.linspace(0.1, 3, shape[0])
    (got,), (expected,) = both(lambda to: [image_scale(to(x), to(scale))])
    assert torch.equal(got, expected)


def test_pgd_step_multi(both):
    shapes = [(3, 17, 31), (3, 64, 64), (3, 129, 65)] * 30  # more than one launch holds
    deltas = [
        values(s, i, torch.float32, torch.contiguous_format) * 0.02 for i, s in enumerate(shapes)
    ]
    grads = [
        values(s, i + 99, torch.bfloat16, torch.contiguous_format) for i, s in enumerate(shapes)
    ]
    xs = [pixels(s, torch.contiguous_format) for s in shapes]

    def call(to: Callable[[Tensor], Tensor]) -> list[Tensor]:
        own = [to(d) for d in deltas]
        result = pgd_step_multi_(
            own, [to(g) for g in grads], [to(x) for x in xs], alpha=2 / 255, eps=8 / 255
        )
        return [*own, *result.advs, result.skipped]

    for got, expected in zip(*both(call), strict=True):
        assert torch.equal(got, expected)


def step_arguments() -> tuple[Tensor, Tensor, Tensor]:
    shape = (2, 3, 64, 64)
    delta = torch.zeros(shape, device=DEVICE)
    return delta, torch.randn(shape, device=DEVICE), torch.rand(shape, device=DEVICE)


def test_a_step_waits_for_nothing(gpu_backend, monkeypatch):
    monkeypatch.setenv("UDP_FAST_BACKEND", gpu_backend)
    delta, grad, x = step_arguments()
    pgd_step_(delta, grad, x, alpha=2 / 255, eps=8 / 255)  # whatever the first call compiles
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        pgd_step_(delta, grad, x, alpha=2 / 255, eps=8 / 255)
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_a_step_in_a_cuda_graph(gpu_backend, monkeypatch):
    monkeypatch.setenv("UDP_FAST_BACKEND", gpu_backend)
    delta, grad, x = step_arguments()
    pgd_step_(delta, grad, x, alpha=2 / 255, eps=8 / 255)
    torch.cuda.synchronize()
    expected = delta.clone()
    for _ in range(3):
        pgd_step_(expected, grad, x, alpha=2 / 255, eps=8 / 255)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # records, and runs nothing
        pgd_step_(delta, grad, x, alpha=2 / 255, eps=8 / 255)
    for _ in range(3):
        graph.replay()
    assert torch.equal(delta, expected)


def test_a_step_on_a_stream_of_the_callers(gpu_backend, monkeypatch):
    monkeypatch.setenv("UDP_FAST_BACKEND", gpu_backend)
    delta, grad, x = step_arguments()
    expected = delta.clone()
    pgd_step_(expected, grad, x, alpha=2 / 255, eps=8 / 255)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = grad * 0
        torch.cuda._sleep(10_000_000)  # a launch on another stream would read the zeros
        late += grad
        pgd_step_(delta, late, x, alpha=2 / 255, eps=8 / 255)
    stream.synchronize()
    assert torch.equal(delta, expected)
