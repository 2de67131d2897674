"""Noise schedules: the table of cumulative products that turns a clean image into a noisy one.

A schedule is nothing but ``alphas_cumprod``, float32 [T], falling from about 1 to about 0. The
betas behind the table are computed as in the papers they come from; the products in float64, so
that the table is the correctly rounded one up to the last bit or two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["NoiseSchedule"]


@dataclass(frozen=True)
class NoiseSchedule:
    """The signal power that is left after each forward diffusion step.

    Args:
        alphas_cumprod: float32 [T], each in [0, 1], never rising. ``alphas_cumprod[t]`` belongs
            to timestep ``t`` in 0 … T-1, as in diffusers:
            ``x_t = sqrt(alphas_cumprod[t]) * x + sqrt(1 - alphas_cumprod[t]) * n``.

    Raises:
        TypeError: if the table is no floating-point tensor.
        ValueError: if it is empty, not 1-D, leaves [0, 1], rises, or holds a NaN.
    """

    alphas_cumprod: Tensor

    def __post_init__(self) -> None:
        table = self.alphas_cumprod
        if not isinstance(table, Tensor) or not table.is_floating_point():
            got = table.dtype if isinstance(table, Tensor) else type(table).__name__
            raise TypeError(f"alphas_cumprod: got {got}, expected a floating-point tensor [T]")
        if table.ndim != 1 or table.numel() == 0:
            raise ValueError(
                f"alphas_cumprod: got shape {tuple(table.shape)}, expected [T] with T >= 1"
            )
        table = table.detach().to(device="cpu", dtype=torch.float32).contiguous()
        if not bool(((table >= 0) & (table <= 1)).all()):
            raise ValueError("alphas_cumprod: got values outside [0, 1] or NaN, expected none")
        if bool((table[1:] > table[:-1]).any()):
            raise ValueError("alphas_cumprod: got a table that rises, expected one that never does")
        object.__setattr__(self, "alphas_cumprod", table)

    def __len__(self) -> int:
        return int(self.alphas_cumprod.numel())

    @classmethod
    def from_betas(cls, betas: Tensor) -> NoiseSchedule:
        """From the variances added at each step, ``betas`` float [T] in [0, 1]."""
        return cls(torch.cumprod(1.0 - betas.double(), dim=0).float())

    @classmethod
    def linear(
        cls, timesteps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> NoiseSchedule:
        """Betas in equal steps (Ho et al., 2020, arXiv 2006.11239): the DDPM default."""
        _check_timesteps(timesteps)
        return cls.from_betas(torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64))

    @classmethod
    def scaled_linear(
        cls, timesteps: int = 1000, *, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> NoiseSchedule:
        """Square roots of the betas in equal steps (Rombach et al., 2022): Stable Diffusion's."""
        _check_timesteps(timesteps)
        roots = torch.linspace(
            math.sqrt(beta_start), math.sqrt(beta_end), timesteps, dtype=torch.float64
        )
        return cls.from_betas(roots.square())

    @classmethod
    def cosine(cls, timesteps: int = 1000, *, max_beta: float = 0.999) -> NoiseSchedule:
        """Squared-cosine signal power (Nichol & Dhariwal, 2021, arXiv 2102.09672)."""
        _check_timesteps(timesteps)
        u = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        power = torch.cos((u + 0.008) / 1.008 * (math.pi / 2)).square()
        return cls.from_betas((1.0 - power[1:] / power[:-1]).clamp(max=max_beta))

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> NoiseSchedule:
        """The table of a diffusers scheduler (anything with an ``alphas_cumprod`` tensor [T])."""
        table = getattr(scheduler, "alphas_cumprod", None)
        if table is None:
            raise TypeError(
                f"scheduler: expected an object with alphas_cumprod (a DDPM-like diffusers "
                f"scheduler), got {type(scheduler).__name__}"
            )
        return cls(torch.as_tensor(table))


def _check_timesteps(timesteps: int) -> None:
    if timesteps < 1:
        raise ValueError(f"timesteps: got {timesteps}, expected at least 1")
