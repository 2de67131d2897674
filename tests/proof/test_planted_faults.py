"""Kernels with planted faults must fail the gate that is for them, and only that."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from benchmarks.proof import cuda
from benchmarks.proof.form import Form, Stream, failures
from benchmarks.proof.machine_code import Code, _code, _graphs, _usage, read, run

pytestmark = pytest.mark.slow

FAULTS = Path(__file__).with_name("faults.cu")
FLOATS = ((4,),)
STREAM = Stream(loads=FLOATS, stores=FLOATS, group=4, run=4)
FORM = Form("CUDA", "op", "kernel", "f32", threads=128, registers=64, stream=STREAM)


def compiled(folder: Path, architecture: str, source: Path = FAULTS) -> bytes:
    output = folder / f"{source.stem}-{architecture}.cubin"
    build = cuda.load_build()
    command = [
        str(build.nvcc()),
        *build.FLAGS,
        f"-arch=sm_{architecture}",
        "-cubin",
        str(source),
        "-o",
        str(output),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return output.read_bytes()


@pytest.fixture(scope="module")
def folder(toolchain: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def cubin(folder: Path) -> bytes:
    return compiled(folder, "90")


@pytest.fixture(scope="module")
def kernels(cubin: bytes) -> dict[str, Code]:
    """Name -> code on sm_90."""
    (names,) = read(cubin)
    plain = cuda.demangled(names)
    return {plain[name].partition("(")[0]: code for name, code in names.items()}


def test_a_wide_loop_passes(kernels: dict[str, Code]) -> None:
    assert failures(FORM, "90", kernels["wide"]) == []


def test_a_scalar_loop_is_caught(kernels: dict[str, Code]) -> None:
    (found,) = failures(FORM, "90", kernels["narrow"])
    assert "loads of 4 bytes" in found
    assert "needs 1 load of 16 bytes, 1 store of 16 bytes" in found


def test_a_group_of_one_is_no_way_around_it(kernels: dict[str, Code]) -> None:
    small = dataclasses.replace(FORM, stream=dataclasses.replace(STREAM, group=1, run=1))
    (found,) = failures(small, "90", kernels["narrow"])
    assert "no access has more than 4 bytes, not 16" in found


def test_an_operand_that_is_read_twice_is_caught(kernels: dict[str, Code]) -> None:
    (found,) = failures(FORM, "90", kernels["twice"])
    assert "loads of 16 bytes" in found
    two = dataclasses.replace(STREAM, loads=FLOATS * 2)
    assert failures(dataclasses.replace(FORM, stream=two), "90", kernels["twice"]) == []


def test_a_spill_is_caught(kernels: dict[str, Code]) -> None:
    found = failures(dataclasses.replace(FORM, stream=None), "90", kernels["spilling"])
    assert any(text.startswith("spills") for text in found)


def test_an_array_in_local_memory_is_caught(kernels: dict[str, Code]) -> None:
    found = failures(dataclasses.replace(FORM, stream=None), "90", kernels["indexing"])
    assert any("stack frame of 64 bytes" in text for text in found)


def test_a_detour_by_shared_memory_is_caught(kernels: dict[str, Code]) -> None:
    found = failures(FORM, "90", kernels["exchanging"])
    assert "the main loop goes through shared memory" in found


def test_budgets_are_kept(kernels: dict[str, Code]) -> None:
    code = kernels["exchanging"]
    tight = dataclasses.replace(FORM, stream=None, registers=code.registers - 1, shared=1024)
    registers, shared = failures(tight, "90", code)
    assert registers == f"{code.registers} registers, the budget is {code.registers - 1}"
    assert shared == "2048 bytes of shared memory, the limit is 1024"


def test_instructions_an_element_are_limited_on_sm_90(kernels: dict[str, Code]) -> None:
    meagre = dataclasses.replace(FORM, instructions=1.0)
    (found,) = failures(meagre, "90", kernels["wide"])
    assert "instructions an element, at most 1 are allowed" in found
    assert failures(meagre, "80", kernels["wide"]) == []


def test_a_kernel_without_a_loop_is_caught(kernels: dict[str, Code]) -> None:
    without = dataclasses.replace(kernels["wide"], loop={})
    assert failures(FORM, "90", without) == ["no main loop was found"]


def test_a_mask_without_a_hint_is_caught(toolchain: None) -> None:
    """Triton's trap: rows of unknown alignment cost it the vector accesses."""
    from benchmarks.proof import triton

    dense = next(v for v in triton.variants() if v.name == "q_sample-dense-bf16")
    multiples = tuple(set(dense.multiples) - {"x_image"})
    blind = dataclasses.replace(dense, multiples=multiples)
    (kernels,) = read(triton.compile_variant(blind, 90).asm["cubin"])
    (code,) = kernels.values()
    assert any("loads of 2 bytes" in text for text in failures(triton.form_of(dense), "90", code))


def read_alone(cubin: bytes, folder: Path) -> dict[str, Code]:
    """As nvdisasm says of the compiler's own file, with all that it can find out."""
    file = folder / "alone.cubin"
    file.write_bytes(cubin)
    graphs = _graphs(run("nvdisasm", "-c", str(file)))
    usage = _usage(run("cuobjdump", "-res-usage", str(file)))
    return {name: _code(graphs[name], used) for name, used in usage.items()}


def test_kernels_read_together_are_those_read_alone(cubin: bytes, folder: Path) -> None:
    alone = read_alone(cubin, folder)
    assert len(alone) > 5
    assert any(code.loop for code in alone.values())
    assert read(cubin, cubin, cubin) == [alone] * 3


def test_loops_with_a_branch_through_a_table_are_read(folder: Path, toolchain: None) -> None:
    """What a file for reading leaves out has the branch's targets: types known at run time only."""
    code = compiled(folder, "90", cuda.SOURCES / "quantize.cu")
    alone = read_alone(code, folder)
    assert any(found.count("BRX", "BRXU") for found in alone.values())
    assert read(code) == [alone]


def test_kernels_of_several_architectures_cannot_be_read_together(
    cubin: bytes, folder: Path
) -> None:
    with pytest.raises(ValueError, match="several architectures"):
        read(cubin, compiled(folder, "80"))
