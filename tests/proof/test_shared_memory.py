"""Each form may have as much shared memory as it has a use for, and not a byte more."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest

from benchmarks.proof import cuda
from benchmarks.proof.form import Form, failures
from benchmarks.proof.machine_code import Code

CODE = Code(registers=32, stack=0, shared=0, local=0, instructions=10, loop={}, widths=())


def check(form: Form, allowed: int) -> None:
    form = dataclasses.replace(form, stream=None)
    assert failures(form, "80", dataclasses.replace(CODE, shared=allowed)) == []
    (found,) = failures(form, "80", dataclasses.replace(CODE, shared=allowed + 1))
    assert found == f"{allowed + 1} bytes of shared memory, the limit is {allowed}"


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("q_sample-dense-bf16", 0),
        ("quantize-rgb-random-f32", 0),
        ("image_scale-dense-bf16@8", 0),
        ("geglu_backward-tokens-bf16", 0),
        ("normalise-channels-bf16", 0),
        ("denoising_loss-dense-epsilon-bf16", 32),  # a float64 of each warp
        ("pgd_step-dense-mixed@2", 16),
        ("mean-dense-epsilon-f32", 32),
        ("channel_moments-planes-bf16", 512),  # a float of each row
        ("gradient_sums-channels-bf16", 4096),  # of each thread and channel
        ("q_sample-ragged-bf16", 4096),  # the tile
        ("q_sample-ragged-bf16@8", 8192),
    ],
)
def test_of_a_triton_kernel(name: str, allowed: int) -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    from benchmarks.proof import triton

    (variant,) = (v for v in triton.variants() if v.name == name)
    check(triton.form_of(variant), allowed)


@pytest.mark.parametrize(
    ("kernel", "allowed"),
    [
        ("geglu_forward<udp::BFloat16, 8>(udp::Columns)", 0),
        ("step_images<float, float, float>(udp::Images)", 0),
        ("loss_of_images(double const*)", 32),
    ],
)
def test_of_a_cuda_kernel(kernel: str, allowed: int) -> None:
    check(cuda.form_of(f"void udp::(anonymous namespace)::{kernel}"), allowed)
