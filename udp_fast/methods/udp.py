"""Unlearnable Diffusion Perturbation: the alternation with uniform timesteps."""

from __future__ import annotations

from collections.abc import Sequence

from udp_fast.diffusion import Denoiser, TimestepSampler
from udp_fast.methods.alternation import alternate
from udp_fast.methods.items import ImageItem, ProgressCallback
from udp_fast.methods.settings import Settings

__all__ = ["UDP"]


class UDP:
    """`udp`: p(t) uniform."""

    needs_denoiser = True

    def __call__(
        self,
        items: Sequence[ImageItem],
        settings: Settings,
        denoiser: Denoiser,
        on_progress: ProgressCallback | None = None,
    ) -> None:
        sampler = TimestepSampler.uniform(len(denoiser.schedule))
        alternate(items, denoiser, sampler, settings, on_progress)
