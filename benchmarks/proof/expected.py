"""Streaming kernels that the count says are not bound by memory, and why that is accepted.

Anything else that is not bound by memory is a failure, and so is an entry that nothing needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .form import Form


@dataclass(frozen=True)
class Expected:
    #: Chip -> how long the limiter may take at most, by memory's time: no licence to get worse.
    most: Mapping[str, float]
    limiters: frozenset[str]
    of: Callable[[Form], bool]
    reason: str
    #: Work that is left, rather than something that cannot be otherwise.
    is_open: bool = False


def _only_reads(form: Form) -> bool:
    return form.draws and form.stream is not None and not form.stream.stores


def _draws(form: Form) -> bool:
    return form.draws and not _only_reads(form)


EXPECTED: tuple[Expected, ...] = (
    Expected(
        {"B200": 2.2},
        frozenset({"issue", "integer"}),
        _draws,
        "kernels that draw random numbers. A B200 moves 4 bytes in the time of 19 instructions. Ten"
        " rounds of Philox are 20 wide products and 20 exclusive ors for four elements, 10 instructions"
        " an element; a normal takes 12 more for its share of a logarithm, a root, a sine and a cosine,"
        " in whose place the GPU's own would be off by more than the 1e-6 that all backends agree to;"
        " the rest mixes or rounds, converts and packs. Reading stored noise would take 6 bytes, 29"
        " instructions' time, after somebody had drawn and written it.",
    ),
    Expected(
        {"A100": 1.25},
        frozenset({"float"}),
        _draws,
        "kernels that draw normals, in 16 bits. An A100 has half of the other chips' float32 units,"
        " and Philox' products run on them too.",
    ),
    Expected(
        {"A100": 1.9, "H100": 1.65, "B200": 3.3},
        frozenset({"float", "issue"}),
        _only_reads,
        "the loss against drawn noise without its gradient, in 16 bits: it draws as many numbers for"
        " half of the bytes. Training and protection ask for the gradient.",
    ),
    Expected(
        {"RTX 4090": 2.4},
        frozenset({"float64"}),
        lambda form: form.kernel in ("SquareSums", "gradient_square", "stepped_square"),
        "the sums of squares of an l2 step or ball: one float64 unit of a GeForce for 64 of float32."
        " In float64 the squares are exact, which makes the updates of all backends equal in every bit;"
        " sums in pairs of floats would take some ten instructions an element more, which is all that a"
        " B200 can do in the time of two bytes."
        " Only l2 pays for it.",
    ),
)


def expectation(form: Form, chip: str, limiter: str, over: float) -> Expected | None:
    """What accepts that a unit takes `over` times as long as memory; None: nothing does."""
    return next(
        (
            e
            for e in EXPECTED
            if over <= e.most.get(chip, 0.0) and limiter in e.limiters and e.of(form)
        ),
        None,
    )
