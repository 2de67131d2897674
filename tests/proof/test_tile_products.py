"""The gates of kernels of matrix products, on made-up machine code. They need no compiler."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.proof.form import Form, TileProducts, failures, pairs_cost
from benchmarks.proof.machine_code import Code

PRODUCT = TileProducts(pairs=4096, most=0.3)
FORM = Form(
    "Triton", "attention", "attention_dq", "64", threads=128, registers=255, shared=99 << 10,
    tiles=PRODUCT,
)  # fmt: skip
CODE = Code(
    registers=200, stack=0, shared=90_000, local=0, instructions=900, widths=(16,), products=192,
    loop={"HMMA.16816.F32.BF16": 96, "LDSM.16.M88.4": 56, "FFMA": 148},
)  # fmt: skip


def altered(**changes) -> Code:
    return dataclasses.replace(CODE, **changes)


def test_what_is_allowed_passes() -> None:
    assert failures(FORM, "80", CODE) == []
    assert pairs_cost(FORM, CODE) == 300 * 4 / 4096


@pytest.mark.parametrize(
    ("code", "architecture", "said"),
    [
        (altered(products=0, loop={"FFMA": 9}), "90", "no instruction of the tensor cores"),
        (altered(loop={"FFMA": 9}), "86", "no instruction of the tensor cores in the main loop"),
        (altered(loop={**CODE.loop, "FFMA": 160}), "80", "0.305 instructions a pair, at most 0.3"),
        (altered(local=2), "100", "spills: 2 accesses"),
        (altered(stack=8), "89", "a stack frame of 8 bytes"),
        (altered(shared=(99 << 10) + 1), "86", "101377 bytes of shared memory"),
    ],
    ids=["no tensor cores", "none in the loop", "too long", "a spill", "a stack", "shared memory"],
)
def test_what_is_not_is_caught(code: Code, architecture: str, said: str) -> None:
    assert any(said in text for text in failures(FORM, architecture, code))


def test_a_count_that_could_not_be_made_is_a_failure() -> None:
    found = failures(FORM, "80", altered(loop={}))
    assert any("none were found, at most 0.3 are allowed" in text for text in found)


def test_loops_of_sm_100_are_not_looked_for() -> None:
    """Waiting for its tensor cores is a loop of its own, within the main one."""
    assert failures(FORM, "100", altered(loop={})) == []


def test_what_a_warp_group_and_tensor_memory_do_counts_as_products() -> None:
    hopper = altered(loop={"HGMMA.64x64x16.F32.BF16": 8, "FFMA": 100})
    assert failures(FORM, "90", hopper) == []


def test_every_limit_is_of_a_variant_and_every_product_is_examined() -> None:
    pytest.importorskip("triton")
    from benchmarks.proof import triton

    variants = {v.name: v for v in triton.variants()}
    assert len(variants) == len(triton.variants())
    assert set(triton.PAIRS) <= set(variants)
    kernels = {v.kernel.__name__ for v in variants.values() if triton.form_of(v).tiles}
    assert kernels == {
        "attention_forward_kernel", "attention_few_keys_dq_kernel", "attention_dq_kernel",
        "attention_dkdv_kernel", "attention_wide_forward_kernel", "attention_wide_gradient_kernel",
    }  # fmt: skip
