"""The instruction sets of the native kernels: kept apart in the library, equal in their bits."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
import torch
from emulation import compiled

from udp_fast.backends.cpu import BACKEND
from udp_fast.ops import noise_key

_native = pytest.importorskip("udp_fast._native", reason="the native kernels are not built")

HERE = Path(__file__).parent
X86 = "avx2" in _native.compiled_isas()


@pytest.fixture(scope="module")
def disassembly() -> str:
    if not X86:
        pytest.skip("built for a processor without AVX")
    if shutil.which("objdump") is None:
        pytest.skip("objdump (binutils) is not installed")
    command = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", _native.__file__]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def functions_using(disassembly: str, registers: str) -> set[str]:
    found, name = set(), ""
    for line in disassembly.splitlines():
        if header := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            name = header[1]
        elif re.search(registers, line):
            found.add(name)
    return found


def test_512_bit_registers_are_used_by_the_avx512_kernels_alone(disassembly: str) -> None:
    users = functions_using(disassembly, r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])|%k[0-7]\b")
    assert any("udp::avx512::" in f for f in users), "the kernels themselves were not found"
    assert {f for f in users if "udp::avx512::" not in f} == set()


def test_avx_is_used_by_the_kernels_for_it_alone(disassembly: str) -> None:
    users = functions_using(disassembly, r"\t(v[a-z0-9]+ ).*%[xyz]mm|\tvzeroupper")
    assert any("udp::avx2::" in f for f in users), "the kernels themselves were not found"
    others = {f for f in users if "udp::avx512::" not in f and "udp::avx2::" not in f}
    assert others == set()


#: Loops over arrays of registers in which the time of noise and convolution goes.
TILED = {
    "draw_words",
    "to_radii",
    "from_words",
    "conv_tiles",
    "conv_taps",
    "conv_block",
    "conv_multiply",
}


def test_no_array_of_registers_is_copied_by_general_registers(disassembly: str) -> None:
    """As gcc does with an array that it gave memory: at -O2 the noise took twice as long so."""
    name = re.compile(rf"::({'|'.join(TILED)})\b")
    tiled = {f: m[1] for f in functions_using(disassembly, "%[yz]mm") if (m := name.search(f))}
    assert set(tiled.values()) == TILED
    assert tiled.keys() & functions_using(disassembly, r"\tv?pinsrq ") == set()


@pytest.fixture
def restore_isa() -> Iterator[None]:
    yield
    _native.use_isa("")


def everything(dtype: torch.dtype, layout: torch.memory_format) -> list[torch.Tensor]:
    """What each op writes for one set of arguments."""
    shape = (2, 3, 37, 29)
    generator = torch.Generator().manual_seed(3)

    def draw() -> torch.Tensor:
        values = torch.randn(shape, generator=generator).to(dtype)
        return values.contiguous(memory_format=layout)

    delta, grad, x = draw() * 0.02, draw(), draw().sigmoid()
    grad[0, 0, 0, :3] = torch.tensor([torch.nan, torch.inf, 0.0])
    original = (x.float() * 255).byte()
    alpha, eps = torch.tensor(2 / 255), torch.tensor([8 / 255, 3 / 255])
    key = noise_key(5, [6, 7])
    t, table = torch.tensor([3, 8]), torch.linspace(0.99, 0.1, 10)
    ops = BACKEND.ops
    results: list[torch.Tensor] = []
    for step, norm in (("sign", "linf"), ("l2", "linf"), ("raw", "l2")):
        for out_range in ((0.0, 1.0), (-1.0, 1.0)):
            fixed = (alpha, eps, None, step, norm, True, 0.0, 1.0, *out_range, dtype)
            for start in (delta, delta.float()):
                for image in (x, original):
                    changed = start.clone()
                    results += [*ops["pgd_step_"](changed, grad, image, *fixed), changed]
    results += ops["q_sample"](x, t, table, None, key, "diffusion", True, dtype)
    for kind in ("epsilon", "v_prediction", "flow"):
        args = (grad.nan_to_num(0, 1, -1), None, x, t, table, None, key, None, kind, True, 0.5)
        results += ops["denoising_loss"](*args)
    results.append(ops["quantize"](delta, original, eps, key, "delta", 0.0, 1.0))
    results.append(ops["quantize"](x, original, eps, None, "image", 0.0, 1.0))
    results.append(ops["image_scale"](x, eps))
    features = torch.randn(2, 40, 9, 11, generator=generator).to(dtype)
    features = features.contiguous(memory_format=layout)
    weight, bias = (torch.randn(40, generator=generator) for _ in range(2))
    for act in ("silu", None):
        y, mean, rstd = ops["group_norm_silu"](features, weight, bias, 8, 1e-5, act)
        args = (y, features, mean, rstd, weight, bias, 8, act, [True] * 3)
        results += [y, mean, rstd, *ops["group_norm_silu_backward"](*args)]
    if dtype == torch.float32 and layout == torch.channels_last:
        weight = torch.randn(21, 3, 3, 3, generator=generator)
        y = ops["conv3x3"](x, weight, torch.randn(21, generator=generator))
        results += [y, ops["conv3x3_dx"](y, weight), ops["geglu"](8 * y[:, :20].reshape(-1, 20))]
        results.append(ops["geglu_backward"](y[:, :10].reshape(-1, 10), y[:, :20].reshape(-1, 20)))
    return results


def all_of_attention(dtype: torch.dtype) -> list[torch.Tensor]:
    """What attention writes: blocks and tiles that are full and ragged, every half and whole vector."""
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype).transpose(1, 2)

    forward, backward = BACKEND.ops["attention"], BACKEND.ops["attention_backward"]
    results: list[torch.Tensor] = []
    shapes = ((70, 77, 40), (33, 300, 24), (1030, 20, 9), (20, 90, 112), (37, 77, 56), (20, 8, 8))
    for queries, keys, size in shapes:
        q, grad = draw(2, queries, 1, size), draw(2, queries, 1, size)
        k, v = draw(2, keys, 1, size), draw(2, keys, 1, size)
        padding = torch.zeros(2, 1, 1, keys)
        padding[..., keys // 2 :] = -torch.inf
        scores = draw(2, queries, 1, keys).float()
        scores[:, :, 3] = -torch.inf
        for bias in (None, padding, scores):
            out, lse = forward(q, k, v, bias, 0.3, True)
            grads = backward(grad, q, k, v, bias, out, lse, 0.3, [True] * 3)
            results += [out, lse, *grads]
            if keys <= 128:
                results += backward(grad, q, k, v, bias, None, None, 0.3, [True, False, False])
    return results


@pytest.mark.usefixtures("restore_isa")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_all_supported_instruction_sets_give_the_same_bits(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    _native.use_isa("baseline")
    expected = everything(dtype, layout)
    for isa in _native.supported_isas()[1:]:
        _native.use_isa(isa)
        for i, (a, b) in enumerate(zip(everything(dtype, layout), expected, strict=True)):
            assert torch.equal(a, b), f"result {i} on {isa}"


def bits(x: torch.Tensor) -> torch.Tensor:
    """One NaN for all, for its payload is nobody's concern."""
    words = x.view(torch.int16 if x.element_size() == 2 else torch.int32)
    return torch.where(x.isnan(), 0x7FFF, words)


