"""denoising_loss: the weighted squared error of a denoiser and its gradient, in one pass.

    loss_b = w_b * mean over the image of (pred - target)^2

The target is given, or derived where it is used, so that neither noise nor target touches memory:

    epsilon       target = n                 (Ho et al. 2020)
    v_prediction  target = a_b * n - s_b * x (Salimans & Ho 2022, "Progressive distillation")
    sample        target = x
    flow          target = n - x             (Lipman et al. 2023, velocity of a straight path)

with a, s as in `q_sample` and n the noise that `q_sample` drew from the same key. The gradient
2 * w_b * (pred - target) / numel is written in the same pass, in pred's dtype; autograd's backward
then has nothing left to compute when the upstream gradient is one. Losses accumulate in float64.

On a GPU only the GPU knows whether it is one, so backward scales in place and leaves alone what has
the factor one (`image_scale_`): a bfloat16 prediction with redrawn noise costs 4 bytes an element for
loss and gradient, and 8 where there is a factor (a GradScaler's, say). A forward for the loss alone and
a backward for the gradient alone would cost 6 in either case and draw the noise twice; with a target in
memory, 10 against 6 and 10. Where the graph is kept for another backward, the gradient is copied.

float16 ends at 6e-8, above many of a large image's gradients, and a GradScaler's factor comes when the
forward has rounded them. So a float16 gradient is written 2^k times as large (`_magnified`), and
backward's factor, applied in float32, is 2^-k times the upstream gradient: never one but by chance.

The loss is a square: its gradient is linear in pred and the target, with one number an image, so further
derivatives need no tensor that the first does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends import dispatch
from ..backends.reference.image_scale import image_scale as definition
from ..backends.reference.q_sample import coefficients
from . import validation as check
from .image_scale import image_scale, image_scale_
from .q_sample import check_noise

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow")
REDUCTIONS = ("mean", "sum", "none")

torch.library.define(
    "udp_fast::denoising_loss",
    "(Tensor pred, Tensor? target, Tensor? x, Tensor? t, Tensor? table, Tensor? noise, Tensor? key,"
    " Tensor? weight, str prediction_type, bool with_grad, float grad_scale) -> (Tensor, Tensor)",
)


def _denoising_loss(*args: Any) -> tuple[Tensor, Tensor]:
    check.check_timestep_values("denoising_loss", args[3], args[4])
    loss, grad = dispatch.call("denoising_loss", *args)
    return loss, grad


torch.library.impl("udp_fast::denoising_loss", "CompositeExplicitAutograd", _denoising_loss)


def _fake(pred: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    loss = pred.new_empty((pred.shape[0],), dtype=_loss_dtype(pred))
    return loss, torch.empty_like(pred) if args[-2] else pred.new_empty((0,))


torch.library.register_fake("udp_fast::denoising_loss", _fake)


def _loss_dtype(pred: Tensor) -> torch.dtype:
    return torch.float64 if pred.dtype == torch.float64 else torch.float32


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _pred, target, x, t, table, noise, _key, weight, ctx.prediction_type, with_grad, scale = inputs
    _loss, grad = output
    # `grad` is differentiable: as backward uses it, a second derivative comes back here, through a node
    # that is there anyway, and pred need not be saved. (As with torch's exp, saved-tensor hooks that
    # keep the tensor itself then keep this node, unless its backward runs.)
    if not with_grad:
        ctx.mark_non_differentiable(grad)
    ctx.set_materialize_grads(False)  # else a zero gradient for it, as large as pred
    ctx.save_for_backward(grad, t, table, weight)
    ctx.grad_scale = scale
    ctx.dtypes = [None if v is None else v.dtype for v in (target, x, noise)]


def _backward(ctx: Any, grad_loss: Tensor | None, grad_grad: Tensor | None) -> tuple[Any, ...]:
    # `grad` is dL/dpred of L = grad_scale * sum of the losses, which is what `denoising_loss` asks
    # backward for; only another use of the per-image losses, or a float16 one, leaves a factor to apply.
    factor = grad_loss
    if grad_loss is not None:
        factor = grad_loss / ctx.grad_scale if ctx.grad_scale else torch.zeros_like(grad_loss)
    return _gradients(ctx, ctx.needs_input_grad, factor, grad_grad, is_ours=False)


def _gradients(
    ctx: Any,
    needs: tuple[bool, ...],
    factor: Tensor | None,
    grad_grad: Tensor | None,
    is_ours: bool,
) -> tuple[Any, ...]:
    """For each input of the op; ``factor``, one for all images or [B], is what `grad` lacks. `grad` may
    be handed out, or changed, only if it is ours: it is an output of torch.library's op. ``grad_grad``
    is what a second derivative asks: the gradient of its result with respect to `grad`."""
    grad, t, table, weight = ctx.saved_tensors
    terms = [] if factor is None else [(grad, factor)]
    multiply = image_scale
    if torch.is_grad_enabled() or grad_grad is not None:
        multiply = definition  # differentiable in the scale as well, any number of times
    if grad_grad is not None:
        terms.append((grad_grad, _slope(grad, weight, ctx.grad_scale)))
    if not terms:  # the upstream gradient is undefined, which means zero
        return (None,) * 11
    needs_pred, needs_target, needs_x, _, _, needs_noise = needs[:6]
    target_dtype, x_dtype, noise_dtype = ctx.dtypes
    kind = ctx.prediction_type

    def scaled(per_image: Tensor | float, dtype: torch.dtype) -> Tensor:
        def term(y: Tensor, factor: Tensor) -> Tensor:
            if y.dtype == torch.float16:  # its range is too small for the product
                y = y.to(torch.promote_types(y.dtype, dtype))
            return multiply(y, factor.expand(y.shape[:1]) * per_image).to(dtype)

        first, *others = (term(*pair) for pair in terms)
        return first + others[0] if others else first

    a, s = (1.0, 1.0) if kind != "v_prediction" else coefficients(table[t], "diffusion")
    dpred = dtarget = dx = dnoise = None
    if needs_target:
        dtarget = scaled(-1.0, target_dtype)
    if needs_x and kind != "epsilon":
        dx = scaled(-1.0 if kind == "sample" else s, x_dtype)
    if needs_noise and kind != "sample":
        dnoise = scaled(-a, noise_dtype)
    if needs_pred and multiply is not image_scale:
        dpred = scaled(1.0, grad.dtype)
    elif needs_pred:  # last: it may change `grad`
        dpred = _scaled_if_need_be(grad, terms[0][1], is_ours)
    return dpred, dtarget, dx, None, None, dnoise, None, None, None, None, None


def _slope(grad: Tensor, weight: Tensor | None, grad_scale: float) -> Tensor:
    """[B] what one more of pred adds to `grad`."""
    batch, dtype = grad.shape[0], _loss_dtype(grad)
    if weight is None:
        weight = grad.new_ones(batch, dtype=dtype)
    numel = grad[0].numel() if batch else 0
    return weight.to(dtype) * (grad_scale * 2 / max(numel, 1))


def _scaled_if_need_be(grad: Tensor, factor: Tensor, is_ours: bool) -> Tensor:
    """The gradient times ``factor``, one for all images or [B]: itself, if nobody else needs it."""
    grad = grad.detach()  # an output of the node that it is saved in
    alone = is_ours and check.is_plain(grad, factor) and not _graph_is_kept()
    if alone and _all_ones(factor):
        return grad
    factors = factor.expand(grad.shape[:1])
    if not alone:
        return image_scale(grad, factors)
    # Should the graph be kept after all, its next backward is an error and not a wrong result.
    image_scale_(grad, factors)
    return grad


def _graph_is_kept() -> bool:
    """Whether the running backward leaves its saved tensors to another; of torch's own interface only
    its compiler's checks ask so."""
    kept: bool = torch._C._autograd._get_current_graph_task_keep_graph()
    return kept


