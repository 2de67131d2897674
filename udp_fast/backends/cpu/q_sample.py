"""q_sample on csrc/cpu: the noise is drawn into the first cache and used there."""

from __future__ import annotations

import torch
from torch import Tensor

from .native import deliver, fresh, fresh_like, image_shape, module, operand, per_image


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
    x_t = fresh(torch.empty_like(x, dtype=out_dtype))
    noise_out = fresh_like(x_t) if return_noise else x_t.new_empty((0,))
    if x.numel() == 0:
        return x_t, noise_out
    to_x, x_ = operand(x)
    to_noise, noise_ = operand(noise)
    to_x_t, x_t_ = operand(x_t)
    to_noise_out, noise_out_ = operand(noise_out if return_noise else None)
    table = table.contiguous()
    key = None if key is None else key.contiguous()
    module().q_sample(
        image_shape(x.shape),
        to_x,
        per_image(t),
        table.data_ptr(),
        path == "flow",
        to_noise,
        0 if key is None else key.data_ptr(),
        to_x_t,
        to_noise_out,
        torch.get_num_threads(),
    )
    deliver(x_t_, x_t)
    deliver(noise_out_, noise_out)
    return x_t, noise_out