@pytest.mark.usefixtures("restore_isa")
@pytest.mark.parametrize("delta_dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_step_in_16_bits_from_every_byte_by_every_kind_of_number(
    dtype: torch.dtype, delta_dtype: torch.dtype
) -> None:
    """Rows of these types have paths of their own, which know what cannot occur."""
    inf, nan, tiny = torch.inf, torch.nan, torch.finfo(dtype).smallest_normal / 4
    gradients = torch.tensor([1.0, -1.0, 0.0, -0.0, tiny, -tiny, inf, -inf, nan], dtype=dtype)
    numbers = [0.0, -0.0, 6e-8, -6e-8, 1e-40, -1e-40, 0.02, -0.02, 1 / 255, 1e3, -inf, nan]
    deltas = torch.tensor(numbers, dtype=delta_dtype)
    # Bytes go by fastest: a NaN of delta sends all that are near it another way.
    x, grad, delta = (
        t.expand(len(deltas), len(gradients), 256).reshape(1, 1, 1, -1)
        for t in (torch.arange(256).byte(), gradients[:, None], deltas[:, None, None])
    )
    step = BACKEND.ops["pgd_step_"]

    def all_calls() -> Iterator[tuple[tuple[object, ...], list[torch.Tensor]]]:
        for alpha, eps in product((2 / 255, 1e-44, 300.0), (8 / 255, 0.0)):
            for maximize, ends in product((True, False), ((0.0, 1.0), (-1.0, 1.0))):
                for size in (x.shape[3], 61):  # whole vectors and a rest
                    d = delta[..., :size].clone()
                    step_and_norm = (torch.tensor(alpha), torch.tensor([eps]), None, "sign", "linf")
                    call = (*step_and_norm, maximize, 0.0, 1.0, *ends, dtype)
                    results = step(d, grad[..., :size], x[..., :size], *call)
                    yield (alpha, eps, maximize, ends, size), [*results, d]

    _native.use_isa("baseline")
    expected = list(all_calls())
    for isa in _native.supported_isas()[1:]:
        _native.use_isa(isa)
        for (call, results), (_, wanted) in zip(all_calls(), expected, strict=True):
            for a, b in zip(results, wanted, strict=True):
                same = bits(a) == bits(b) if a.is_floating_point() else a == b
                assert bool(same.all()), f"{call} on {isa}"


