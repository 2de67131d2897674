"""The gate of kernels that multiply matrices, on counts that can be checked by hand."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.proof import cuda
from benchmarks.proof.form import FLASH_ATTENTION_2, Form, Fused, Products, failures
from benchmarks.proof.machine_code import Code

#: 16 queries by 8 keys at head dim 64: S, dP and dS k, and what else a pair needs.
LOOP = {"HMMA.16816.F32.BF16": 12, "LDSM.16.M88.4": 4, "MUFU.EX2": 4, "FFMA": 8, "LDG.E.128": 4}
CODE = Code(registers=200, stack=0, shared=0, local=0, instructions=99, loop=LOOP, widths=(16,))
FORM = Form(
    "CUDA", "op", "kernel", "bf16 64", threads=128, registers=255,
    products=Products(pairs=128, tensor=12, limit=0.25), dynamic=64 << 10,
)  # fmt: skip


def changed(**loop: int) -> Code:
    return dataclasses.replace(CODE, loop=LOOP | {k.replace("_", "."): n for k, n in loop.items()})


def test_what_is_within_its_limits_passes() -> None:
    assert CODE.turn / 128 == 0.25
    assert failures(FORM, "80", CODE) == []


def test_one_instruction_too_many_is_caught_on_sm_80() -> None:
    (found,) = failures(FORM, "80", changed(MOV=1))
    assert "0.2578 instructions a pair of query and key, at most 0.25 are allowed" in found
    assert failures(FORM, "90", changed(MOV=1)) == []


@pytest.mark.parametrize("tensor", [0, 11, 13])
def test_products_that_are_missing_or_done_twice_are_caught(tensor: int) -> None:
    (found,) = failures(FORM, "90", changed(HMMA_16816_F32_BF16=tensor))
    assert f"{tensor} tensor-core instructions in the main loop, the products need 12" in found


def test_products_that_others_do_may_be_left_out() -> None:
    products = Products(pairs=128, tensor=12, limit=0.25, alike=1)
    form = dataclasses.replace(FORM, products=products)
    assert failures(form, "90", changed(HMMA_16816_F32_BF16=11)) == []
    assert failures(form, "90", changed(HMMA_16816_F32_BF16=10)) != []


def test_products_in_other_loops_are_counted() -> None:
    products = Products(pairs=128, tensor=12, limit=None, whole=28)
    form = dataclasses.replace(FORM, products=products)
    assert failures(form, "80", dataclasses.replace(CODE, products=28)) == []
    (found,) = failures(form, "80", dataclasses.replace(CODE, products=24))
    assert "24 tensor-core instructions in all, the products need 28" in found


#: Eight rows by four columns, 16 terms each.
FUSED = dataclasses.replace(CODE, loop={"FFMA": 512, "LDS.128": 48, "IADD3": 40})
IN_FLOAT = dataclasses.replace(FORM, products=None, fused=Fused(512, share=0.75))


def test_fused_products_pass() -> None:
    assert failures(IN_FLOAT, "80", FUSED) == []


@pytest.mark.parametrize("fma", [384, 511, 1024])
def test_fused_products_that_are_missing_or_done_twice_are_caught(fma: int) -> None:
    code = dataclasses.replace(FUSED, loop=FUSED.loop | {"FFMA": fma})
    (found,) = failures(IN_FLOAT, "100", code)
    assert found == f"{fma} fused multiply-adds in the main loop, the product needs 512"


def test_a_loop_that_hardly_multiplies_is_caught() -> None:
    code = dataclasses.replace(FUSED, loop=FUSED.loop | {"LDS": 200})
    (found,) = failures(IN_FLOAT, "86", code)
    assert found == "512 of 800 instructions of the main loop multiply, at least 75% are demanded"


def test_more_shared_memory_than_a_block_has_is_caught() -> None:
    (found,) = failures(dataclasses.replace(FORM, dynamic=100 << 10), "80", CODE)
    assert "at launch 102400 bytes of shared memory, a block has 101376" in found


def test_local_memory_is_caught() -> None:
    (found,) = failures(FORM, "80", dataclasses.replace(CODE, local=1))
    assert found.startswith("spills")


@pytest.mark.parametrize("dim", [64, 128])
def test_the_two_kernels_together_stay_below_flash_attention(dim: int) -> None:
    forms = [
        cuda.form_of(
            f"void udp::(anonymous namespace)::attention_{kernel}<__nv_bfloat16, {dim}>(x)"
        )
        for kernel in ("dq", "dkdv")
    ]
    limits = [form.products.limit for form in forms if form.products is not None]
    assert sum(limit for limit in limits if limit is not None) == pytest.approx(
        FLASH_ATTENTION_2[dim]
    )
