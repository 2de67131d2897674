"""image_scale on csrc/cuda."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native


def image_scale(x: Tensor, scale: Tensor) -> Tensor:
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    to_x, x_ = native.operand(x)
    to_out, written = native.operand(out)
    with native.stream_of(x) as stream:
        native.module().image_scale(
            native.image_shape(x.shape), to_x, native.per_image(scale), to_out, stream
        )
        native.deliver(written, out)
    return out


def image_scale_(x: Tensor, scale: Tensor) -> None:
    if x.numel() == 0:
        return
    to_x, x_ = native.operand(x)
    with native.stream_of(x) as stream:
        native.module().image_scale_(
            native.image_shape(x.shape), to_x, native.per_image(scale), stream
        )
        native.deliver(x_, x)
