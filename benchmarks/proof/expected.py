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


def _steps(form: Form) -> bool:
    return form.kernel in ("PgdStep", "step_images", "pgd_step", "pgd_step_multi")


EXPECTED: tuple[Expected, ...] = (
    Expected(
        {"B200": 2.2},
        frozenset({"issue", "integer"}),
        _draws,
        "kernels that draw random numbers. A B200 moves the 4 bytes of a bfloat16 in and out in the"
        " time of 19 instructions. Philox' ten rounds alone are 20 wide products and 20 exclusive"
        " ors for four elements, and a logarithm, a root, a sine and a cosine for two follow: 33"
        " instructions an element, wherever the noise is not kept in memory instead, which would"
        " cost half as many bytes again.",
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
        "the sums of squares of an l2 step or ball, which are exact in float64: one unit of a"
        " GeForce for 64 of float32. Only l2 pays for it.",
    ),
    Expected(
        {"B200": 1.4},
        frozenset({"issue", "integer"}),
        _steps,
        "pgd_step in 16 bits. Checks for gradients that are not finite, bounds and rounding as stored"
        " are comparisons, selections and packing, for which sm_100 has no more units than sm_90:"
        " 137 % where types are known only at run time, 134 % and 129 % (Triton) of the typical ones.",
        is_open=True,
    ),
    Expected(
        {"B200": 1.55},
        frozenset({"issue", "integer"}),
        lambda form: form.op == "quantize" and not form.draws,
        "quantize of 16-bit values to nearest, for the same reason: 132 % in CUDA, 153 % in Triton.",
        is_open=True,
    ),
    Expected(
        {"H100": 1.1},
        frozenset({"integer"}),
        lambda form: form.op == "quantize" and form.draws,
        "quantize with random rounding of channels-last images, whose types are known only at run"
        " time: packing bytes.",
        is_open=True,
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