@pytest.mark.usefixtures("restore_isa")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_attention_gives_the_same_bits_on_all_instruction_sets(dtype: torch.dtype) -> None:
    _native.use_isa("baseline")
    expected = all_of_attention(dtype)
    for isa in _native.supported_isas()[1:]:
        _native.use_isa(isa)
        for i, (a, b) in enumerate(zip(all_of_attention(dtype), expected, strict=True)):
            assert torch.equal(a, b), f"result {i} on {isa}"


def test_avx512_in_emulation_gives_the_bits_of_avx2(tmp_path: Path) -> None:
    """Every kernel, type and layout, on a processor that has no AVX-512."""
    if "avx2" not in _native.supported_isas():
        pytest.skip("this processor has no AVX2")
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    flags = [
        *("-std=c++17", "-O1", "-ffp-contract=off", "-fno-math-errno"),
        *("-mavx2", "-mfma", "-mf16c", "-Wno-ignored-attributes"),
        "-DUDP_HD=static inline",  # a tenth of the code to compile
    ]
    sources = (
        *(HERE / "isa_bits.cpp", HERE / "emulated_avx512.cpp"),
        HERE.parents[1] / "csrc/cpu/kernels_avx2.cpp",
    )
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda source: compiled(source, flags), sources))
    program = tmp_path / "isa_bits"
    subprocess.run(["g++", *map(str, objects), "-o", str(program)], check=True)
    run = subprocess.run([str(program)], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "equal\n")


@pytest.mark.parametrize("name", ["avx9", "avx512"])
def test_an_instruction_set_that_cannot_be_had_is_an_error_in_words(name: str) -> None:
    if name in _native.supported_isas():
        pytest.skip(f"this processor has {name}")
    program = "from udp_fast import _native; _native.isa()"
    environment = {**os.environ, "UDP_FAST_CPU_ISA": name}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert f"UDP_FAST_CPU_ISA: got {name}" in run.stderr
    assert "expected one of baseline" in run.stderr
