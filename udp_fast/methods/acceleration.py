"""The surrogate on our kernels, while its weights stay as they are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["accelerated"]


@contextmanager
def accelerated(module: nn.Module) -> Iterator[None]:
    """A network of diffusers' with its layers on our ops inside (`udp_fast.accelerate`); any other as it
    is, for what its parts do to each other is its own."""
    # Not imported for the sake of the question: a network of diffusers' has brought it in.
    diffusers = sys.modules.get("diffusers")
    if diffusers is None or not isinstance(module, diffusers.ModelMixin):
        yield
        return
    from udp_fast.compat.diffusers import accelerate

    with accelerate(module, freeze=False):
        yield