def _all_ones(factor: Tensor) -> bool:
    """True when it is known, without waiting for a device, that there is nothing to scale."""
    if not factor.is_cpu:
        return False
    return factor.item() == 1.0 if factor.dim() == 0 else bool((factor == 1).all())


torch.library.register_autograd("udp_fast::denoising_loss", _backward, setup_context=_setup_context)


def _magnified(pred: Tensor, reduction: str) -> float:
    """2^k, how many times as large as it is the gradient for ``pred`` is written.

    A float16 gradient of a mean is then w * (pred - target) / 64 to / 32: infinite where w times the
    error is beyond 2e6, and with all its bits where it is above 4e-3. A power of two changes no bit.
    Compared rather than calculated, so that torch.compile keeps sizes dynamic.
    """
    factor = 1
    if pred.dtype == torch.float16:
        # By how many the gradient of an element is divided.
        elements = pred.numel() if reduction == "mean" else pred.numel() // max(pred.shape[0], 1)
        while factor * 128 <= elements:
            factor *= 2
    return float(factor)


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.mean()


class _Eager(torch.autograd.Function):
    """The same rule, reduction included, without what costs a small latent more than the op.

    That is torch.library's dispatch, the nodes of the reduction, and the signature that autograd
    inspects at every call of a forward that has a ``setup_context``.
    """

    @staticmethod
    def forward(ctx: Any, reduction: str, magnified: float, *args: Any) -> tuple[Tensor, Tensor]:
        loss, grad = _denoising_loss(*args)
        _setup_context(ctx, args, (loss, grad))
        ctx.magnified = magnified
        return _reduced(loss, reduction), grad

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, grad_grad: Tensor | None) -> tuple[Any, ...]:
        # Whatever the reduction: `grad_scale` is what it puts before the sum.
        factor = grad_loss
        if grad_loss is not None and ctx.magnified != 1.0:
            factor = grad_loss / ctx.magnified
        needs = ctx.needs_input_grad[2:]
        return None, None, *_gradients(ctx, needs, factor, grad_grad, is_ours=True)


