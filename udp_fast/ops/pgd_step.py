"""pgd_step: one projected-gradient update of the perturbation, and the image the model reads next.

For image b, elementwise, in float32:

    delta <- delta +- alpha_b * s(grad) * mask        + to ascend (maximize), - to descend
    delta <- projection of delta on |delta| <= eps_b  (or on ||delta_b||_2 <= eps_b)
    delta <- delta, clamped so that x + delta lies in [lo, hi]
    adv   <- x + delta, mapped from [lo, hi] to the model's range, in the model's dtype

s is the sign (Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks"),
the gradient over its L2 norm per image, or the gradient itself. A gradient element that is NaN or
infinite takes no step and is counted, so that it never reaches delta; an image whose gradient norm
is below float32's smallest normal number takes no "l2" step.

The budget holds exactly in delta's own dtype: the L-infinity bound is the largest value of that
dtype that is <= eps_b. Where x itself lies outside [lo, hi] the range wins over the budget; where it is
not finite, delta and adv become NaN. Of zeros only one is negative: a negative delta that rounds to it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends import dispatch
from . import validation as check
from .budget import Budget
from .remembered import Remembered
from .validation import is_dynamo_compiling

STEPS = ("sign", "l2", "raw")
NORMS = ("linf", "l2")

_ARGS = (
    "Tensor grad, Tensor x, Tensor alpha, Tensor eps, Tensor? mask, str step, str norm,"
    " bool maximize, float lo, float hi, float out_lo, float out_hi, ScalarType out_dtype"
)
torch.library.define("udp_fast::pgd_step", f"(Tensor delta, {_ARGS}) -> (Tensor, Tensor, Tensor)")
torch.library.define("udp_fast::pgd_step_", f"(Tensor(a!) delta, {_ARGS}) -> (Tensor, Tensor)")


class PGDStep(NamedTuple):
    """What `pgd_step_` returns: the perturbed image, and gradient elements skipped per image."""

    adv: Tensor  # [B, ...] out_dtype, in out_range
    skipped: Tensor  # [B] int64


class FunctionalPGDStep(NamedTuple):
    """What `pgd_step` returns: `PGDStep` after the new perturbation."""

    delta: Tensor  # [B, ...] delta's dtype
    adv: Tensor
    skipped: Tensor


def _step_in_place(*args: Any) -> Any:
    return dispatch.call("pgd_step_", *args)


torch.library.impl("udp_fast::pgd_step_", "CompositeExplicitAutograd", _step_in_place)


def _step(delta: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    delta = delta.clone()
    return delta, *dispatch.call("pgd_step_", delta, *args)


torch.library.impl("udp_fast::pgd_step", "CompositeExplicitAutograd", _step)


def _outputs(delta: Tensor, out_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.empty_like(delta, dtype=out_dtype), delta.new_empty(
        (delta.shape[0],), dtype=torch.int64
    )


def _fake_in_place(delta: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return _outputs(delta, args[-1])


torch.library.register_fake("udp_fast::pgd_step_", _fake_in_place)


def _fake(delta: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(delta), *_outputs(delta, args[-1])


torch.library.register_fake("udp_fast::pgd_step", _fake)


def _check_mask(op: str, mask: Tensor, delta: Tensor) -> None:
    check.check_tensor(op, "mask", mask, (torch.bool, torch.uint8, torch.float32))
    if mask.device != delta.device:
        raise ValueError(f"{op}: mask: got a tensor on {mask.device}, expected {delta.device}")
    matches = all(m in (1, d) for m, d in zip(mask.shape, delta.shape, strict=False))
    if mask.dim() != delta.dim() or not matches:
        raise ValueError(
            f"{op}: mask: got shape {list(mask.shape)}, expected one of as many dimensions that"
            f" broadcasts to {list(delta.shape)}"
        )


def _arguments(
    op: str,
    delta: Tensor,
    grad: Tensor,
    x: Tensor,
    alpha: float | Tensor | Budget,
    eps: float | Tensor | Budget,
    step: str,
    norm: str,
    maximize: bool,
    mask: Tensor | None,
    range: tuple[float, float],
    out_range: tuple[float, float] | None,
    out_dtype: torch.dtype,
) -> tuple[Any, ...]:
    """Checks the public arguments and returns the schema's positional ones."""
    check.check_batched(op, "delta", delta, check.FLOATS)
    check.check_tensor(op, "grad", grad, check.FLOATS, like=delta)
    check.check_tensor(op, "x", x, (*check.FLOATS, torch.uint8), like=delta)
    check.check_choice(op, "step", step, STEPS)
    check.check_choice(op, "norm", norm, NORMS)
    lo, hi = check.check_range(op, "range", range)
    alpha = check.per_image(op, "alpha", alpha, delta.shape[0], delta.device, span=hi - lo)
    eps = check.budget_per_image(op, eps, delta.shape[0], delta.device, (lo, hi), norm)
    out_lo, out_hi = (
        (lo, hi) if out_range is None else check.check_range(op, "out_range", out_range)
    )
    check.check_float_dtype(op, "out_dtype", out_dtype)
    if mask is not None:
        _check_mask(op, mask, delta)
        mask = mask.detach().resolve_neg()
    bounds = (lo, hi, out_lo, out_hi)
    grad, x = grad.detach(), x.detach()  # the step is not differentiable
    return (delta, grad, x, alpha, eps, mask, step, norm, bool(maximize), *bounds, out_dtype)


