"""group_norm_silu: group normalisation and the SiLU after it, with a backward for the image alone.

    x̂ = (x - mean_g) * rstd_g,   rstd_g = 1 / sqrt(var_g + eps)        over each group of C / G channels
    u = weight_c * x̂ + bias_c
    y = u * sigmoid(u)                                                 or u itself, without an act

(Wu and He 2018, "Group Normalization"; Elfwing et al. 2018, "Sigmoid-weighted linear units".) var is
the biased variance, taken about the mean. Backward, with M = elements of a group:

    h = grad_y * sigmoid(u) * (1 + u * (1 - sigmoid(u)))               SiLU's slope at u, not at x̂
    dx = rstd * (weight * h - mean_g(weight * h) - x̂ * mean_g(weight * h * x̂))
    dweight = sum(h * x̂),  dbias = sum(h)                              over all but the channels

It keeps x and two floats a group, and computes those of the three gradients that are wanted: where
the weights are frozen, dx alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import dispatch
from ..backends.outputs import gradients
from . import validation as check

torch.library.define(
    "udp_fast::group_norm_silu",
    "(Tensor x, Tensor? weight, Tensor? bias, int num_groups, float eps, str? act)"
    " -> (Tensor y, Tensor mean, Tensor rstd)",
)
torch.library.define(
    "udp_fast::group_norm_silu_backward",
    "(Tensor grad_y, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias,"
    " int num_groups, str? act, bool[3] needs) -> (Tensor, Tensor, Tensor)",
)


def _group_norm_silu(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, rstd = dispatch.call("group_norm_silu", *args)
    return y, mean, rstd


def _group_norm_silu_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight, dbias = dispatch.call("group_norm_silu_backward", *args)
    return dx, dweight, dbias


torch.library.impl("udp_fast::group_norm_silu", "CompositeExplicitAutograd", _group_norm_silu)
torch.library.impl(
    "udp_fast::group_norm_silu_backward", "CompositeExplicitAutograd", _group_norm_silu_backward
)


def _fake(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    act: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean = x.new_empty((x.shape[0], num_groups), dtype=dtype)
    return torch.empty_like(x), mean, torch.empty_like(mean)


def _fake_backward(
    grad_y: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    act: str | None,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return gradients(needs, (x, weight, bias))


torch.library.register_fake("udp_fast::group_norm_silu", _fake)
torch.library.register_fake("udp_fast::group_norm_silu_backward", _fake_backward)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _y, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    _keep(ctx, inputs, mean, rstd)


def _keep(ctx: Any, inputs: tuple[Any, ...], mean: Tensor, rstd: Tensor) -> None:
    x, weight, bias, ctx.num_groups, _eps, ctx.act = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, mean, rstd, weight, bias)


def _backward(
    ctx: Any, grad_y: Tensor | None, _mean: Tensor | None = None, _rstd: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return (None,) * 6
    x, mean, rstd, weight, bias = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:3])
    differentiate: Any = torch.ops.udp_fast.group_norm_silu_backward
    if check.is_plain(grad_y, x, weight, bias):  # else a second derivative may be asked for
        differentiate = _group_norm_silu_backward
    found = differentiate(grad_y, x, mean, rstd, weight, bias, ctx.num_groups, ctx.act, needs)
    return *(g if needed else None for g, needed in zip(found, needs, strict=True)), *[None] * 3


def _backward_again(ctx: Any, *grads: Tensor | None) -> None:
    raise RuntimeError("group_norm_silu: has no second derivative (create_graph=True asked for it)")


torch.library.register_autograd(
    "udp_fast::group_norm_silu", _backward, setup_context=_setup_context
)
torch.library.register_autograd("udp_fast::group_norm_silu_backward", _backward_again)


class _Eager(torch.autograd.Function):
    """The same rule without torch.library's dispatch, which costs a small latent more than the op.

    In the older form, whose context comes first: with a separate `setup_context` torch binds the
    arguments to forward's signature, which takes as long as the rest of the call. And y is all it
    gives back: the statistics would each get a place in the graph.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        y, mean, rstd = _group_norm_silu(*args)
        _keep(ctx, args, mean, rstd)
        return y

    backward = staticmethod(_backward)


def group_norm_silu(
    x: Tensor,  # [N, C, ...]
    weight: Tensor | None = None,  # [C]
    bias: Tensor | None = None,  # [C]
    *,
    num_groups: int,
    eps: float = 1e-5,
    act: str | None = "silu",
) -> Tensor:
    """SiLU of the group norm of x; the group norm alone with ``act=None``.

    Args:
        x: [N, C, ...] float32, bfloat16 or float16 (float64 on the reference), any memory format;
            contiguous and channels_last are read in place.
        weight, bias: [C] of any of these dtypes, or None for one and zero.
        num_groups: G >= 1, divides C. Channels g * C / G ... (g + 1) * C / G - 1 are group g.
        eps: added to the variance, >= 0, finite. With 0 a constant group is not a number.
        act: "silu" (default) or None.

    Returns y, shaped like x, in its dtype and memory format. Arithmetic is in float32 (float64 for
    float64), and y is rounded to x's dtype once. A NaN or an infinity makes its own group NaN and
    no other. The bits do not depend on the number of threads or on what shares the batch.

    Differentiable once in x, weight and bias.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or value.
    """
    op = "group_norm_silu"
    check.check_tensor(op, "x", x, check.FLOATS)
    if x.dim() < 2:
        raise ValueError(f"{op}: x: got shape {list(x.shape)}, expected [N, C, ...]")
    channels = x.shape[1]
    if not isinstance(num_groups, int) or isinstance(num_groups, bool):
        raise TypeError(f"{op}: num_groups: got {type(num_groups).__name__}, expected an int")
    if num_groups < 1 or channels % num_groups:
        raise ValueError(
            f"{op}: num_groups: got {num_groups}, expected a divisor of the {channels} channels"
        )
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeError(f"{op}: eps: got {type(eps).__name__}, expected a number")
    if not 0 <= eps < math.inf:
        raise ValueError(f"{op}: eps: got {eps}, expected a finite number >= 0")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            check.check_tensor(op, name, value, check.FLOATS, like=x, shape=(channels,))
    if act is not None:
        check.check_choice(op, "act", act, ("silu",))
    args = (x, weight, bias, num_groups, float(eps), act)
    y: Tensor
    if not check.is_eager(x, weight, bias):
        y, _mean, _rstd = torch.ops.udp_fast.group_norm_silu(*args)
    elif check.wants_grad(x, weight, bias):
        y = _Eager.apply(*args)  # type: ignore[no-untyped-call]
    else:
        y, _mean, _rstd = _group_norm_silu(*args)
    return y
