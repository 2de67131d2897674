"""Nothing may be left out: no kernel without a gate, no gate without a kernel, no op without either."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.proof import cuda
from benchmarks.proof.examine import Entry, Examination, _read_cuda, uncovered
from benchmarks.proof.machine_code import Code
from udp_fast.backends.cuda import BACKEND

CODE = Code(registers=32, stack=0, shared=0, local=0, instructions=10, loop={}, widths=())
SAMPLE = (
    "void udp::for_groups<udp::Flat<16>, udp::(anonymous namespace)::Sample<udp::Flat<16>,"
    " udp::BFloat16, udp::BFloat16, true, 0> >(udp::Walk, udp::(anonymous namespace)::Sample<"
    "udp::Flat<16>, udp::BFloat16, udp::BFloat16, true, 0>)"
)


def test_a_kernel_is_known_by_its_template_arguments() -> None:
    form = cuda.form_of(SAMPLE)
    assert (form.op, form.kernel) == ("q_sample", "Sample")
    assert form.label == "Flat<16> bf16 bf16 true 0"
    assert form.draws
    assert form.instructions == 35
    assert form.registers == 64
    assert form.stream is not None
    assert form.stream.accesses((2,), (2,)) == {("load", 16): 2, ("store", 16): 2}


@pytest.mark.parametrize("layout", ["Interleaved<3>", "Interleaved<4>"])
def test_a_limit_of_instructions_holds_in_every_layout(layout: str) -> None:
    form = cuda.form_of(SAMPLE.replace("Flat<16>", layout))
    assert form.stream is not None
    assert form.instructions == 35


def test_types_known_at_run_time_give_every_combination_and_fewer_blocks() -> None:
    form = cuda.form_of(SAMPLE.replace("BFloat16", "Any<false>"))
    assert form.stream is not None
    assert set(form.stream.choices) == {((a,), (b,)) for a in (2, 4) for b in (2, 4)}
    assert form.registers == 96


@pytest.mark.parametrize(
    "kernel",
    [
        "void udp::(anonymous namespace)::forgotten<float>(float*)",
        SAMPLE.replace("Sample", "Forgotten"),
    ],
    ids=["a kernel", "an op of for_groups"],
)
def test_a_cuda_kernel_without_a_gate_is_an_error(kernel: str) -> None:
    found = Examination()
    _read_cuda(found, None, {"90": {kernel: CODE}, "80": {kernel: CODE}})
    (failure,) = found.failures
    assert failure.lower().startswith("cuda kernel forgotten has no gate")


def examination() -> Examination:
    """With one kernel for every CUDA gate."""
    form = cuda.form_of(SAMPLE)
    entries = [
        Entry(dataclasses.replace(form, op=registered.op, kernel=kernel), "90", CODE)
        for kernel, registered in cuda._GATES.items()
    ]
    return Examination(entries)


def test_what_is_covered_is_no_error() -> None:
    assert uncovered("CUDA", examination()) == []


def test_an_op_without_a_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKEND.ops, "another", lambda: None)  # type: ignore[arg-type]
    assert uncovered("CUDA", examination()) == [
        "op another of the CUDA backend has no kernel that is examined"
    ]


def test_a_gate_without_a_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    found = examination()
    monkeypatch.setitem(cuda._GATES, "Removed", cuda._GATES["Sample"])
    assert uncovered("CUDA", found) == ["no CUDA kernel Removed: its gate demands nothing"]


def test_a_triton_kernel_that_no_case_launches_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from udp_fast.backends.triton import image_scale
    from udp_fast.backends.triton.variants import variants

    monkeypatch.setattr(image_scale, "forgotten_kernel", object(), raising=False)
    variants.cache_clear()
    with pytest.raises(LookupError, match="no case launches forgotten_kernel"):
        variants()
    variants.cache_clear()


def test_every_tile_of_autotuning_is_examined() -> None:
    pytest.importorskip("triton")
    from benchmarks.proof import triton
    from udp_fast.backends.triton.launch import CONFIGS, DEFAULT, _tunable

    tuned = {kernel.__name__ for kernel in _tunable}
    assert len(tuned) >= 4
    everything = triton.variants()
    for name in tuned:
        mine = [v for v in everything if v.kernel.__name__ == name]
        default = [v for v in mine if not v.tuned]
        assert len(mine) == len(CONFIGS) * len(default)
        for elements, warps in CONFIGS:
            of_tile = [v for v in mine if v.warps == warps]
            assert len(of_tile) == len(default)
            for v, d in zip(of_tile, default, strict=True):
                groups = d.constants["GROUPS"] * elements // DEFAULT[0]
                assert v.constants == {**d.constants, "GROUPS": groups}
                assert triton.form_of(v).instructions == triton.form_of(d).instructions
    assert not any(v.tuned for v in everything if v.kernel.__name__ not in tuned)
    compiled = {
        (i, unit.architecture) for unit in triton.units(("80", "86", "90")) for i in unit.indices
    }
    for i, v in enumerate(everything):
        assert [(i, a) in compiled for a in ("80", "86", "90")] == [True, not v.tuned, True]


def test_every_limit_is_of_a_variant() -> None:
    pytest.importorskip("triton")
    from benchmarks.proof import triton

    assert set(triton.INSTRUCTIONS) <= {v.name for v in triton.variants()}
