"""image_scale: one number per image, y = x * scale_b, as the other ops' backward passes need it.

`image_scale_` does it in place, and an image whose number is 1 it leaves alone. Who cannot know whether
there is anything to scale, since the number is in a GPU's memory, then pays for what there is: nothing
but a launch where it is 1, a second pass elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends import dispatch
from . import validation as check

torch.library.define("udp_fast::image_scale", "(Tensor x, Tensor scale) -> Tensor")


def _image_scale(x: Tensor, scale: Tensor) -> Tensor:
    y = dispatch.call("image_scale", x, scale)
    assert isinstance(y, Tensor)
    return y


torch.library.impl("udp_fast::image_scale", "CompositeExplicitAutograd", _image_scale)


def _fake(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)


torch.library.register_fake("udp_fast::image_scale", _fake)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return image_scale(grad, *ctx.saved_tensors), None


torch.library.register_autograd("udp_fast::image_scale", _backward, setup_context=_setup_context)


def image_scale(
    x: Tensor,  # [B, ...]
    scale: Tensor,  # [B]
) -> Tensor:
    """x times one number per image, multiplied in float32, in x's dtype and memory format.

    Differentiable in x, not in scale.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
    """
    check.check_batched("image_scale", "x", x, check.FLOATS)
    check.check_tensor("image_scale", "scale", scale, check.FLOATS, like=x, shape=(x.shape[0],))
    multiply = _image_scale if check.is_plain(x) else torch.ops.udp_fast.image_scale
    y = multiply(x, check.constants(scale))
    assert isinstance(y, Tensor)
    return y


def image_scale_(
    x: Tensor,  # [B, ...] updated in place
    scale: Tensor,  # [B]
) -> None:
    """`image_scale` in place; not differentiable, and not for torch.compile.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
    """
    check.check_batched("image_scale_", "x", x, check.FLOATS)
    check.check_updatable("image_scale_", "x", x)
    check.check_tensor("image_scale_", "scale", scale, check.FLOATS, like=x, shape=(x.shape[0],))
    dispatch.call("image_scale_", x, check.constants(scale))
    check.written(x)
