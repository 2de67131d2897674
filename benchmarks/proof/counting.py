"""Bytes, floating-point operations and launches of the ops, beside torch eager: counted, not timed.

The calls are those that the benchmarks time, so an op comes with its benchmark; those of attention have
fewer rows, since the emulator multiplies matrices by hand. Ours go to the CUDA backend as they would on
a GPU: its Python, and below that the .cu files in the emulator, which counts the bytes of global memory
that each launch touches. Torch's own operators are counted as they are dispatched, one launch each: what
goes in is read, what comes out is written. Floating-point operations are read from the machine code. An
op of the backend that no call reaches is an error.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from udp_fast.backends import dispatch
from udp_fast.backends.cuda import native
from udp_fast.backends.registry import Backend, backend
from udp_fast.ops import denoising_loss, validation

from ..measure import EAGER, OURS, Case
from ..ops import attention, cases, cases_16_bit
from .cuda import Ungated, form_of
from .examine import Entry
from .machine_code import Code

#: (op, form) -> bytes an element that the CUDA kernels may touch at most, where a number was promised.
BARS = {
    ("pgd_step", "uint8 original, bfloat16 gradient and result, float16 delta"): 9.1,
    ("q_sample", "fresh noise, bfloat16"): 4.1,
    ("denoising_loss", "redrawn noise, bfloat16"): 4.1,
}

#: Floating-point operations of an instruction, for a thread; of a product of matrices, m16n8k16, for
#: a thirty-second of a warp. Conversions, comparisons and minima are none.
_OPERATIONS = {
    "FADD": 1, "FMUL": 1, "FFMA": 2, "FADD2": 2, "FMUL2": 2, "FFMA2": 4, "MUFU": 1,
    "HADD2": 2, "HMUL2": 2, "HFMA2": 4, "DADD": 1, "DMUL": 1, "DFMA": 2,
}  # fmt: skip
_OF_MMA = 2 * 16 * 8 * 16

_WITHOUT_MEMORY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
#: In place, but without regard to what was there before.
_OVERWRITES = {"copy_", "fill_", "normal_", "uniform_", "zero_"}


# --- torch's own operators -------------------------------------------------------------------------


def touched(tensor: Tensor) -> int:
    """Bytes of the tensor's elements, those that share memory once."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride or size == 0 else 1
    return elements * tensor.element_size()


class Dispatched(TorchDispatchMode):
    """Counts the operators that torch starts: each is a launch, and passes once over its operands."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        read = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        written = [v for v in tree_leaves(out) if isinstance(v, Tensor)]
        name = func.overloadpacket.__name__
        if name in _OVERWRITES or name.startswith("new_") or name.endswith("_like"):
            read = read[1:]  # of which shape and dtype matter, not the elements
        if name in _WITHOUT_MEMORY or (not func._schema.is_mutable and _are_views(written, args)):
            return out
        self.names.append(name)
        self.bytes += sum(map(touched, (*read, *written)))
        return out


def _are_views(outputs: list[Tensor], arguments: tuple[Any, ...]) -> bool:
    inputs = [v for v in tree_leaves(arguments) if isinstance(v, Tensor)]
    storages = {t.untyped_storage()._cdata for t in inputs}
    return all(t.untyped_storage()._cdata in storages for t in outputs)


@contextmanager
def saved() -> Iterator[Callable[[], int]]:
    """Gives the bytes that autograd keeps for backward, of what runs within it."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(map(touched, kept.values()))


# --- ours ------------------------------------------------------------------------------------------


@dataclass
class OpCall:
    """What one call of an op of the CUDA backend started."""

    op: str
    bytes_of_kernels: int
    bytes_of_operators: int
    kernels: list[str]
    operators: list[str]  # torch's, which our Python calls: an output set to zero
    triton: list[str]  # kernels in place of `kernels`
    mma: int  # products of matrices, by warps

    def __add__(self, other: OpCall) -> OpCall:
        """Both, by the name of the first."""
        ours, theirs = vars(self), vars(other)
        return OpCall(self.op, **{k: ours[k] + theirs[k] for k in ours if k != "op"})

    @property
    def bytes(self) -> int:
        return self.bytes_of_kernels + self.bytes_of_operators

    @property
    def launches(self) -> int:
        return len(self.kernels) + len(self.operators)


@dataclass
class Ours:
    """What a call of ours did: its ops in order, and what torch did around them."""

    calls: list[OpCall] = field(default_factory=list)
    around: Dispatched = field(default_factory=Dispatched)

    @property
    def bytes(self) -> int:
        """The ops' own operators are dispatched within `around` too."""
        return self.around.bytes + sum(c.bytes_of_kernels for c in self.calls)

    @property
    def launches(self) -> int:
        return len(self.around.names) + sum(len(c.kernels) for c in self.calls)


@contextmanager
def emulated() -> Iterator[Ours]:
    """Within it every op runs on the CUDA backend, emulated, and as it would on a GPU."""
    found = Ours()
    module = _emulated_module()
    cuda = backend("cuda")

    def run(op: str, *args: Any) -> Any:
        before = len(module.launches)
        triton = _kernels_of_triton(op, args)
        with Dispatched() as own:
            out = cuda.ops[op](*args)
        launches = module.launches[before:]
        moved = sum(x.unique_load_bytes + x.unique_store_bytes for x in launches)
        kernels = [x.kernel for x in launches]
        mma = sum(x.mma for x in launches)
        found.calls.append(OpCall(op, moved, own.bytes, kernels, own.names, triton, mma))
        return out

    ops = {op: partial(run, op) for op in cuda.ops}
    stand_in = Backend("cuda", ops, lambda op, args: [], lambda: "emulated")
    with (
        mock.patch.object(native, "_module", module),
        mock.patch.object(native, "stream_of", _no_stream),
        mock.patch.object(dispatch, "select", return_value=stand_in),
        # What is only done for tensors that the processor can look into without waiting.
        mock.patch.object(validation, "check_timestep_values"),
        mock.patch.object(sys.modules[denoising_loss.__module__], "_all_ones", return_value=False),
        found.around,
    ):
        yield found


