"""What is demanded of a kernel in one form, and whether its machine code meets it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from .chips import SHARED_OF_BLOCK, own_shared
from .machine_code import PRODUCTS, Code

#: Architectures whose tensor cores have no larger instructions than HMMA.
MMA_OF_A_WARP = ("80", "86", "89")

#: Bytes of an element of one operand; several where its type is known only at run time.
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Stream:
    """The main loop of a kernel that passes over its operands once."""

    loads: tuple[Sizes, ...]
    stores: tuple[Sizes, ...]
    group: int  # elements that a thread handles in one turn, before any unrolling
    run: int  # how many of them lie side by side
    gathers: bool = False  # has another way through the loop, which picks elements one by one
    #: Bytes of an access to the widest operand: less only where an image's layout leaves no choice.
    widest: int = 16

    def width(self, size: int) -> int:
        """Bytes of an access: the widest power of two that a run is a multiple of, at most 16."""
        return next(w for w in (16, 8, 4, 2, 1) if size * self.run % w == 0)

    def accesses(self, loads: Sequence[int], stores: Sequence[int]) -> Counter[tuple[str, int]]:
        found: Counter[tuple[str, int]] = Counter()
        for kind, sizes in (("load", loads), ("store", stores)):
            for size in sizes:
                found[kind, self.width(size)] += self.group * size // self.width(size)
        return found

    @property
    def choices(self) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Combinations of types: bytes of (loads, stores)."""
        for sizes in product(*self.loads, *self.stores):
            yield sizes[: len(self.loads)], sizes[len(self.loads) :]

    @property
    def typed(self) -> bool:
        return all(len(sizes) == 1 for sizes in (*self.loads, *self.stores))


#: Warp instructions a pair of query and key in the main loops of FlashAttention-2's whole backward, as it
#: is shipped in PyTorch's CUDA wheel for sm_80: by head dim. It pads 40 to 64 and 80 to 96.
FLASH_ATTENTION_2 = {64: 0.75, 96: 0.94, 128: 1.20}

#: What we allow ourselves for dq alone, which is three products of five.
ONLY_DQ = {40: 0.45, 64: 0.65 * 0.75, 80: 0.60, 128: 0.65 * 1.20}


def whole_backward(dim: int) -> float | None:
    """What the kernels of dq, dk and dv may need together, at head dims of models."""
    padded = {40: 64, 64: 64, 80: 96, 128: 128}.get(dim)
    return None if padded is None else FLASH_ATTENTION_2[padded]


@dataclass(frozen=True)
class Products:
    """The main loop of a kernel that multiplies matrices on the tensor cores, in one turn of a warp.

    Pairs are counted as they are computed, by whole tiles, which is how FlashAttention-2's are counted:
    77 keys that cost 80 are 80. Where several warps share a pair, it is divided among them.
    """

    pairs: int | None  # of a query and a key; None: turns are not over pairs
    #: HMMA.16816 that the products need: no more of them than that; None: not counted.
    tensor: int | None
    limit: float | None = None  # warp instructions a pair on sm_80, at most
    alike: int = 0  # of `tensor`: that compute what others do, so that ptxas may leave them out
    keys: int | None = None  # of the one tile that holds all of a head's
    #: Of the whole kernel, where other loops beside the main one multiply: no more of them than that.
    whole: int | None = None


@dataclass(frozen=True)
class Fused:
    """The main loop of a kernel that multiplies matrices in float32, without tensor cores."""

    fma: int  # instructions of a turn that the product needs: exactly so many
    share: float  # of a turn's instructions that they are, at least


@dataclass(frozen=True)
class Form:
    """A kernel in one form: a Triton variant, or an instantiation of a CUDA template."""

    language: str
    op: str
    kernel: str
    label: str
    threads: int  # of a block
    registers: int  # at most
    shared: int = 0  # bytes of a block, at most
    stream: Stream | None = None  # absent: nothing is demanded of its loops
    instructions: float | None = None  # an element on sm_90, at most
    draws: bool = False  # random numbers
    products: Products | None = None
    dynamic: int = 0  # bytes of shared memory that a launch asks for
    fused: Fused | None = None

    @property
    def title(self) -> str:
        return f"{self.language} {self.kernel} {self.label}"


@dataclass(frozen=True)
class Turn:
    """What one turn of the main loop amounts to."""

    elements: int
    bytes_each: float  # moved
    least: float  # bytes that the operands of an element have


def turn_of(stream: Stream, code: Code) -> Turn | None:
    """None where the loop does not move what the stream says, by accesses as wide as possible."""
    found = code.accesses()
    moved = sum(width * n for (_, width), n in found.items())
    for loads, stores in stream.choices:
        wanted, each = stream.accesses(loads, stores), sum(loads) + sum(stores)
        turns, rest = divmod(moved, each * stream.group)
        if rest == 0 and turns and found == Counter({a: n * turns for a, n in wanted.items()}):
            return Turn(turns * stream.group, moved / (turns * stream.group), each)
    return None


