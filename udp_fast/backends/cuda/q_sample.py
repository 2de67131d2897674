"""q_sample on csrc/cuda: the noise is drawn in registers and used there."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native


def q_sample(
    x: Tensor,
    t: Tensor,
    table: Tensor,
    noise: Tensor | None,
    key: Tensor | None,
    path: str,
    return_noise: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    x_t = torch.empty_like(x, dtype=out_dtype)
    noise_out = torch.empty_like(x_t) if return_noise else x_t.new_empty((0,))
    if x.numel() == 0:
        return x_t, noise_out
    to_x, x_ = native.operand(x)
    to_noise, noise_ = native.operand(noise)
    to_x_t, written = native.operand(x_t)
    to_noise_out, written_noise = native.operand(noise_out if return_noise else None)
    t, table = t.contiguous(), table.contiguous()
    key = None if key is None else key.contiguous()
    with native.stream_of(x) as stream:
        native.module().q_sample(
            native.image_shape(x.shape),
            to_x,
            t.data_ptr(),
            table.data_ptr(),
            path == "flow",
            to_noise,
            0 if key is None else key.data_ptr(),
            to_x_t,
            to_noise_out,
            stream,
        )
        native.deliver(written, x_t)
        native.deliver(written_noise, noise_out)
    return x_t, noise_out
