"""The gate of kernels that multiply matrices, on counts that can be checked by hand."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.proof import cuda, table
from benchmarks.proof.examine import Entry, Examination
from benchmarks.proof.form import (
    ONLY_DQ,
    Form,
    Fused,
    Products,
    failures,
    pair_cost,
    whole_backward,
)
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


@pytest.mark.parametrize("tensor", [1, 11, 13])
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


def test_products_of_larger_instructions_are_those_of_newer_architectures_only() -> None:
    """Of a group of warps, or of a block: fewer of them."""
    for instruction in ("HGMMA.64x64x16.F32.BF16", "UTCHMMA"):
        code = dataclasses.replace(CODE, loop={instruction: 2, "FFMA": 8})
        assert failures(FORM, "90", code) == []
        (found,) = failures(FORM, "86", code)
        assert "0 tensor-core instructions in the main loop, the products need 12" in found


def test_a_loop_without_products_is_caught() -> None:
    for products in (Products(None, None), Products(128, None), FORM.products):
        for architecture in ("80", "90", "100"):
            form = dataclasses.replace(FORM, products=products)
            found = failures(form, architecture, dataclasses.replace(CODE, loop={"FFMA": 9}))
            assert found == ["no instruction of the tensor cores in the main loop"]


def test_a_limit_needs_pairs() -> None:
    form = dataclasses.replace(FORM, products=Products(None, 12, limit=0.3))
    (found,) = failures(form, "80", CODE)
    assert "no instructions a pair of query and key, at most 0.3 are allowed" in found


@pytest.mark.parametrize("dim", [40, 64, 80, 128])
def test_both_languages_have_the_same_bars(dim: int) -> None:
    """Stated once: for dq alone, and for dq, dk and dv together."""
    pytest.importorskip("triton")
    from benchmarks.proof import triton

    theirs = [triton.form_of(v) for v in triton.variants()]
    name = "void udp::(anonymous namespace)::attention_{}<__nv_bfloat16, {}>(x)"
    by_language = {
        "CUDA": [cuda.form_of(name.format(kernel, dim)) for kernel in ("dq", "dkdv")],
        "Triton": [
            form
            for form in theirs
            if form.label == f"heads-{dim}-1024-bf16" and form.kernel.endswith(("_dq", "_dkdv"))
        ],
    }
    for forms in by_language.values():
        assert [form.kernel for form in forms] == ["attention_dq", "attention_dkdv"]
        limits = [form.products.limit for form in forms if form.products is not None]
        assert sum(limits) == pytest.approx(whole_backward(dim))
    alone = [
        cuda.form_of(name.format("dq_one_tile", f"{dim}, 80, 1")),
        *(form for form in theirs if form.label == f"heads-{dim}-77-bf16"),
    ]
    assert [form.kernel for form in alone] == ["attention_dq_one_tile", "attention_few_keys_dq"]
    for form in alone:
        assert form.products is not None
        assert (form.products.limit, form.products.keys) == (ONLY_DQ[dim], 80)


def test_pairs_are_those_that_are_computed() -> None:
    pytest.importorskip("triton")
    from benchmarks.proof import triton

    (variant,) = (
        v for v in triton.variants() if v.name == "attention_few_keys_dq-heads-64-77-bf16"
    )
    products = triton.form_of(variant).products
    assert products is not None
    rows = variant.constants["ROWS"] // variant.warps
    assert products.pairs == rows * 80
    # Three products over 64 columns, in instructions of 2048 multiply-adds.
    assert products.tensor == rows * 80 * 3 * 64 // 2048
    code = dataclasses.replace(CODE, loop={"HMMA.16816": products.tensor, "FFMA": rows})
    assert pair_cost(products, code) == (products.tensor + rows) / (rows * 80)


def test_every_kernel_of_products_is_examined() -> None:
    pytest.importorskip("triton")
    from benchmarks.proof import triton

    variants = triton.variants()
    assert {v.kernel.__name__ for v in variants if triton.form_of(v).products is not None} == {
        "attention_forward_kernel", "attention_few_keys_dq_kernel", "attention_dq_kernel",
        "attention_dkdv_kernel", "attention_wide_forward_kernel", "attention_wide_gradient_kernel",
    }  # fmt: skip


def test_the_table_says_which_pairs_it_counts_and_what_bounds_every_chip() -> None:
    """80 pairs for 77 keys are counted as 80; beside it stands the count over the 77."""
    form = dataclasses.replace(
        FORM, label="bf16 64 80 1", products=Products(pairs=128, tensor=12, limit=0.25, keys=80)
    )
    new = dataclasses.replace(CODE, loop={**LOOP, "HMMA.16816.F32.BF16": 0, "UTCHMMA": 3})
    codes = {"80": CODE, "89": CODE, "90": CODE, "100": new}
    found = Examination([Entry(form, a, code) for a, code in codes.items()])
    header, row = table.products(found)
    said = dict(zip(header, row, strict=True))
    assert said["instructions a pair, sm_80"] == said["at most"] == "0.250"
    assert said["over 77 keys"] == "0.260"
    assert all("(tensor " in said[chip.name] for chip in table.CHIPS)
