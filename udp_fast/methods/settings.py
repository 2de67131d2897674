"""The settings of the methods, checked once, where they are made."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from udp_fast.ops import Budget
from udp_fast.ops.validation import is_integer, is_number

__all__ = ["Settings"]

_PER_METHOD: dict[str, dict[str, Any]] = {"udp": {"gamma": 0.0}}


@dataclass(frozen=True)
class Settings:
    """All that shapes a perturbation besides the model.

    Args:
        eps: L-infinity budget; anything ``Budget.linf`` takes ("8/255", a fraction in [0, 1]).
        alpha: step size in [0, 1] image units; None for 2 eps, which takes every pixel to the side
            of the budget that its gradient points to: measured here, smaller and decaying steps
            gain less at equal cost.
        steps: PGD steps per round and image.
        rounds: alternations of surrogate training and PGD.
        draws: timestep (and noise) draws averaged in one PGD step.
        surrogate_steps: optimiser steps per round on crops of the protected images.
        surrogate_lr: learning rate of AdamW.
        surrogate_batch: crops in one optimiser step.
        surrogate_crop: side of these crops in pixels.
        gamma: timesteps follow sqrt(alphas_cumprod)^gamma; 0 is uniform.
        importance: draw timesteps where the gradient is large and weight them back; the expected
            gradient stays, its variance falls.
        tile: largest tile side in pixels.
        overlap: pixels shared by neighbouring tiles; also how far the grid moves between steps.
        random_start: begin at random signs of size eps instead of at zero.
        seed: any integer.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.
    """

    eps: Budget = dataclasses.field(default_factory=lambda: Budget.linf("8/255"))
    alpha: float | None = None
    steps: int = 4
    rounds: int = 3
    draws: int = 3
    surrogate_steps: int = 12
    surrogate_lr: float = 2e-4
    surrogate_batch: int = 8
    surrogate_crop: int = 64
    gamma: float = 1.0
    importance: bool = True
    tile: int = 160
    overlap: int = 16
    random_start: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", Budget.linf(self.eps))
        lowest = {
            "steps": 1,
            "rounds": 1,
            "draws": 1,
            "surrogate_steps": 0,
            "surrogate_batch": 1,
            "surrogate_crop": 8,
            "tile": 16,
            "overlap": 0,
        }
        for name in (*lowest, "seed"):
            value = getattr(self, name)
            if not is_integer(value):
                raise TypeError(f"{name}: got {type(value).__name__}, expected an integer")
            if name in lowest and value < lowest[name]:
                raise ValueError(f"{name}: got {value}, expected at least {lowest[name]}")
            object.__setattr__(self, name, int(value))  # numpy's wrap around, and are no JSON
        for name in ("alpha", "surrogate_lr", "gamma"):
            value = getattr(self, name)
            if value is None and name == "alpha":
                continue
            if not is_number(value):
                raise TypeError(f"{name}: got {type(value).__name__}, expected a number")
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: got {value}, expected a finite number >= 0")
            object.__setattr__(self, name, float(value))
        if self.alpha is not None and self.alpha > 1:
            raise ValueError(
                f"alpha: got {self.alpha}, expected a step in [0, 1] image units, such as 2/255"
            )
        if 2 * self.overlap > self.tile:
            raise ValueError(
                f"overlap: got {self.overlap}, expected at most half of tile ({self.tile} pixels)"
            )

    @property
    def step_size(self) -> float:
        """alpha, or its default, in [0, 1] image units."""
        return 2 * self.eps.eps if self.alpha is None else self.alpha

    @classmethod
    def for_method(cls, name: str, **overrides: Any) -> Settings:
        """The defaults of a method ("udp", "eudp", "random", "none"), some of them replaced.

        Raises:
            ValueError: an unknown method or setting.
        """
        from udp_fast.methods.registry import check_method

        check_method(name)
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(overrides) - known)
        if unknown:
            raise ValueError(
                f"settings: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}"
            )
        return cls(**{**_PER_METHOD.get(name, {}), **overrides})
