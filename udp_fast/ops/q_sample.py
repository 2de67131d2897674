"""q_sample: noise an image to timestep t in one pass, the noise drawn where it is used.

    x_t = a_b * x + s_b * n,   n ~ N(0, I)

With a diffusion schedule a = sqrt(alphas_cumprod[t]), s = sqrt(1 - alphas_cumprod[t]) (Ho et al.
2020, "Denoising diffusion probabilistic models", eq. 4); with a flow-matching one s = sigmas[t],
a = 1 - s (Lipman et al. 2023). n comes from the counter-based generator (`noise_key`), so it need
not be stored: `denoising_loss` draws the same numbers again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends import dispatch
from ..backends.reference.q_sample import coefficients
from . import validation as check
from .image_scale import image_scale

torch.library.define(
    "udp_fast::q_sample",
    "(Tensor x, Tensor t, Tensor table, Tensor? noise, Tensor? key, str path, bool return_noise,"
    " ScalarType out_dtype) -> (Tensor, Tensor)",
)


def _q_sample(x: Tensor, t: Tensor, table: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    check.check_timestep_values("q_sample", t, table)
    x_t, noise = dispatch.call("q_sample", x, t, table, *args)
    return x_t, noise


torch.library.impl("udp_fast::q_sample", "CompositeExplicitAutograd", _q_sample)


def _fake(x: Tensor, t: Tensor, table: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return_noise, out_dtype = args[-2:]
    x_t = torch.empty_like(x, dtype=out_dtype)
    return x_t, torch.empty_like(x_t) if return_noise else x_t.new_empty((0,))


torch.library.register_fake("udp_fast::q_sample", _fake)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, t, table, noise, _key, path, _return_noise, _out_dtype = inputs
    ctx.save_for_backward(t, table)
    ctx.path = path
    ctx.x_dtype = x.dtype
    ctx.noise_dtype = None if noise is None else noise.dtype
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _grad_noise: Tensor | None) -> tuple[Any, ...]:
    if grad is None:  # undefined, which means zero
        return (None,) * 8
    t, table = ctx.saved_tensors
    a, s = coefficients(table[t], ctx.path)
    dx = image_scale(grad, a).to(ctx.x_dtype) if ctx.needs_input_grad[0] else None
    dn = image_scale(grad, s).to(ctx.noise_dtype) if ctx.needs_input_grad[3] else None
    return dx, None, None, dn, None, None, None, None


torch.library.register_autograd("udp_fast::q_sample", _backward, setup_context=_setup_context)


class _Eager(torch.autograd.Function):
    """The same rule without what costs a small latent more than the op.

    That is torch.library's dispatch, and the signature that autograd inspects at every call of a
    forward that has a ``setup_context``.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        output = _q_sample(*args)
        _setup_context(ctx, args, output)
        return output

    backward = staticmethod(_backward)


def check_schedule(
    op: str, x: Tensor, t: Any, alphas_cumprod: Any, sigmas: Any
) -> tuple[Tensor, Tensor, str]:
    """(t, table, path) from exactly one of the two kinds of schedule."""
    if (alphas_cumprod is None) == (sigmas is None):
        came = "neither" if sigmas is None else "both"
        raise ValueError(f"{op}: got {came}, expected exactly one of alphas_cumprod and sigmas")
    if sigmas is None:
        return *check.check_timesteps(op, t, alphas_cumprod, "alphas_cumprod", x), "diffusion"
    return *check.check_timesteps(op, t, sigmas, "sigmas", x), "flow"


def check_noise(op: str, noise: Tensor | None, key: Tensor | None, x: Tensor) -> None:
    """Exactly one of stored noise, shaped like x, and a key from `noise_key`."""
    if (noise is None) == (key is None):
        came = "neither" if noise is None else "both"
        raise ValueError(f"{op}: got {came}, expected exactly one of noise and key")
    if noise is not None:
        check.check_tensor(op, "noise", noise, check.FLOATS, like=x)
    else:
        check.check_key(op, key, x)


def q_sample(
    x: Tensor,  # [B, ...]
    t: Tensor,  # [B]
    alphas_cumprod: Tensor | None = None,  # [T]
    *,
    sigmas: Tensor | None = None,  # [T]
    noise: Tensor | None = None,  # [B, ...]
    key: Tensor | None = None,  # [B, 3]
    return_noise: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Any:
    """The noisy image x_t; with ``return_noise=True`` the pair (x_t, noise).

    Args:
        x: [B, ...] float32, bfloat16 or float16 (float64 on the reference), in the model's range.
        t: [B] int64 or int32 timesteps, 0 <= t < T; those on an accelerator are not checked.
        alphas_cumprod: [T] float, a diffusion schedule; or sigmas: [T] float, a flow one. One.
        key: int64 [B, 3] from `noise_key`; or noise: stored noise shaped like x. One of them.
        return_noise: also write the noise, in x_t's dtype.
        out_dtype: dtype of x_t, default x's.

    Differentiable in x (dx = a_b * dx_t) and in stored noise.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or value.
        IndexError: a timestep outside the schedule.
    """
    check.check_batched("q_sample", "x", x, check.FLOATS)
    t, table, path = check_schedule("q_sample", x, t, alphas_cumprod, sigmas)
    check_noise("q_sample", noise, key, x)
    if out_dtype is not None:
        check.check_float_dtype("q_sample", "out_dtype", out_dtype)
    sample: Any
    if not check.is_eager(x, noise):
        sample = torch.ops.udp_fast.q_sample
    else:
        sample = _Eager.apply if check.wants_grad(x, noise) else _q_sample
    x_t, drawn = sample(x, t, table, noise, key, path, bool(return_noise), out_dtype or x.dtype)
    return (x_t, drawn) if return_noise else x_t
