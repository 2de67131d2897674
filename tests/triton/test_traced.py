"""torch.compile sees the kernels: traced on fake CUDA tensors, without a GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import udp_fast.backends.triton as package
from udp_fast.backends.triton import trace

OPS = torch.ops.udp_fast
BF16, F32 = torch.bfloat16, torch.float32


class Driver:
    """What torch asks of Triton's driver to find out which arguments a kernel writes."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but a GPU."""
    import udp_fast.ops  # noqa: F401 - defines the ops

    if package.INTERPRETS:
        pytest.skip("kernels are interpreted, not compiled")
    trace.install()
    monkeypatch.setattr(trace, "BACKEND", dataclasses.replace(package.BACKEND, missing=""))
    monkeypatch.setattr(package, "_too_old", lambda device: "")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(driver, "_active", Driver())


def protection_step(x, t, table, key, delta, grad, original, budget):
    x_t, _ = OPS.q_sample(x, t, table, None, key, "diffusion", False, BF16)
    given = (None, None, None, None, None, key, None)
    loss, dpred = OPS.denoising_loss(x_t, *given, "epsilon", True, 1.0)
    bounds = (0.0, 1.0, -1.0, 1.0)
    step = (grad, original, budget, budget, None, "sign", "linf", True, *bounds, BF16)
    adv, skipped = OPS.pgd_step_(delta, *step)
    new_delta, _, _ = OPS.pgd_step(delta, *step)
    written = OPS.quantize(new_delta, original, budget, None, "delta", 0.0, 1.0)
    return loss, OPS.image_scale(dpred, budget), adv, skipped, written


def arguments(device: str):
    image = (2, 3, 64, 64)
    shapes = {
        "x": (image, BF16),
        "t": ((2,), torch.int64),
        "table": ((1000,), F32),
        "key": ((2, 3), torch.int64),
        "delta": (image, torch.float16),
        "grad": (image, BF16),
        "original": (image, torch.uint8),
        "budget": ((2,), F32),
    }
    return [torch.empty(s, dtype=dtype, device=device) for s, dtype in shapes.values()]


def test_kernels_are_in_the_graph(gpu):
    with FakeTensorMode():
        traced = make_fx(dispatch_functionalize(protection_step))(*arguments("cuda"))
    called = [str(node.target) for node in traced.graph.nodes if node.op == "call_function"]
    # One each, and a second stage for the loss and for each of the two steps.
    assert called.count("triton_kernel_wrapper_functional") == 9
    assert not any(name.startswith("udp_fast") for name in called)


def test_a_call_that_triton_does_not_serve_stays_an_op(gpu):
    with FakeTensorMode():
        traced = make_fx(dispatch_functionalize(protection_step))(*arguments("cpu"))
    called = [str(node.target) for node in traced.graph.nodes if node.op == "call_function"]
    assert any(name.startswith("udp_fast") for name in called)
    assert "triton_kernel_wrapper_functional" not in called
