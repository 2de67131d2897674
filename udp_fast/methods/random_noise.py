"""The control every claim is measured against: random signs of the same budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from udp_fast.diffusion import Denoiser
from udp_fast.methods.items import ImageItem, ProgressCallback
from udp_fast.methods.settings import Settings
from udp_fast.ops import noise_key, pgd_step_, q_sample
from udp_fast.ops.noise import Stream

__all__ = ["RandomNoise", "random_signs_"]


def random_signs_(item: ImageItem, settings: Settings, *, stream: Stream) -> None:
    """Set ``item.delta`` to +-eps with equal chances, where the range of the image allows it.

    The signs are those of the image's own Gaussian noise: at alphas_cumprod = 0 the noisy image
    *is* the noise, and one sign step of size eps along it, from zero, is projected as any other.
    """
    item.delta.zero_()
    pixels = item.original.unsqueeze(0)
    device = pixels.device
    key = noise_key(settings.seed, [item.image_id], stream=stream, device=device)
    noise = q_sample(
        torch.zeros(pixels.shape, device=device),
        torch.zeros(1, dtype=torch.int64, device=device),
        torch.zeros(1, device=device),
        key=key,
    )
    pgd_step_(
        item.delta.unsqueeze(0),
        noise,
        pixels,
        alpha=settings.eps,
        eps=settings.eps,
        mask=item.batched_mask,
    )


class RandomNoise:
    """`random`: no model, no optimisation."""

    needs_denoiser = False

    def __call__(
        self,
        items: Sequence[ImageItem],
        settings: Settings,
        denoiser: Denoiser | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> None:
        for item in items:
            random_signs_(item, settings, stream=Stream.RANDOM_SIGN)
