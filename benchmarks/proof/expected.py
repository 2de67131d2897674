"""Streaming kernels that the count says are not bound by memory, and why that is accepted.

Anything else that is not bound by memory is a failure, and so is an entry that nothing needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .form import Form


@dataclass(frozen=True)
class Expected:
    chip: str
    limiters: frozenset[str]
    of: Callable[[Form], bool]
    reason: str
    #: Work that is left, rather than something that cannot be otherwise.
    is_open: bool = False


def _draws(form: Form) -> bool:
    return form.draws


def _steps(form: Form) -> bool:
    return form.kernel in ("PgdStep", "step_images", "pgd_step", "pgd_step_multi")


EXPECTED: tuple[Expected, ...] = (
    Expected(
        "B200",
        frozenset({"issue", "integer", "float"}),
        _draws,
        "kernels that draw random numbers. A B200 moves the 4 bytes of a bfloat16 in and out in the"
        " time of 19 instructions. Philox' ten rounds alone are 20 wide products and 20 exclusive"
        " ors for four elements, and a logarithm, a root, a sine and a cosine for two follow: 33"
        " instructions an element, wherever the noise is not kept in memory instead, which would"
        " cost half as many bytes again.",
    ),
    Expected(
        "A100",
        frozenset({"float"}),
        _draws,
        "kernels that draw normals, in 16 bits. An A100 has half of the other chips' float32 units,"
        " and Philox' products run on them too: together up to a fifth longer than memory takes.",
    ),
    Expected(
        "RTX 4090",
        frozenset({"float64"}),
        lambda form: form.kernel == "SquareSums",
        "the sums of squares of an l2 step or ball, which are exact in float64: one unit of a"
        " GeForce for 64 of float32. Only l2 pays for it.",
    ),
    Expected(
        "B200",
        frozenset({"issue", "integer"}),
        _steps,
        "pgd_step in 16 bits. Checks for gradients that are not finite, bounds and rounding as stored"
        " are comparisons and selections, which have the 64 integer units of a multiprocessor: up to"
        " 28 % longer than memory takes, if sm_100 has no more of them than sm_90.",
        is_open=True,
    ),
    Expected(
        "B200",
        frozenset({"issue", "integer"}),
        lambda form: form.op == "quantize",
        "quantize of 16-bit values to nearest, for the same reason.",
        is_open=True,
    ),
    Expected(
        "H100",
        frozenset({"integer"}),
        lambda form: form.op == "quantize" and form.draws,
        "quantize with random rounding of channels-last images, whose types are known only at run"
        " time: packing bytes, 6 % over memory.",
        is_open=True,
    ),
)


def expectation(form: Form, chip: str, limiter: str) -> Expected | None:
    return next(
        (e for e in EXPECTED if e.chip == chip and limiter in e.limiters and e.of(form)), None
    )
