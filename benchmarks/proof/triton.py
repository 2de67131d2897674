"""The Triton kernels, in the forms that `udp_fast.backends.triton.variants` records."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version

from triton.backends.nvidia.compiler import get_ptxas_version

from udp_fast.backends.triton import variants as recorded
from udp_fast.backends.triton.variants import Variant, compile_variant, variants

from . import cache as kept
from .chips import SHARED_OF_BLOCK
from .form import ONLY_DQ, Form, Products, Stream, whole_backward
from .machine_code import Code, read

#: A thread's registers, of 65536 a multiprocessor: at 64 half of its 2048 threads find room.
REGISTERS = 64

#: In kernels that have numbers for each channel, as for csrc/cuda: of eight channels a thread, or of
#: one, whose loop ptxas unrolls so that four loads are under way.
REGISTERS_OF_CHANNELS = 96

#: Those of a kernel of matrix products: all that a thread can have.
PRODUCT_REGISTERS = 255

#: At most this many instructions an element where they decide the speed: bf16 on sm_90.
INSTRUCTIONS = {
    "q_sample-dense-bf16": 35,
    "q_sample-latent-bf16": 35,
    "q_sample-rgb-bf16": 35,
    "denoising_loss-dense-epsilon-bf16": 36,
    "denoising_loss-latent-epsilon-bf16": 36,
    "denoising_loss-rgb-epsilon-bf16": 36,
}


#: dq's part of what dq, dk and dv may need together, by head dim.
SHARE_OF_DQ = {40: 0.42, 64: 0.42, 80: 0.38, 128: 0.403}


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
    products = products_of(variant)
    return Form(
        language="Triton",
        op=op_of(variant),
        kernel=variant.kernel.__name__.removesuffix("_kernel"),
        label=variant.name.partition("-")[2].replace("@", ", warps "),
        threads=32 * variant.warps,
        registers=_registers(variant),
        shared=shared_of(variant) if variant.pairs == 0 else SHARED_OF_BLOCK,
        stream=stream,
        products=products,
        instructions=INSTRUCTIONS.get(variant.name.partition("@")[0]),
        draws=variant.signature.get("key", "constexpr") != "constexpr",
    )


def products_of(variant: Variant) -> Products | None:
    """What is demanded of the products of a kernel of attention; None of other kernels, and in float32,
    which tensor cores do not multiply."""
    constants = variant.constants
    if variant.pairs == 0 or "*fp32" in (variant.signature.get("q"), variant.signature.get("a")):
        return None
    if variant.pairs is None:
        return Products(pairs=None, tensor=None)
    pairs = variant.pairs // variant.warps
    head = constants["D0"] + constants["D1"]
    kernel = variant.kernel.__name__.removesuffix("_kernel")
    columns = {
        "attention_forward": 2 * head,
        "attention_dq": 3 * head,
        # S^T, P^T dO and dP^T, dS^T Q
        "attention_dkdv": head
        + (0 if constants.get("dv", 0) is None else head)
        + (0 if constants.get("dk", 0) is None else 2 * head),
        "attention_few_keys_dq": 2 * head + constants["D0"] + constants.get("N1", 0),
    }[kernel]
    keys = constants["KEYS0"] + constants["KEYS1"] if "KEYS0" in constants else None
    return Products(
        pairs,
        tensor=pairs * columns // 2048,
        limit=_limit(kernel, variant),
        keys=keys,
    )


def _limit(kernel: str, variant: Variant) -> float | None:
    """The bars are for bfloat16 without a bias. float16 keeps dS unscaled for dq alone, lest it vanish,
    and numbers of keys between 96 and 128, which no model's text has, are masked in one large tile."""
    constants = variant.constants
    if variant.signature["q"] != "*bf16" or "bias" not in constants:
        return None
    dim = constants["D"]
    if kernel == "attention_few_keys_dq":
        large = constants["KEYS0"] == 128 and constants["MASKED"]
        return None if large else ONLY_DQ.get(dim)
    whole = whole_backward(dim)
    if whole is None or kernel not in ("attention_dq", "attention_dkdv"):
        return None
    share = SHARE_OF_DQ[dim]
    return whole * (share if kernel == "attention_dq" else 1 - share)


def op_of(variant: Variant) -> str:
    """The op whose file the kernel is in."""
    module = variant.kernel.fn.__module__.rpartition(".")[2]
    if module.startswith("attention_"):  # by tiles, of which each kind has a file
        module = "attention"
    return next((op for op in ops() if op.rstrip("_") == module), module)


def _registers(variant: Variant) -> int:
    if variant.pairs != 0:
        return PRODUCT_REGISTERS
    registers = REGISTERS if variant.vectorised or not variant.walks else 2 * REGISTERS
    return max(registers, REGISTERS_OF_CHANNELS) if "LAST" in variant.constants else registers


def shared_of(variant: Variant) -> int:
    """Bytes of shared memory that a block needs: none to pass over elements, as each is handled by the
    thread that loaded it, and for what threads have to tell one another

    - a number of eight bytes for each warp, to add up one number over the block,
    - in attention a number of each row from each warp that has a part of it,
    - a number for each of a tile's rows, or where a thread keeps to its channels for each thread and
      channel, to add up over a channel's threads,
    - where no vectors are possible, a tile: elements are then loaded in one order, and drawn, added up
      or divided into rows in another.
    """
    if not variant.walks:
        return max(8, 4 * variant.constants.get("ROWS", 0)) * variant.warps
    groups, width = variant.constants["GROUPS"], variant.constants["WIDTH"]
    tile = 4 * groups * width
    if not variant.vectorised:
        return tile
    if "LAST" in variant.constants and not variant.stored:
        return 4 * 32 * variant.warps * width if variant.constants["LAST"] else 4 * groups
    return 8 * variant.warps if variant.sums else 0


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
    mine = [variants()[i] for i in unit.indices]
    keys = [_key(variant, unit.architecture) for variant in mine]
    found = [kept.load(key) for key in keys]
    missing = [i for i, kernels in enumerate(found) if kernels is None]
    compiled = [compile_variant(mine[i], int(unit.architecture)) for i in missing]
    # Read together: see elf.py.
    codes = read(*(c.asm["cubin"] for c in compiled)) if compiled else []
    for i, c, kernels in zip(missing, compiled, codes, strict=True):
        # Triton asks for shared memory when it launches: the cubin does not know of it.
        asked = c.metadata.shared
        found[i] = {n: replace(code, shared=code.shared + asked) for n, code in kernels.items()}
        kept.save(keys[i], found[i])
    return {
        variant.name: code
        for variant, kernels in zip(mine, found, strict=True)
        for code in (kernels or {}).values()
    }


def _key(variant: Variant, architecture: str) -> str:
    form = (
        variant.signature,
        variant.constants,
        variant.multiples,
        variant.warps,
        variant.stages,
        variant.fuses,
    )
    return kept.key(_compiler(), variant.kernel.cache_key, form, architecture)
