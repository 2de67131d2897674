"""Each op of the GPU backends on a GPU, against the definition on the CPU; `make gpu-check` runs them.

Large enough for whole grids and vector accesses, with a ragged end; what an op does in every corner
is for the emulator and the interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from udp_fast.backends.registry import Backend, backend
from udp_fast.ops import noise_key

SHAPES = ((4, 3, 256, 256), (3, 4, 64, 64), (1, 3, 255, 253))
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
REFERENCE = backend("reference")


def calls(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """(op, arguments in the schema's order) on the CPU."""
    torch.manual_seed(0)
    batch = shape[0]
    value, other = torch.randn(shape).to(dtype), torch.rand(shape).to(dtype)
    image = torch.randint(0, 256, shape, dtype=torch.uint8)
    key, t, table = noise_key(7, range(batch)), torch.arange(batch), torch.linspace(0.99, 0.1, 50)
    weight, alpha, eps = torch.rand(batch), torch.tensor(1 / 255), torch.tensor(8 / 255)
    delta = (value * 0.01).to(F32 if dtype == F32 else F16)
    unit = (0.0, 1.0)
    yield "q_sample", (value, t, table, None, key, "diffusion", True, dtype)
    yield "q_sample", (value, t, table, other, None, "flow", False, dtype)
    yield (
        "denoising_loss",
        (value, other, None, None, None, None, None, weight, "epsilon", True, 0.5),
    )
    for kind in ("epsilon", "v_prediction"):
        yield "denoising_loss", (value, None, other, t, table, None, key, None, kind, True, 0.5)
    scale, shift = torch.rand(shape[1]) + 0.5, torch.randn(shape[1])
    groups = 2 if shape[1] % 2 == 0 else 1
    for act in ("silu", None):
        yield "group_norm_silu", (value, scale, shift, groups, 1e-5, act)
        _, mean, rstd = REFERENCE.ops["group_norm_silu"](value, scale, shift, groups, 1e-5, act)
        needs = [True, False, False]  # sums over the batch have a scale of their own
        yield (
            "group_norm_silu_backward",
            (other, value, mean, rstd, scale, shift, groups, act, needs),
        )
    yield "image_scale", (value, weight)
    yield "image_scale_", (value, weight)
    tokens = 2.0 * torch.randn(64 * shape[0], 2 * shape[-1]).to(dtype)
    yield "geglu", (tokens,)
    yield "geglu_backward", (torch.randn(64 * shape[0], shape[-1]).to(dtype), tokens)
    yield "quantize", (delta, image, eps, None, "delta", *unit)
    yield "quantize", (delta, image, eps, key, "delta", *unit)
    for step, norm in (("sign", "linf"), ("l2", "l2")):
        yield (
            "pgd_step_",
            (delta, value, image, alpha, eps, None, step, norm, True, *unit, *unit, dtype),
        )


def on(device: str, argument: Any) -> Any:
    """A copy there; one number for all images stays on the CPU, as callers leave it."""
    if not isinstance(argument, Tensor):
        return argument
    return argument.to(device, copy=True) if argument.dim() else argument.clone()


def results(ops: Backend, device: str, op: str, arguments: tuple[Any, ...]) -> list[Tensor]:
    mine = [on(device, a) for a in arguments]
    found = ops.ops[op](*mine)
    outputs = [] if found is None else list(found) if isinstance(found, tuple) else [found]
    return [o.cpu() for o in ([mine[0], *outputs] if op.endswith("_") else outputs)]


def agree(got: Tensor, want: Tensor) -> None:
    """Within one rounding of 16-bit dtypes; bytes that a normal's last bit moved, one level off."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    if not want.is_floating_point():
        assert (got.int() - want.int()).abs().max() <= 1
        assert (got != want).double().mean() <= 1e-4
        return
    relative = {F32: 2e-6, F16: 2**-10, BF16: 2**-7}[want.dtype]
    torch.testing.assert_close(got, want, rtol=relative, atol=2e-6)


def check(name: str, device: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for op, arguments in calls(shape, dtype):
        if device == "cpu" and backend(name).not_supported_reasons(op, arguments):
            continue  # geglu in 16 bits, which the CPU kernels leave to the definition
        got = results(backend(name), device, op, arguments)
        want = results(REFERENCE, "cpu", op, arguments)
        assert len(got) == len(want)
        for mine, its in zip(got, want, strict=True):
            if its.numel():
                agree(mine, its)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_ops_agree_with_the_definition(
    name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    if backend(name).missing:
        pytest.skip(f"{name}: {backend(name).missing}")
    check(name, "cuda", shape, dtype)


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
def test_the_comparison_holds_for_the_cpu_kernels(dtype: torch.dtype) -> None:
    """So that what a GPU is asked for is known to be right where there is none."""
    if backend("cpu").missing:
        pytest.skip(backend("cpu").missing)
    check("cpu", "cpu", SHAPES[2], dtype)


def test_the_comparison_notices_a_difference() -> None:
    with pytest.raises(AssertionError):
        agree(torch.ones(10), torch.ones(10) + 1e-5)
    with pytest.raises(AssertionError):
        agree(torch.zeros(10, dtype=torch.uint8), torch.ones(10, dtype=torch.uint8))