def _check_derived(
    pred: Tensor,
    prediction_type: str,
    x: Tensor | None,
    t: Tensor | None,
    alphas_cumprod: Tensor | None,
    noise: Tensor | None,
    key: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Checks what a derived target needs and returns (x, t, table), None where it is not used."""
    op = "denoising_loss"
    if prediction_type != "sample":
        if noise is None and key is None:
            raise ValueError(
                f"{op}: got neither target nor noise nor key, expected a target, or for"
                f" prediction_type {prediction_type!r} exactly one of noise and key"
            )
        check_noise(op, noise, key, pred)
    elif noise is not None or key is not None:
        raise ValueError(f"{op}: got noise or key, expected neither for a sample target")
    if prediction_type == "epsilon":
        return None, None, None
    check.check_tensor(op, "x", x, check.FLOATS, like=pred)
    if prediction_type != "v_prediction":
        return x, None, None
    return x, *check.check_timesteps(op, t, alphas_cumprod, "alphas_cumprod", pred)


def denoising_loss(
    pred: Tensor,  # [B, ...]
    target: Tensor | None = None,  # [B, ...]
    *,
    x: Tensor | None = None,  # [B, ...]
    t: Tensor | None = None,  # [B]
    alphas_cumprod: Tensor | None = None,  # [T]
    noise: Tensor | None = None,  # [B, ...]
    key: Tensor | None = None,  # [B, 3]
    weight: Tensor | None = None,  # [B]
    prediction_type: str = "epsilon",
    reduction: str = "mean",
) -> Tensor:
    """The loss, differentiable in pred, target, x and stored noise, each as far as it enters.

    Args:
        pred: [B, ...] the model's prediction; float32, bfloat16 or float16 (float64: reference).
        target: same shape: the explicit form, a weighted mean squared error. Otherwise:
        prediction_type: "epsilon" (default), "v_prediction", "sample" or "flow".
        key: what `q_sample` was given; or noise: stored noise. Not for "sample".
        x: the clean image, for all but "epsilon".
        t, alphas_cumprod: [B] int and [T] float, for "v_prediction" alone.
        weight: [B] float, w_b; default one.
        reduction: over the batch: "mean" (default), "sum", "none" ([B]).

    Returns a float32 scalar or [B] (float64 for a float64 pred). The gradient has pred's memory
    format; of a float16 pred it is finite as long as weight * |pred - target| is below 2e6, whatever
    the size. NaN in pred makes that image's loss NaN and no other's. Differentiable any number of times
    (once inside torch.compile, whose compiled functions have no second derivative).

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or value.
        IndexError: a timestep outside the schedule.
    """
    op = "denoising_loss"
    check.check_batched(op, "pred", pred, check.FLOATS)
    check.check_choice(op, "prediction_type", prediction_type, PREDICTION_TYPES)
    check.check_choice(op, "reduction", reduction, REDUCTIONS)
    if weight is not None:
        check.check_tensor(op, "weight", weight, check.FLOATS, like=pred, shape=(pred.shape[0],))
        weight = check.constants(weight)
    table = None
    if target is None:
        x, t, table = _check_derived(pred, prediction_type, x, t, alphas_cumprod, noise, key)
    else:
        check.check_tensor(op, "target", target, check.FLOATS, like=pred)
        if any(v is not None for v in (x, t, alphas_cumprod, noise, key)):
            raise ValueError(
                f"{op}: got target and one of x, t, alphas_cumprod, noise, key; expected either the"
                " target or what it derives from"
            )
        prediction_type = "epsilon"  # the gradient's rule: no coefficient
    with_grad = check.wants_grad(pred, target, x, noise)
    magnified = _magnified(pred, reduction)
    grad_scale = magnified / pred.shape[0] if reduction == "mean" and pred.shape[0] else magnified
    args = (pred, target, x, t, table, noise, key, weight, prediction_type)
    loss: Tensor
    if not check.is_eager(pred, target, x, noise):
        loss, _ = torch.ops.udp_fast.denoising_loss(*args, torch.is_grad_enabled(), grad_scale)
    elif with_grad:
        loss, _ = _Eager.apply(reduction, magnified, *args, True, grad_scale)  # type: ignore[no-untyped-call]
        return loss
    else:
        loss, _ = _denoising_loss(*args, False, grad_scale)
    return _reduced(loss, reduction)


def accumulate_timesteps_(
    sums: Tensor,  # float64 [T, 2] updated in place
    t: Tensor,  # [B]
    losses: Tensor,  # [B]
) -> None:
    """Adds per-image losses to per-timestep sums: column 0 losses, column 1 how many.

    The sums show where along the schedule a model fails; sums[:, 0] / sums[:, 1] is the mean loss
    by timestep. Sums are in float64, in an order that depends on the batch alone, so they are
    reproducible, on a GPU too. A NaN stays in its row.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
        IndexError: a timestep outside the table.
    """
    op = "accumulate_timesteps_"
    check.check_tensor(op, "losses", losses, check.FLOATS)
    if losses.dim() != 1:
        raise ValueError(f"{op}: losses: got shape {list(losses.shape)}, expected [B]")
    check.check_tensor(op, "sums", sums, (torch.float64,))
    if sums.dim() != 2 or sums.shape[1] != 2:
        raise ValueError(f"{op}: sums: got shape {list(sums.shape)}, expected [T, 2]")
    if sums.device != losses.device:
        raise ValueError(
            f"{op}: sums: got a tensor on {sums.device}, expected {losses.device}, where losses are"
        )
    check.check_updatable(op, "sums", sums)
    check.check_tensor(op, "t", t, (torch.int64,), like=losses)
    check.check_timestep_values(op, t, sums[:, 0])
    losses = losses.detach().double()
    if losses.is_cpu:
        sums.index_add_(0, t, torch.stack([losses, torch.ones_like(losses)], 1))
        return
    # On a GPU that adds with atomics, in any order. Here images of one timestep all write the same sum.
    # In pieces, since the comparison is quadratic.
    for piece, timesteps in zip(torch.split(losses, 256), torch.split(t, 256), strict=True):
        alike = timesteps[:, None] == timesteps
        total = torch.where(alike, piece, 0.0).sum(1)
        sums[timesteps] += torch.stack([total, alike.sum(1).double()], 1)
