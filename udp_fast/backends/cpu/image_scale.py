"""image_scale on csrc/cpu."""

from __future__ import annotations

import torch
from torch import Tensor

from .native import deliver, fresh_like, image_shape, module, operand, per_image


def image_scale(x: Tensor, scale: Tensor) -> Tensor:
    out = fresh_like(x)
    if x.numel() == 0:
        return out
    to_x, x_ = operand(x)
    to_out, written = operand(out)
    module().image_scale(
        image_shape(x.shape), to_x, per_image(scale), to_out, torch.get_num_threads()
    )
    deliver(written, out)
    return out


def image_scale_(x: Tensor, scale: Tensor) -> None:
    if x.numel() == 0:
        return
    to_x, x_ = operand(x)
    module().image_scale(
        image_shape(x.shape), to_x, per_image(scale), to_x, torch.get_num_threads()
    )
    deliver(x_, x)
