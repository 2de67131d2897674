"""The Triton kernels, in the forms that `udp_fast.backends.triton.variants` records."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

from triton.backends.nvidia.compiler import get_ptxas_version

from udp_fast.backends.triton import variants as recorded
from udp_fast.backends.triton.variants import Variant, compile_variant, variants

from . import cache as kept
from .form import Form, Stream
from .machine_code import Code, read

#: A thread's registers, of 65536 a multiprocessor: at 64 half of its 2048 threads find room.
REGISTERS = 64

#: In kernels that have numbers for each channel, as for csrc/cuda: of eight channels a thread, or of
#: one, whose loop ptxas unrolls so that four loads are under way.
REGISTERS_OF_CHANNELS = 96

#: At most this many instructions an element where they decide the speed: bf16 on sm_90.
INSTRUCTIONS = {
    "q_sample-dense-bf16": 35,
    "q_sample-latent-bf16": 35,
    "q_sample-rgb-bf16": 35,
    "denoising_loss-dense-epsilon-bf16": 36,
    "denoising_loss-latent-epsilon-bf16": 36,
    "denoising_loss-rgb-epsilon-bf16": 36,
}


def form_of(variant: Variant) -> Form:
    stream = None
    if variant.vectorised:
        interleaved = variant.constants.get("INTERLEAVED", 0)
        stream = Stream(
            loads=tuple((variant.streams[name],) for name in variant.loaded),
            stores=tuple((variant.streams[name],) for name in variant.stored),
            group=variant.elements,
            run=4 if interleaved else variant.constants["WIDTH"],
            widest=8 if interleaved else 16,  # four neighbours of a draw
        )
    registers = REGISTERS if stream or not variant.walks else 2 * REGISTERS
    if "LAST" in variant.constants:
        registers = max(registers, REGISTERS_OF_CHANNELS)
    return Form(
        language="Triton",
        op=op_of(variant),
        kernel=variant.kernel.__name__.removesuffix("_kernel"),
        label=variant.name.partition("-")[2].replace("@", ", warps "),
        threads=32 * variant.warps,
        registers=registers,
        stream=stream,
        instructions=INSTRUCTIONS.get(variant.name.partition("@")[0]),
        draws=variant.signature.get("key", "constexpr") != "constexpr",
    )


def op_of(variant: Variant) -> str:
    """The op whose file the kernel is in."""
    module = variant.kernel.fn.__module__.rpartition(".")[2]
    return next((op for op in ops() if op.rstrip("_") == module), module)


@cache
def ops() -> frozenset[str]:
    """Those that `variants` has calls of."""
    return frozenset(op.__name__ for op, _ in recorded._CASES)


@dataclass(frozen=True)
class Unit:
    """Some variants, by their place among all of them, for one architecture."""

    indices: tuple[int, ...]
    architecture: str


def units(architectures: Iterable[str], size: int = 12) -> list[Unit]:
    found = []
    for architecture in architectures:
        tiles = int(architecture) in recorded.ARCHS_TUNED
        mine = [i for i, variant in enumerate(variants()) if tiles or not variant.tuned]
        for first in range(0, len(mine), size):
            found.append(Unit(tuple(mine[first : first + size]), architecture))
    return found


@cache
def _compiler() -> tuple[str, ...]:
    ptxas = (str(get_ptxas_version(cc)) for cc in recorded.ARCHS)
    return (version("triton"), *ptxas, inspect.getsource(compile_variant))


def compile_unit(unit: Unit) -> dict[str, Code]:
    """Variant's name -> code, from the cache as far as that is known."""
    return {
        variant.name: _compile(variant, unit.architecture)
        for variant in (variants()[i] for i in unit.indices)
    }


def _compile(variant: Variant, architecture: str) -> Code:
    form = (variant.signature, variant.constants, variant.multiples, variant.warps)
    key = kept.key(_compiler(), variant.kernel.cache_key, form, architecture)
    kernels = kept.load(key)
    if kernels is None:
        kernels = read(compile_variant(variant, int(architecture)).asm["cubin"])
        kept.save(key, kernels)
    (code,) = kernels.values()
    return code
