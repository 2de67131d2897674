"""The control that changes nothing: the original images."""

from __future__ import annotations

from collections.abc import Sequence

from udp_fast.diffusion import Denoiser
from udp_fast.methods.items import ImageItem, ProgressCallback
from udp_fast.methods.settings import Settings

__all__ = ["Unchanged"]


class Unchanged:
    """`none`: delta is zero."""

    needs_denoiser = False

    def __call__(
        self,
        items: Sequence[ImageItem],
        settings: Settings,
        denoiser: Denoiser | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> None:
        for item in items:
            item.delta.zero_()
