"""The count behind the predicted limiter, on numbers that can be checked by hand."""

from __future__ import annotations

import pytest

from benchmarks.proof.chips import (
    ARCHITECTURES,
    CHIPS,
    MULTIPROCESSORS,
    by_class,
    class_of,
    occupancy,
    predict,
)
from benchmarks.proof.examine import Entry, _needless, _unexpected_limiters
from benchmarks.proof.expected import EXPECTED
from benchmarks.proof.form import Form, Stream
from benchmarks.proof.machine_code import Code
from udp_fast.backends.triton.variants import ARCHS

H100 = next(chip for chip in CHIPS if chip.name == "H100")


def test_a_copy_is_bound_by_memory() -> None:
    found = predict(H100, {"LDG.E.128": 1, "STG.E.128": 1, "BRA": 1}, elements=8, bytes_each=4)
    assert found.limiter == "memory"
    assert found.share == 1


def test_an_h100_has_room_for_forty_instructions_in_four_bytes() -> None:
    """3350 GB/s by 132 multiprocessors at 1.98 GHz are 12.8 bytes a clock: 4 bytes in 0.312."""
    room = 0.312 * 128
    few = predict(H100, {"MOV": 1}, elements=1 / (room - 1), bytes_each=4)
    many = predict(H100, {"MOV": 1}, elements=1 / (room + 1), bytes_each=4)
    assert (few.limiter, many.limiter) == ("memory", "issue")


@pytest.mark.parametrize(
    ("opcode", "limiter"),
    [
        ("MUFU.RSQ", "special"),
        ("DFMA", "float64"),
        ("LOP3.LUT", "integer"),
        ("FSETP.GT.AND", "integer"),
        ("IMAD.WIDE.U32", "multiply"),
        ("HMMA.16816.F32.BF16", "tensor"),
        ("LDS.128", "shared"),
        ("F2FP.BF16.F32.PACK_AB", "integer"),
        ("HADD2.F32", "multiply"),
    ],
)
def test_many_of_a_kind_are_bound_by_its_unit(opcode: str, limiter: str) -> None:
    assert predict(H100, {opcode: 1000}, elements=8, bytes_each=4).limiter == limiter


def test_larger_instructions_of_tensor_cores_take_longer() -> None:
    """64 x 64 x 16 multiply-adds of four warps are those of eight HMMA.16816 of each."""
    large = predict(H100, {"HGMMA.64x64x16.F32.BF16": 3}, elements=8, bytes_each=4)
    small = predict(H100, {"HMMA.16816.F32.BF16": 24}, elements=8, bytes_each=4)
    assert large.clocks["tensor"] == small.clocks["tensor"]
    assert large.clocks["issue"] < small.clocks["issue"]


def test_those_that_do_not_show_their_size_are_what_the_products_need() -> None:
    """At twice the rate, which is that of a B200's own."""
    b200 = next(chip for chip in CHIPS if chip.name == "B200")
    found = predict(b200, {"UTCHMMA": 4}, elements=8, bytes_each=4, products=96)
    assert found.clocks["tensor"] == 96 / 8 / 64
    assert "tensor" not in predict(b200, {"UTCHMMA": 4}, elements=8, bytes_each=4).clocks


def test_packing_takes_as_long_as_two_comparisons() -> None:
    pack = predict(H100, {"F2FP.BF16.F32.PACK_AB": 8}, elements=8, bytes_each=4)
    compare = predict(H100, {"FSETP.GT.AND": 16}, elements=8, bytes_each=4)
    assert pack.clocks["integer"] == compare.clocks["integer"] == 1 / 32


