"""quantize on csrc/cpu."""

from __future__ import annotations

import torch
from torch import Tensor

from .native import deliver, fresh_like, image_shape, module, operand, per_image


def quantize(
    value: Tensor,
    original: Tensor,
    eps: Tensor,
    key: Tensor | None,
    kind: str,
    lo: float,
    hi: float,
) -> Tensor:
    out = fresh_like(original)
    if value.numel() == 0:
        return out
    to_value, value_ = operand(value)
    to_original, original_ = operand(original)
    to_out, written = operand(out)
    key = None if key is None else key.contiguous()
    module().quantize(
        image_shape(value.shape),
        to_value,
        to_original,
        per_image(eps),
        0 if key is None else key.data_ptr(),
        kind == "image",
        lo,
        hi,
        to_out,
        torch.get_num_threads(),
    )
    deliver(written, out)
    return out
