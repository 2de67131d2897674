"""Who may change the surrogate's weights, and when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["frozen", "preserved"]


@contextmanager
def preserved(module: nn.Module) -> Iterator[None]:
    """Restore weights, buffers, gradients-wanted flags and mode on exit, however it comes."""
    state = {name: value.detach().clone() for name, value in module.state_dict().items()}
    wanted = [(p, p.requires_grad) for p in module.parameters()]
    training = module.training
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in module.state_dict().items():
                value.copy_(state[name])
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)
            parameter.grad = None
        module.train(training)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No weight gradients are computed inside: only the way to the image is differentiated."""
    wanted = [(p, p.requires_grad) for p in module.parameters()]
    training = module.training
    module.eval().requires_grad_(False)
    try:
        yield
    finally:
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)
        module.train(training)