@pytest.mark.parametrize(
    ("name", "teraflops"), [("A100", 19.5), ("RTX 4090", 82.6), ("H100", 66.9), ("B200", 74.4)]
)
def test_clocks_and_multiprocessors_amount_to_the_stated_peak(name: str, teraflops: float) -> None:
    chip = next(chip for chip in CHIPS if chip.name == name)
    rate = MULTIPROCESSORS[chip.architecture].rates["float"]
    peak = 2 * rate * chip.multiprocessors * chip.gigahertz / 1e3
    assert peak == pytest.approx(teraflops, abs=0.05)


def test_a_geforce_has_few_float64_units() -> None:
    ada = next(chip for chip in CHIPS if chip.name == "RTX 4090")
    loop = {"LDG.E.128": 1, "DFMA": 16}
    assert predict(ada, loop, elements=8, bytes_each=2).limiter == "float64"
    assert predict(H100, loop, elements=8, bytes_each=2).limiter == "memory"


def entry(opcode: str, n: int, draws: bool = False, architecture: str = "90") -> Entry:
    """A kernel that reads and writes 2 bytes an element, eight of them a turn."""
    stream = Stream(loads=((2,),), stores=((2,),), group=8, run=8)
    form = Form("CUDA", "op", "kernel", "bf16", 128, 64, stream=stream, draws=draws)
    loop = {"LDG.E.128": 1, "STG.E.128": 1, opcode: n}
    return Entry(form, architecture, Code(32, 0, 0, 0, 100, loop, widths=(16,)))


def test_a_streaming_kernel_that_is_not_bound_by_memory_is_a_failure() -> None:
    assert list(_unexpected_limiters([entry("FFMA", 80)])) == []
    (found,) = _unexpected_limiters([entry("MUFU.LG2", 80)])
    assert found == "CUDA kernel bf16, sm_90: bound by special on H100, 200% of memory's time"


def test_what_is_expected_may_not_get_worse() -> None:
    assert list(_unexpected_limiters([entry("FFMA", 240, True, "100")])) == []
    assert list(_unexpected_limiters([entry("FFMA", 240, False, "100")])) != []
    assert list(_unexpected_limiters([entry("FFMA", 480, True, "100")])) != []


def test_an_expectation_that_nothing_needs_is_a_failure() -> None:
    assert len(_needless([])) == sum(len(e.most) for e in EXPECTED)


def test_classes() -> None:
    found = by_class({"FFMA": 2, "IMAD.MOV.U32": 3, "UIADD3": 1, "BSYNC.RECONVERGENT": 1})
    assert found == {"float": 2, "integer": 3, "other": 1, "control": 1}
    assert class_of("LDGSTS.E.BYPASS.128") == "global"


@pytest.mark.parametrize(
    ("architecture", "registers", "shared", "expected"),
    [
        ("80", 32, 0, 1.0),
        ("90", 64, 0, 0.5),  # 65536 registers for 64 × 128 threads' blocks of 8192
        ("90", 65, 0, 7 / 16),  # handed out in steps of 8
        ("86", 32, 0, 1.0),  # 48 warps by 12 blocks
        ("86", 32, 24 << 10, 4 / 12),  # 100 KB hold four blocks of 24 + 1
    ],
)
def test_occupancy(architecture: str, registers: int, shared: int, expected: float) -> None:
    assert occupancy(architecture, 128, registers, shared) == pytest.approx(expected)


def test_both_languages_are_examined_for_the_same_architectures() -> None:
    from benchmarks.proof import cuda

    assert tuple(map(str, ARCHS)) == ARCHITECTURES == cuda.load_build().ARCHITECTURES


@pytest.mark.parametrize(
    ("opcode", "clocks"),
    [("LDSM.16.M88.4", 4), ("LDSM.16.MT88.2", 2), ("LDS.128", 4), ("STS.64", 2), ("LDS", 1)],
)
def test_wide_accesses_of_shared_memory_take_a_pass_for_128_bytes(opcode: str, clocks: int) -> None:
    found = predict(H100, {opcode: 1}, elements=1, bytes_each=0)
    assert found.limiter == "shared"
    assert found.clocks["shared"] == clocks / 32
