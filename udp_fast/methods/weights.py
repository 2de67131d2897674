"""Who may change the surrogate's weights, and when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

__all__ = ["frozen", "preserved", "trainable"]


@contextmanager
def preserved(module: nn.Module) -> Iterator[None]:
    """Restore weights, buffers, gradients and whether they are wanted, and modes on exit, however
    it comes.

    The modes are those of every submodule: a model may be trained with some layers in eval mode.
    Inside, the gradients begin as None, so that nothing is added to those of the caller.
    """
    state = {name: value.detach().clone() for name, value in _tensors(module)}
    before = [(p, p.requires_grad, p.grad) for p in module.parameters()]
    modes = _modes(module)
    try:
        for parameter, _, _ in before:
            parameter.grad = None
        yield
    finally:
        with torch.no_grad():
            for name, value in _tensors(module):
                value.copy_(state[name])
        for parameter, requires_grad, gradient in before:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
        _restore_modes(module, modes)


@contextmanager
def trainable(module: nn.Module) -> Iterator[None]:
    """Weights and buffers made under ``torch.inference_mode()``, which can neither be differentiated
    nor written to outside of it, are copies inside; the module comes back with its own."""
    copies: dict[int, torch.Tensor] = {}  # a tensor that two layers share stays shared
    lent: list[tuple[dict[str, Any], str, torch.Tensor]] = []
    for part in module.modules():
        for held in cast(tuple[dict[str, Any], ...], (part._parameters, part._buffers)):
            for name, value in held.items():
                if value is None or not value.is_inference():
                    continue
                if id(value) not in copies:
                    copies[id(value)] = _copy(value)
                lent.append((held, name, value))
    for held, name, value in lent:
        held[name] = copies[id(value)]
    try:
        yield
    finally:
        for held, name, value in lent:
            held[name] = value


def _copy(value: torch.Tensor) -> torch.Tensor:
    copy = value.detach().clone()
    return nn.Parameter(copy, value.requires_grad) if isinstance(value, nn.Parameter) else copy


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers, those that a state_dict leaves out as well."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def _modes(module: nn.Module) -> list[tuple[nn.Module, bool]]:
    return [(part, part.training) for part in module.modules()]


def _restore_modes(module: nn.Module, modes: list[tuple[nn.Module, bool]]) -> None:
    module.train(modes[0][1])  # some modules do more there than set the flag
    for part, training in modes:
        part.training = training


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No weight gradients are computed inside: only the way to the image is differentiated.

    The module is in eval mode; it and every submodule come back in the mode that they were in.
    """
    wanted = [(p, p.requires_grad) for p in module.parameters()]
    modes = _modes(module)
    module.eval().requires_grad_(False)
    try:
        yield
    finally:
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)
        _restore_modes(module, modes)
