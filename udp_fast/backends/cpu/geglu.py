"""geglu on csrc/cpu."""

from __future__ import annotations

import torch
from torch import Tensor

from .native import fresh, module


def not_supported_reasons(*tensors: Tensor) -> list[str]:
    """Why not this call, of the input and, backward, of the gradient before it."""
    for name, x in zip(("the input", "the gradient"), reversed(tensors), strict=False):
        if not x.is_cpu:
            return [f"{name} is on {x.device}, not in the processor's memory"]
        if x.dtype != torch.float32:
            return [f"{name} is {x.dtype}; only float32 is served"]
    return []


def geglu(x: Tensor) -> Tensor:
    return _run(x, None, fresh(x.new_empty((*x.shape[:-1], x.shape[-1] // 2))))


def geglu_backward(grad_y: Tensor, x: Tensor) -> Tensor:
    return _run(x, grad_y.contiguous(), fresh(x.new_empty(x.shape)))


def _run(x: Tensor, grad: Tensor | None, y: Tensor) -> Tensor:
    if x.numel() == 0:
        return y
    x, columns = x.contiguous(), x.shape[-1] // 2
    module().geglu(
        (x.numel() // (2 * columns), columns),
        x.data_ptr(),
        0 if grad is None else grad.data_ptr(),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y