def failures(form: Form, architecture: str, code: Code) -> list[str]:
    """What the code does not meet, in words; empty: it passes."""
    found = []
    if code.local or code.spilled:
        found.append(
            f"spills: {code.local} accesses of local memory, {code.spilled} bytes by ptxas"
        )
    if code.stack:
        found.append(f"a stack frame of {code.stack} bytes")
    if code.registers > form.registers:
        found.append(f"{code.registers} registers, the budget is {form.registers}")
    shared, limit = own_shared(architecture, code.shared), min(form.shared, SHARED_OF_BLOCK)
    if shared > limit:
        found.append(f"{shared} bytes of shared memory, the limit is {limit}")
    if shared + form.dynamic > SHARED_OF_BLOCK:
        found.append(
            f"{shared} and at launch {form.dynamic} bytes of shared memory, a block has"
            f" {SHARED_OF_BLOCK}"
        )
    if form.products is not None:
        found += _product_failures(form.products, architecture, code)
    if form.stream is not None:
        found += _stream_failures(form, form.stream, architecture, code)
    if form.fused is not None:
        found += _fused_failures(form.fused, code)
    return found


def pair_cost(products: Products, code: Code) -> float | None:
    """Instructions of a warp for one query and one key; None where they are not counted by pairs."""
    if not products.pairs or not code.count(*PRODUCTS):
        return None
    return code.turn / products.pairs


def _product_failures(products: Products, architecture: str, code: Code) -> Iterator[str]:
    tensor = code.count("HMMA")
    if not code.count(*PRODUCTS):
        yield "no instruction of the tensor cores in the main loop"
    # Those of 9.0 and 10.0 are larger, or have no size in their names.
    elif products.tensor is not None and (
        (tensor or architecture in MMA_OF_A_WARP)
        and not products.tensor - products.alike <= tensor <= products.tensor
    ):
        yield f"{tensor} tensor-core instructions in the main loop, the products need {products.tensor}"
    elif products.whole is not None and code.products != products.whole:
        yield f"{code.products} tensor-core instructions in all, the products need {products.whole}"
    elif architecture == "80" and products.limit is not None:
        each = pair_cost(products, code)
        if each is None or each > products.limit:
            counted = "no" if each is None else f"{each:.4f}"
            yield (
                f"{counted} instructions a pair of query and key, at most {products.limit:g} are"
                " allowed"
            )


def _fused_failures(fused: Fused, code: Code) -> Iterator[str]:
    fma = code.count("FFMA")
    if fma != fused.fma:
        yield f"{fma} fused multiply-adds in the main loop, the product needs {fused.fma}"
    elif fma < fused.share * code.turn:
        yield (
            f"{fma} of {code.turn} instructions of the main loop multiply, at least"
            f" {fused.share:.0%} are demanded"
        )


def _stream_failures(form: Form, stream: Stream, architecture: str, code: Code) -> Iterator[str]:
    if not code.loop:
        yield "no main loop was found"
        return
    if code.count("BAR", "LDS", "STS"):
        yield "the main loop goes through shared memory"
    # The accesses below are as wide as the group allows: the group itself must not be too small.
    widest = min(max(map(stream.width, loads + stores)) for loads, stores in stream.choices)
    if widest < stream.widest:
        yield f"groups so small that no access has more than {widest} bytes, not {stream.widest}"
    turn = turn_of(stream, code)
    if stream.gathers:
        wide = {stream.width(size) for sizes in (*stream.loads, *stream.stores) for size in sizes}
        if not wide <= set(code.widths):
            yield f"accesses of {_listed(code.widths)} bytes, {_listed(sorted(wide))} are possible"
        return
    if turn is None:
        loads, stores = next(iter(stream.choices))
        yield (
            f"the main loop has {_described(code.accesses())}; a group of {stream.group} elements"
            f" needs {_described(stream.accesses(loads, stores))}"
            + ("" if stream.typed else " or what other types need, and no more")
        )
        return
    each = code.turn / turn.elements
    if architecture == "90" and form.instructions is not None and each > form.instructions:
        yield f"{each:.1f} instructions an element, at most {form.instructions:g} are allowed"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "no"


def _described(accesses: Counter[tuple[str, int]]) -> str:
    return (
        ", ".join(
            f"{n} {kind}{'s' if n > 1 else ''} of {width} byte{'s' if width > 1 else ''}"
            for (kind, width), n in sorted(accesses.items())
        )
        or "no global access"
    )
