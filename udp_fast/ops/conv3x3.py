"""conv3x3: a 3×3 convolution whose weights are constants, and its gradient with respect to the image.

    y_k(i, j) = bias_k + Σ_c Σ_{r,s} weight_kc(r, s) · x_c(i + r - 1, j + s - 1)        zeros outside

and backward, the same with the taps in reverse order and the channels' roles exchanged:

    dx_c(i, j) = Σ_k Σ_{r,s} weight_kc(2 - r, 2 - s) · dy_k(i + r - 1, j + s - 1)

A frozen network is differentiated through by its image alone, for which neither x nor y is needed:
nothing is saved but the weight, which the caller has anyway. torch's convolution saves x as well.

The kernels may use Winograd's minimal filtering (1980; Lavin and Gray 2016), which is exact in real
numbers and takes a quarter of the multiplications; in float32 a result is then within some 1e-5 of
the largest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends import dispatch
from . import validation as check

torch.library.define("udp_fast::conv3x3", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
torch.library.define("udp_fast::conv3x3_dx", "(Tensor grad_y, Tensor weight) -> Tensor")


def _format(x: Tensor) -> torch.memory_format:
    """That of the result: channels_last where x's channels lie side by side."""
    interleaved = x.shape[1] > 1 and x.stride(1) == 1
    return torch.channels_last if interleaved else torch.contiguous_format


def _conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = dispatch.call("conv3x3", x, weight, bias)
    assert isinstance(y, Tensor)
    return y.contiguous(memory_format=_format(x))


def _conv3x3_dx(grad_y: Tensor, weight: Tensor) -> Tensor:
    dx = dispatch.call("conv3x3_dx", grad_y, weight)
    assert isinstance(dx, Tensor)
    return dx.contiguous(memory_format=_format(grad_y))


torch.library.impl("udp_fast::conv3x3", "CompositeExplicitAutograd", _conv3x3)
torch.library.impl("udp_fast::conv3x3_dx", "CompositeExplicitAutograd", _conv3x3_dx)


def _like(x: Tensor, channels: int) -> Tensor:
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_format(x))


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _like(x, weight.shape[0])


def _fake_dx(grad_y: Tensor, weight: Tensor) -> Tensor:
    return _like(grad_y, weight.shape[1])


torch.library.register_fake("udp_fast::conv3x3", _fake)
torch.library.register_fake("udp_fast::conv3x3_dx", _fake_dx)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (weight,) = ctx.saved_tensors
    differentiate: Any = torch.ops.udp_fast.conv3x3_dx
    if check.is_plain(grad, weight):  # else a second derivative may be asked for
        differentiate = _conv3x3_dx
    dx = differentiate(grad, weight)
    assert isinstance(dx, Tensor)
    return dx, None, None


def _backward_again(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    y = torch.ops.udp_fast.conv3x3(grad, *ctx.saved_tensors, None)
    assert isinstance(y, Tensor)
    return y, None


torch.library.register_autograd("udp_fast::conv3x3", _backward, setup_context=_setup_context)
torch.library.register_autograd(
    "udp_fast::conv3x3_dx", _backward_again, setup_context=_setup_context
)


class _Eager(torch.autograd.Function):
    """The same rule without torch.library's dispatch."""

    forward = staticmethod(_conv3x3)
    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)


def conv3x3(
    x: Tensor,  # [B, C, H, W]
    weight: Tensor,  # [K, C, 3, 3]
    bias: Tensor | None = None,  # [K]
) -> Tensor:
    """The convolution of stride 1 with a frame of zeros, [B, K, H, W] in x's dtype.

    Args:
        x: [B, C, H, W] float32, bfloat16 or float16 (float64: reference). The native kernel takes
            float32 whose channels lie side by side: channels_last, or a slice of channels of that.
        weight, bias: [K, C, 3, 3] and [K] or None, in x's dtype. Constants: see below.

    y is channels_last if x's channels lie side by side, contiguous otherwise. The bits depend neither
    on the number of threads nor on the instruction set. A NaN or an infinity spreads to the results
    of its 4×4 tile, which is further than by the definition.

    Differentiable in x, any number of times.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device, or weights that
            require a gradient while autograd is on (use F.conv2d, or detach them).
    """
    op = "conv3x3"
    check.check_tensor(op, "x", x, check.FLOATS)
    if x.dim() != 4:
        raise ValueError(f"{op}: x: got shape {list(x.shape)}, expected [B, C, H, W]")
    check.check_tensor(op, "weight", weight, (x.dtype,))
    channels = x.shape[1]
    if weight.dim() != 4 or tuple(weight.shape[1:]) != (channels, 3, 3):
        raise ValueError(
            f"{op}: weight: got shape {list(weight.shape)}, expected [K, {channels}, 3, 3]"
        )
    if bias is not None:
        check.check_tensor(op, "bias", bias, (x.dtype,), shape=(weight.shape[0],))
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        if value.device != x.device:
            raise ValueError(f"{op}: {name}: got a tensor on {value.device}, expected {x.device}")
        if check.wants_grad(value):
            raise ValueError(
                f"{op}: {name}: requires grad, which conv3x3 does not give; freeze it, or use"
                " torch.nn.functional.conv2d"
            )
    convolve: Any
    if not check.is_eager(x, weight, bias):
        convolve = torch.ops.udp_fast.conv3x3
    else:
        convolve = _Eager.apply if check.wants_grad(x) else _conv3x3
    y = convolve(x, weight, bias)
    assert isinstance(y, Tensor)
    return y
