"""What a run wants of torch, whatever its caller has switched on or off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from udp_fast.methods.items import ImageItem

__all__ = ["ordinary", "own_modes", "writable_deltas"]


@contextmanager
def own_modes() -> Iterator[None]:
    """Autograd on, inference mode and autocast off; the caller's come back on exit.

    Gradients are the method's own business, wanted under ``torch.no_grad()`` too. Autocast would make
    the bytes of a protected picture depend on where in a program `protect` is called.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def ordinary(tensor: Tensor) -> Tensor:
    """A tensor that autograd may save: one made under ``torch.inference_mode()`` is copied."""
    return tensor.clone() if tensor.is_inference() else tensor


@contextmanager
def writable_deltas(items: Sequence[ImageItem]) -> Iterator[None]:
    """Outside of inference mode torch writes to none of its tensors: such a delta is lent a copy,
    and holds what the copy holds on exit."""
    lent = [(item, item.delta) for item in items if item.delta.is_inference()]
    for item, delta in lent:
        item.delta = delta.clone()
    try:
        yield
    finally:
        with torch.inference_mode():
            for item, delta in lent:
                delta.copy_(item.delta)
                item.delta = delta
