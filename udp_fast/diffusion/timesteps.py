"""Timestep samplers: which noise levels an attack step looks at.

The gradient that reaches the perturbation carries the factor sqrt(alphas_cumprod[t]), so late,
noisy timesteps contribute almost nothing. EUDP (Zhao et al., 2023, arXiv 2306.01902) therefore
draws t from the noise scheduler. The authors published no code; our reading is
p(t) proportional to sqrt(alphas_cumprod[t])^gamma with gamma = 1, and any other law may be given.

Draws are stratified: the inverse of the cumulative distribution is taken at points that are spread
evenly over (0, 1) instead of independent ones. Each draw keeps the law p, so averages stay
unbiased, while the variance between timesteps mostly cancels.

Draws may also be taken from a proposal law q instead of p and weighted by p/q, which leaves every
expectation as it is (importance sampling). For an epsilon loss the gradient that reaches the image
grows like the signal-to-noise ratio, over six orders of magnitude; without a proposal a few lucky
draws would decide each step. The v loss is far more even, since its target holds the image itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from udp_fast.diffusion.schedules import NoiseSchedule

__all__ = ["TimestepSampler"]


@dataclass(frozen=True)
class TimestepSampler:
    """A law over timesteps 0 … T-1.

    Args:
        probabilities: float [T], non-negative with a positive finite sum; normalised on entry.
        proposal: the law that is drawn from instead, likewise; positive wherever probabilities
            is. None: probabilities itself, all weights one.

    Raises:
        TypeError, ValueError: not a 1-D floating-point tensor, or not a law.
    """

    probabilities: Tensor
    proposal: Tensor | None = None

    def __post_init__(self) -> None:
        p = _law("probabilities", self.probabilities)
        object.__setattr__(self, "probabilities", p)
        if self.proposal is None:
            return
        q = _law("proposal", self.proposal)
        if q.shape != p.shape or bool(((q == 0) & (p > 0)).any()):
            raise ValueError(
                f"proposal: expected {len(p)} values, positive wherever probabilities is, "
                f"got {len(q)} values, {int((q == 0).sum())} of them zero"
            )
        object.__setattr__(self, "proposal", q)

    @classmethod
    def uniform(cls, timesteps: int) -> TimestepSampler:
        """Every timestep alike: UDP."""
        if timesteps < 1:
            raise ValueError(f"timesteps: got {timesteps}, expected at least 1")
        return cls(torch.ones(timesteps, dtype=torch.float64))

    @classmethod
    def eudp(cls, schedule: NoiseSchedule, *, gamma: float = 1.0) -> TimestepSampler:
        """p(t) proportional to sqrt(alphas_cumprod[t])^gamma; gamma = 0 is the uniform law."""
        if not math.isfinite(gamma) or gamma < 0:
            raise ValueError(f"gamma: got {gamma}, expected a finite number >= 0")
        return cls(schedule.alphas_cumprod.double().pow(gamma / 2))

    def with_importance(self, importance: Tensor) -> TimestepSampler:
        """The same law, drawn in proportion to probabilities * importance and weighted back.

        The variance is least when importance is the gradient's size at each timestep, float [T].
        """
        return TimestepSampler(
            self.probabilities, _law("importance", importance) * self.probabilities
        )

    def weights(self, t: Tensor) -> Tensor:
        """p(t) / q(t) of drawn timesteps, float32 like ``t``; all ones without a proposal."""
        if self.proposal is None:
            return torch.ones(t.shape)
        return (self.probabilities[t] / self.proposal[t]).float()

    def independent(self, rows: int, draws: int, *, seed: int | Sequence[int]) -> Tensor:
        """Independent draws, int64 [draws, rows]: the control for :meth:`stratified`."""
        return self._invert(_generator(seed).random((draws, rows)))

    def stratified(self, rows: int, draws: int, *, seed: int | Sequence[int]) -> Tensor:
        """Stratified draws, int64 [draws, rows], each with the law p when averaged over draws.

        Draw d of every row lies in the d-th of ``draws`` equal strata of the cumulative
        distribution; within it the rows (images, tiles) take randomly permuted sub-strata, one
        each. ``seed`` is one integer or several (seed, round, step, …); equal seeds give equal
        draws.
        """
        rng = _generator(seed)
        order = rng.permuted(np.tile(np.arange(rows), (draws, 1)), axis=1)
        within = (order + rng.random((draws, rows))) / max(rows, 1)
        return self._invert((np.arange(draws)[:, None] + within) / max(draws, 1))

    def _invert(self, u: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Tensor:
        law = self.probabilities if self.proposal is None else self.proposal
        cumulative = law.cumsum(0)
        # Scaling by the last value makes the table end at exactly one, and u < 1.
        cumulative = cumulative / cumulative[-1]
        t = torch.searchsorted(cumulative, torch.from_numpy(u), right=True)
        # u next to 1 may round up to 1: the last timestep of positive probability.
        last = int(law.nonzero()[-1])
        return t.clamp_(max=last)


def _law(name: str, values: Tensor) -> Tensor:
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name}: got {got}, expected a floating-point tensor [T]")
    if values.ndim != 1 or values.numel() == 0:
        raise ValueError(f"{name}: got shape {tuple(values.shape)}, expected [T] with T >= 1")
    values = values.detach().to(device="cpu", dtype=torch.float64)
    total = float(values.sum())
    if not math.isfinite(total) or total <= 0 or bool((values < 0).any()):
        raise ValueError(
            f"{name}: expected finite, non-negative values with a positive sum, "
            f"got minimum {float(values.min())} and sum {total}"
        )
    return values / total


def _generator(seed: int | Sequence[int]) -> np.random.Generator:
    words = [seed] if isinstance(seed, int) else list(seed)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([w % 2**64 for w in words])))
