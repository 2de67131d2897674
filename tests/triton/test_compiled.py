"""Compiles every kernel in every form and reads the machine code: the first gate of the proof."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import sass

from udp_fast.backends.triton.variants import Variant, compile_variant, variants

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted, not compiled"
    ),
]
ARCHS = (80, 90)
NAMES = [v.name for v in variants()]

#: A thread's registers, of 65536 a multiprocessor: at 64 half of its 2048 threads find room.
REGISTERS = 64
#: At most this many instructions an element where they decide the speed: bf16 on sm_90.
INSTRUCTIONS = {
    "q_sample-dense-bf16": 35,
    "q_sample-latent-bf16": 35,
    "q_sample-rgb-bf16": 35,
    "denoising_loss-dense-epsilon-bf16": 36,
    "denoising_loss-latent-epsilon-bf16": 36,
    "denoising_loss-rgb-epsilon-bf16": 36,
}


def examine(index: int, cc: int) -> sass.Report:
    return sass.report(compile_variant(variants()[index], cc).asm["cubin"])


@pytest.fixture(scope="module")
def reports() -> dict[tuple[str, int], sass.Report]:
    """All of them; Triton's cache makes a second run quick."""
    jobs = [(i, cc) for cc in ARCHS for i in range(len(NAMES))]
    # Not a fork: the compiler has threads.
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(examine, *zip(*jobs, strict=True), chunksize=8))
    for (i, cc), report in zip(jobs, found, strict=True):
        variant = variants()[i]
        each = len(report.loop) / elements(variant, report) if variant.walks else 0
        print(
            f"sm_{cc} {variant.name:45} {each:6.1f} instructions an element,"
            f" {report.registers:3} registers, {dict(report.accesses())}"
        )
    return {(NAMES[i], cc): r for (i, cc), r in zip(jobs, found, strict=True)}


def elements(variant: Variant, report: sass.Report) -> float:
    """That a thread handles in the main loop, by what it loads: loops may be unrolled."""
    loaded = sum(size * n for (kind, size), n in report.accesses().items() if kind == "LDG")
    each = sum(variant.streams[name] for name in variant.loaded)
    return loaded / each


@pytest.mark.parametrize("cc", ARCHS)
@pytest.mark.parametrize("variant", variants(), ids=NAMES)
def test_variant(variant: Variant, cc: int, reports: dict[tuple[str, int], sass.Report]) -> None:
    report = reports[variant.name, cc]
    assert report.local == 0
    assert report.stack == 0
    assert report.shared <= 2048
    assert report.registers <= (REGISTERS if variant.vectorised else 2 * REGISTERS)
    if variant.vectorised:
        # As many bytes an access as its operand's elements of a thread have, at most 16.
        widths = {variant.access(name) for name in variant.streams}
        assert {size for _, size in report.accesses()} <= widths
        assert elements(variant, report) % variant.elements == 0
        assert report.shared == 0 or variant.sums
        assert not report.count("BAR", "LDS", "STS"), "the main loop goes through shared memory"
    if cc == 90 and variant.name in INSTRUCTIONS:
        assert len(report.loop) / elements(variant, report) <= INSTRUCTIONS[variant.name]


def test_every_limit_is_of_a_variant() -> None:
    assert INSTRUCTIONS.keys() <= set(NAMES)


def test_a_kernel_without_variants_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from udp_fast.backends.triton import image_scale

    monkeypatch.setattr(image_scale, "forgotten_kernel", object(), raising=False)
    variants.cache_clear()
    with pytest.raises(LookupError, match="no case launches forgotten_kernel"):
        variants()
    variants.cache_clear()


def test_a_mask_without_a_hint_is_caught() -> None:
    """The trap the gate is for: rows of unknown alignment cost the vector accesses."""
    import dataclasses

    dense = next(v for v in variants() if v.name == "q_sample-dense-bf16")
    multiples = tuple(set(dense.multiples) - {"x_image"})
    blind = dataclasses.replace(dense, multiples=multiples)
    accesses = sass.report(compile_variant(blind, 90).asm["cubin"]).accesses()
    assert ("LDG", 2) in accesses