_remembered = Remembered(constants=9)


def pgd_step_(
    delta: Tensor,  # [B, ...] updated in place
    grad: Tensor,  # [B, ...]
    x: Tensor,  # [B, ...] the original
    *,
    alpha: float | Tensor | Budget,
    eps: float | Tensor | Budget,
    step: str = "sign",
    norm: str = "linf",
    maximize: bool = True,
    mask: Tensor | None = None,  # broadcasts to delta
    range: tuple[float, float] = (0.0, 1.0),
    out_range: tuple[float, float] | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> PGDStep:
    """Updates ``delta`` in place by one step and returns the image for the next model call.

    Args:
        delta: [B, ...] float32, float16 or bfloat16 (float64 on the reference), in x's units.
        grad: dL/dadv or dL/ddelta, same shape, float32, bfloat16 or float16.
        x: the original, same shape, float, or uint8 meaning ``lo + x * (hi - lo) / 255``.
        alpha: step size, eps: budget; >= 0; in x's units a number or a float tensor of shape [] or
            [B], as a fraction of x's range a `Budget`. Values in a tensor on an accelerator are not
            checked. With norm "linf" a number is at most hi - lo; math.inf is no budget at all.
        step: "sign" (default), "l2" (gradient over its norm per image) or "raw".
        norm: "linf" (default) or "l2", the norm that ``eps`` bounds.
        maximize: ascend (default) or descend.
        mask: bool, uint8 or float32 that broadcasts to delta, e.g. [B, 1, H, W]; scales the step.
        range: (lo, hi) of x; out_range: (lo, hi) of the result, default the same. The usual ones
            are (0, 1), (-1, 1) and (0, 255).
        out_dtype: dtype of the result, default float32. Its memory format is delta's.

    No operand is copied: contiguous and channels_last are read as they are, each in its own layout.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or value.
    """
    options = (alpha, eps, step, norm, maximize, mask, range, out_range, out_dtype)
    if not is_dynamo_compiling():
        found = _remembered.find(*options, delta, grad, x)
        if found is not None:
            stepped: PGDStep = found(delta, grad, x)
            return stepped
    args = _arguments("pgd_step_", delta, grad, x, *options)
    check.check_updatable("pgd_step_", "delta", delta)
    if not check.is_plain(delta, grad, x):
        result = torch.ops.udp_fast.pgd_step_(*args)
        check.written(delta)
        return PGDStep(*result)
    step_, constants = dispatch.taker("pgd_step_", args).ops["pgd_step_"], args[3:]

    def run(delta: Tensor, grad: Tensor, x: Tensor) -> PGDStep:
        result = step_(delta, grad, x, *constants)
        check.written(delta)
        return PGDStep(*result)

    stepped = run(delta, grad, x)
    _remembered.keep(run, *options, delta, grad, x)
    return stepped


def pgd_step(
    delta: Tensor,  # [B, ...]
    grad: Tensor,  # [B, ...]
    x: Tensor,  # [B, ...]
    *,
    alpha: float | Tensor | Budget,
    eps: float | Tensor | Budget,
    step: str = "sign",
    norm: str = "linf",
    maximize: bool = True,
    mask: Tensor | None = None,  # broadcasts to delta
    range: tuple[float, float] = (0.0, 1.0),
    out_range: tuple[float, float] | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> FunctionalPGDStep:
    """`pgd_step_` that leaves ``delta`` alone and returns the new one first; same arguments.

    Not differentiable: the step is the end of a gradient computation, not a part of one.
    """
    options = (alpha, eps, step, norm, maximize, mask, range, out_range, out_dtype)
    args = _arguments("pgd_step", delta, grad, x, *options)
    with torch.no_grad():
        step_ = _step if check.is_plain(delta, grad, x) else torch.ops.udp_fast.pgd_step
        return FunctionalPGDStep(*step_(*args))
