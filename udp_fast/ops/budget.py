"""The perturbation budget, typed: this field's scripts write 8, 8/255 and 16/255 for one thing."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import Any

from ..backends.reference.quantize import LEVEL_SLACK


@dataclass(frozen=True)
class Budget:
    """An L-infinity budget ``eps`` in units of an image in [0, 1].

    Build it with `Budget.linf`. ``levels`` is the number of whole 8-bit levels it allows.
    """

    eps: float

    def __post_init__(self) -> None:
        if not isinstance(self.eps, float) or not math.isfinite(self.eps) or not 0 <= self.eps <= 1:
            raise ValueError(f"eps: got {self.eps!r}, {_expected(self.eps)}")

    @classmethod
    def linf(cls, value: Budget | str | float) -> Budget:
        """A budget from ``"8/255"``, ``"8 levels"``, ``"0.03"`` or a float fraction of the range.

        Raises:
            ValueError: not a number, negative, above 1, NaN: a bare 8 is ambiguous and refused.
        """
        if isinstance(value, Budget):
            return value
        if isinstance(value, str):
            parsed = _parse(value)
            if not 0 <= parsed <= 1:
                raise ValueError(f"eps: got {value!r}, {_expected(parsed)}")
            return cls(parsed)
        number: Any = value
        if isinstance(number, bool) or not isinstance(number, Real):
            raise TypeError(
                f"eps: got {type(number).__name__}, expected a Budget, a string such as '8/255' or a"
                " float in [0, 1]"
            )
        return cls(float(number))

    @property
    def levels(self) -> int:
        """Whole 8-bit levels within the budget: max|out - original| <= levels after `quantize`."""
        return math.floor(self.eps * 255 + LEVEL_SLACK)

    def __str__(self) -> str:
        levels = round(self.eps * 255)
        return (
            f"{levels}/255"
            if math.isclose(self.eps, levels / 255, abs_tol=1e-9)
            else f"{self.eps:g}"
        )


def _expected(value: Any) -> str:
    hint = ""
    if isinstance(value, float) and value > 1:
        hint = " (8/255, not 8)"
    elif isinstance(value, float) and value < 0:
        hint = " (a budget has no sign)"
    return f"expected a finite fraction of the range in [0, 1]{hint}"


def _parse(text: str) -> float:
    levels = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*levels?\s*", text)
    try:
        return (
            float(Fraction(levels[1]) / 255) if levels else float(Fraction(text.replace(" ", "")))
        )
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(
            f"eps: got {text!r}, expected a fraction such as '8/255', '8 levels' or '0.03'"
        ) from None
