"""Enhanced UDP: the alternation with timesteps from the noise scheduler."""

from __future__ import annotations

from collections.abc import Sequence

from udp_fast.diffusion import Denoiser, TimestepSampler
from udp_fast.methods.alternation import alternate
from udp_fast.methods.items import ImageItem, ProgressCallback
from udp_fast.methods.settings import Settings

__all__ = ["EUDP"]


class EUDP:
    """`eudp`: p(t) proportional to sqrt(alphas_cumprod[t])^gamma, ``settings.gamma``."""

    needs_denoiser = True

    def __call__(
        self,
        items: Sequence[ImageItem],
        settings: Settings,
        denoiser: Denoiser,
        on_progress: ProgressCallback | None = None,
    ) -> None:
        sampler = TimestepSampler.eudp(denoiser.schedule, gamma=settings.gamma)
        alternate(items, denoiser, sampler, settings, on_progress)
