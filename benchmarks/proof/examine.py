"""Compiles all kernels, and holds what came out against the gates."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import get_context
from types import ModuleType

from udp_fast.backends.registry import backend

from .chips import ARCHITECTURES, CHIPS, Chip, Prediction, occupancy, own_shared, predict
from .expected import EXPECTED, Expected, expectation
from .form import Form, Turn, failures, turn_of
from .machine_code import Code, global_access

LANGUAGES = ("CUDA", "Triton")


@dataclass(frozen=True)
class Entry:
    """A form, compiled for one architecture."""

    form: Form
    architecture: str
    code: Code

    @property
    def title(self) -> str:
        return f"{self.form.title}, sm_{self.architecture}"

    @cached_property
    def turn(self) -> Turn | None:
        return None if self.form.stream is None else turn_of(self.form.stream, self.code)

    @property
    def instructions(self) -> float | None:
        """An element."""
        return None if self.turn is None else self.code.turn / self.turn.elements

    @property
    def shared(self) -> int:
        return own_shared(self.architecture, self.code.shared) + self.form.dynamic

    @property
    def occupancy(self) -> float:
        return occupancy(self.architecture, self.form.threads, self.code.registers, self.shared)

    @property
    def chip(self) -> Chip | None:
        return next((c for c in CHIPS if c.architecture == self.architecture), None)

    @cached_property
    def prediction(self) -> Prediction | None:
        if self.turn is None or self.chip is None:
            return None
        return predict(self.chip, self.code.loop, self.turn.elements, self.turn.bytes_each)

    def product_prediction(self, chip: Chip) -> Prediction | None:
        """Of a kernel of products, for a pair. What is copied to shared memory asynchronously are tiles
        that all blocks of a head share, so it counts as instructions but not as memory's."""
        products = self.form.products
        if products is None or not self.code.loop:
            return None
        pairs = products.pairs or 32  # which unit takes longest does not depend on it
        opcodes = self.code.loop
        alone = {o: n for o, n in opcodes.items() if not o.startswith("LDGSTS")}
        accesses = ((global_access(opcode), n) for opcode, n in alone.items())
        moved = 32 * sum(access[1] * n for access, n in accesses if access)
        return predict(chip, opcodes, pairs / 32, moved / pairs, products.tensor)

    @property
    def expectation(self) -> Expected | None:
        """What accepts that memory is not the limiter."""
        if self.prediction is None or self.chip is None or self.prediction.limiter == "memory":
            return None
        over = 1 / self.prediction.share
        return expectation(self.form, self.chip.name, self.prediction.limiter, over)


@dataclass
class Examination:
    entries: list[Entry] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def _language(name: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.{name.lower()}")


def _run(name: str, unit: object) -> object:
    return _language(name).compile_unit(unit)


def examine(
    architectures: Iterable[str],
    languages: Iterable[str] = LANGUAGES,
    jobs: int = 2,
    meanwhile: Callable[[], None] = lambda: None,
) -> Examination:
    """Everything that these backends have; takes minutes where the cache knows nothing.

    ``meanwhile`` is called in a thread of its own while other processes compile.
    """
    architectures, languages = tuple(architectures), tuple(languages)
    todo = [(name, unit) for name in languages for unit in _language(name).units(architectures)]
    found = Examination()
    # Not a fork: compilers have threads.
    with (
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool,
        ThreadPoolExecutor(1) as aside,
    ):
        running = {pool.submit(_run, name, unit): (name, unit) for name, unit in todo}
        beside = aside.submit(meanwhile)
        results = {}
        for done, future in enumerate(as_completed(running), 1):
            results[running[future]] = future.result()
            if sys.stderr.isatty():
                print(f"\r{done} of {len(running)} compiled", end="", file=sys.stderr)
        beside.result()
    for key in todo:
        _READERS[key[0]](found, key[1], results[key])
    for name in languages:
        found.failures += uncovered(name, found)
    for entry in found.entries:
        found.failures += [
            f"{entry.title}: {text}"
            for text in failures(entry.form, entry.architecture, entry.code)
        ]
    found.failures += _unexpected_limiters(found.entries)
    if set(architectures) == set(ARCHITECTURES) and set(languages) == set(LANGUAGES):
        found.failures += _needless(found.entries)
    return found


def _unexpected_limiters(entries: Iterable[Entry]) -> Iterator[str]:
    """Streaming kernels that are predicted to wait for something else than memory."""
    for entry in entries:
        if entry.prediction is None or entry.prediction.limiter == "memory":
            continue
        if entry.expectation is None:
            assert entry.chip is not None
            yield (
                f"{entry.title}: bound by {entry.prediction.limiter} on {entry.chip.name},"
                f" {1 / entry.prediction.share:.0%} of memory's time"
            )


def _needless(entries: Iterable[Entry]) -> list[str]:
    """Accepted limiters that nothing has."""
    used = {(id(e.expectation), e.chip.name) for e in entries if e.expectation and e.chip}
    return [
        f"expected.py accepts for {chip} what no kernel needs: {expected.reason}"
        for expected in EXPECTED
        for chip in expected.most
        if (id(expected), chip) not in used
    ]


def _read_cuda(found: Examination, unit: object, codes: dict[str, dict[str, Code]]) -> None:
    from . import cuda

    for architecture, kernels in codes.items():
        for signature, code in kernels.items():
            try:
                form = cuda.form_of(signature)
            except cuda.Ungated as error:
                if str(error) not in found.failures:
                    found.failures.append(str(error))
            else:
                found.entries.append(Entry(form, architecture, code))


def _read_triton(found: Examination, unit: object, codes: dict[str, Code]) -> None:
    from . import triton

    by_name = {variant.name: variant for variant in triton.variants()}
    for name, code in codes.items():
        architecture = unit.architecture  # type: ignore[attr-defined]
        found.entries.append(Entry(triton.form_of(by_name[name]), architecture, code))


_READERS: dict[str, Callable[[Examination, object, dict], None]] = {
    "CUDA": _read_cuda,
    "Triton": _read_triton,
}


def uncovered(language: str, found: Examination) -> list[str]:
    """What a backend has and the examination has not, and the reverse."""
    mine = [entry for entry in found.entries if entry.form.language == language]
    seen = {entry.form.op for entry in mine}
    if language == "Triton":
        from . import triton

        seen |= triton.ops()  # by way of another op's kernels, too
    errors = [
        f"op {op} of the {language} backend has no kernel that is examined"
        for op in sorted(set(backend(language.lower()).ops) - seen)
    ]
    if language == "CUDA":
        from . import cuda

        used = {entry.form.kernel for entry in mine}
        errors += [f"no CUDA kernel {k}: its gate demands nothing" for k in cuda.unused(used)]
    return errors