def _emulated_module() -> Any:
    """The tests' stand-in for the extension, one schedule a launch."""
    folder = str(Path(__file__).parents[2] / "tests/cuda")
    if folder not in sys.path:
        sys.path.append(folder)
    from emulated_module import EmulatedModule

    return EmulatedModule(seeds=(0,))


@contextmanager
def _no_stream(_tensor: Tensor) -> Iterator[int]:
    yield 0


def _kernels_of_triton(op: str, args: tuple[Any, ...]) -> list[str]:
    from udp_fast.backends.triton.launch import recorded

    # Not among what torch does around ours: nothing is run, only the outputs are allocated.
    with _disable_current_modes(), recorded() as launches:
        backend("triton").ops[op](*args)
    return [launch.kernel.__name__ for launch in launches]


# --- a call ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Count:
    """One call of the benchmarks, ours and eager's."""

    case: Case
    ours: Ours
    saved: int  # bytes
    eager: Dispatched
    eager_saved: int
    operations: float | None  # floating-point, an element; None where no machine code is at hand

    @property
    def own(self) -> OpCall:
        """That of the case's op, which comes first, and of its backward where that is an op as well."""
        mine = (self.case.op, f"{self.case.op}_", f"{self.case.op}_backward")
        first, *rest = (call for call in self.ours.calls if call.op in mine)
        return sum(rest, first)

    def each(self, amount: int) -> float:
        """For an element."""
        return amount / self.case.elements


@dataclass
class Counting:
    counts: list[Count] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def operations(code: Code) -> int:
    """Floating-point operations of a turn; HADD2.F32 widens a float16, which is none."""
    return sum(
        n * _OPERATIONS.get(opcode.split(".")[0], 0)
        for opcode, n in code.loop.items()
        if not opcode.startswith("HADD2.F32")
    )


def _operations(entries: dict[str, Entry], call: OpCall, elements: int) -> float | None:
    """Of the main loops, which leaves out what is done once for a row or a chunk."""
    total, known = call.mma * _OF_MMA / elements, False
    for kernel in call.kernels:
        try:
            entry = entries.get(form_of(kernel).title)
        except Ungated:  # which the examination of the machine code reports
            continue
        known |= entry is not None
        if entry is not None and entry.turn is not None:
            total += operations(entry.code) / entry.turn.elements
    return total if known else None


def count(case: Case, entries: Iterable[Entry] = (), architecture: str = "90") -> Count:
    """Runs ours and eager once each."""
    with saved() as ours_saved, emulated() as ours:
        case.providers[OURS]()
    with saved() as eager_saved, Dispatched() as eager:
        case.providers[EAGER]()
    found = Count(case, ours, ours_saved(), eager, eager_saved(), None)
    return with_operations(found, entries, architecture)


def with_operations(found: Count, entries: Iterable[Entry], architecture: str = "90") -> Count:
    """The same call, its floating-point operations read from these."""
    by_title = {e.form.title: e for e in entries if e.architecture == architecture}
    return replace(found, operations=_operations(by_title, found.own, found.case.elements))


def counted_cases() -> Iterator[Case]:
    """Of each op that CUDA has and form the first, which is the largest, that eager does too."""
    seen = set()
    counted = {op.rstrip("_") for op in backend("cuda").ops}
    for case in chain(cases(), cases_16_bit(), attention.counted_cases()):
        if case.op not in counted:
            continue
        if EAGER in case.providers and (case.op, case.name) not in seen:
            seen.add((case.op, case.name))
            yield case


def failures(counts: Iterable[Count]) -> Iterator[str]:
    """What moves more than it must, and what was not counted."""
    reached: set[str] = set()
    promised = dict(BARS)
    for c in counts:
        title = f"{c.case.op}, {c.case.name}"
        reached |= {call.op for call in c.ours.calls}
        first = c.ours.calls[0].op
        if first.rstrip("_") != c.case.op:
            yield f"{title}: its first call is of {first}"
            continue
        least, moved = c.each(c.case.bytes_moved), c.each(c.own.bytes)
        most = min(promised.pop((c.case.op, c.case.name), math.inf), least * c.case.slack)
        if not least <= moved <= most:
            yield f"{title}: {moved:.3f} bytes an element, not from {least:.3f} to {most:.3f}"
        if c.eager.bytes < c.case.bytes_moved:
            yield f"{title}: eager is said to move less than there is"
    for op in sorted(set(backend("cuda").ops) - reached):
        yield f"op {op} of the CUDA backend is called by no benchmark: its bytes are not counted"
    for bar in promised:
        yield f"no benchmark is called {', '.join(bar)}"


def count_all() -> list[Count]:
    """A minute or two, most of it the emulator's; without machine code, so without operations."""
    return [count(case) for case in counted_cases()]


def examine(counts: Iterable[Count], entries: Iterable[Entry]) -> Counting:
    """What `count_all` found, with operations."""
    entries = list(entries)
    found = [with_operations(c, entries) for c in counts]
    return Counting(found, list(failures(found)))
