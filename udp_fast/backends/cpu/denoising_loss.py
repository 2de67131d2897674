"""denoising_loss on csrc/cpu: loss and gradient in one pass, the target derived on the way."""

from __future__ import annotations

import torch
from torch import Tensor

from .native import deliver, fresh_like, image_shape, module, operand, per_image

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
    loss = torch.zeros(pred.shape[0], dtype=torch.float32)
    grad = fresh_like(pred) if with_grad else pred.new_empty((0,))
    if pred.numel() == 0:
        return loss, grad
    to_pred, pred_ = operand(pred)
    to_target, target_ = operand(target)
    to_x, x_ = operand(x)
    to_noise, noise_ = operand(noise)
    to_grad, grad_ = operand(grad if with_grad else None)
    table = None if table is None else table.contiguous()
    key = None if key is None else key.contiguous()
    module().denoising_loss(
        image_shape(pred.shape),
        to_pred,
        to_target,
        to_x,
        per_image(t),
        0 if table is None else table.data_ptr(),
        to_noise,
        0 if key is None else key.data_ptr(),
        per_image(weight),
        GIVEN if target is not None else DERIVED[prediction_type],
        to_grad,
        grad_scale,
        loss.data_ptr(),
        torch.get_num_threads(),
    )
    deliver(grad_, grad)
    return loss, grad
