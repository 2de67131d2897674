"""quantize on csrc/cuda."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native


def quantize(
    value: Tensor,
    original: Tensor,
    eps: Tensor,
    key: Tensor | None,
    kind: str,
    lo: float,
    hi: float,
) -> Tensor:
    out = torch.empty_like(original)
    if value.numel() == 0:
        return out
    to_value, value_ = native.operand(value)
    to_original, original_ = native.operand(original)
    to_out, written = native.operand(out)
    key = None if key is None else key.contiguous()
    with native.stream_of(value) as stream:
        native.module().quantize(
            native.image_shape(value.shape),
            to_value,
            to_original,
            native.per_image(eps),
            0 if key is None else key.data_ptr(),
            kind == "image",
            lo,
            hi,
            to_out,
            stream,
        )
        native.deliver(written, out)
    return out
