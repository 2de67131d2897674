"""denoising_loss on csrc/cuda: loss and gradient in one pass, the target derived in registers."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native

GIVEN = 0
DERIVED = {"epsilon": 1, "v_prediction": 2, "sample": 3, "flow": 4}


def denoising_loss(
    pred: Tensor,
    target: Tensor | None,
    x: Tensor | None,
    t: Tensor | None,
    table: Tensor | None,
    noise: Tensor | None,
    key: Tensor | None,
    weight: Tensor | None,
    prediction_type: str,
    with_grad: bool,
    grad_scale: float,
) -> tuple[Tensor, Tensor]:
    grad = torch.empty_like(pred) if with_grad else pred.new_empty((0,))
    if pred.numel() == 0:
        return pred.new_zeros(pred.shape[0], dtype=torch.float32), grad
    loss = pred.new_empty(pred.shape[0], dtype=torch.float32)
    shape = native.image_shape(pred.shape)
    to_pred, pred_ = native.operand(pred)
    to_target, target_ = native.operand(target)
    to_x, x_ = native.operand(x)
    to_noise, noise_ = native.operand(noise)
    to_grad, written = native.operand(grad if with_grad else None)
    t = None if t is None else t.contiguous()
    table = None if table is None else table.contiguous()
    key = None if key is None else key.contiguous()
    with native.stream_of(pred) as stream:
        module = native.module()
        scratch = native.workspace(module.denoising_loss_workspace(shape), pred)
        module.denoising_loss(
            shape,
            to_pred,
            to_target,
            to_x,
            0 if t is None else t.data_ptr(),
            0 if table is None else table.data_ptr(),
            to_noise,
            0 if key is None else key.data_ptr(),
            (0, 0, 1.0) if weight is None else native.per_image(weight),
            GIVEN if target is not None else DERIVED[prediction_type],
            to_grad,
            grad_scale,
            loss.data_ptr(),
            scratch.data_ptr(),
            stream,
        )
        native.deliver(written, grad)
    return loss, grad
