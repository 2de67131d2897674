"""The methods by name, and the one function that runs them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from udp_fast.diffusion import Denoiser, load_denoiser
from udp_fast.methods.eudp import EUDP
from udp_fast.methods.items import ImageItem, ProgressCallback
from udp_fast.methods.modes import own_modes, writable_deltas
from udp_fast.methods.random_noise import RandomNoise
from udp_fast.methods.settings import Settings
from udp_fast.methods.udp import UDP
from udp_fast.methods.unchanged import Unchanged
from udp_fast.methods.weights import trainable

__all__ = ["METHODS", "check_method", "protect"]

#: A method is called with (items, settings, denoiser, on_progress) and fills each item's delta.
METHODS: dict[str, type[Any]] = {
    "eudp": EUDP,
    "udp": UDP,
    "random": RandomNoise,
    "none": Unchanged,
}


def check_method(name: str) -> None:
    """Raise a ValueError that lists the methods if ``name`` is none of them."""
    if name not in METHODS:
        raise ValueError(f"method: got {name!r}, expected one of {', '.join(METHODS)}")


@own_modes()
def protect(
    items: Sequence[ImageItem],
    *,
    method: str = "eudp",
    settings: Settings | None = None,
    denoiser: Denoiser | None = None,
    on_progress: ProgressCallback | None = None,
) -> None:
    """Perturb a group of images: fills ``item.delta`` of each in place.

    The caller's grad mode, inference mode and autocast change nothing.

    Args:
        items: images that are protected together: the surrogate adapts to all of them.
        method: "eudp", "udp", or the controls "random" and "none".
        settings: default ``Settings.for_method(method)``.
        denoiser: the surrogate; default the one shipped with the package. Its weights are changed
            while this runs and restored before it returns or raises.
        on_progress: called after each step with a ``Progress``; may raise to stop.

    Raises:
        ValueError: an unknown method, or two items with one image_id.
    """
    check_method(method)
    if len({item.image_id for item in items}) != len(items):
        raise ValueError("items: got two of one image_id, expected distinct ones")
    if not items:
        return
    run = METHODS[method]()
    if run.needs_denoiser and denoiser is None:
        denoiser = load_denoiser()
    with ExitStack() as stack:
        stack.enter_context(writable_deltas(items))
        if denoiser is not None:
            stack.enter_context(trainable(denoiser.module))
        run(items, settings or Settings.for_method(method), denoiser, on_progress)
