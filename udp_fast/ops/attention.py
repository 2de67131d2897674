"""attention: softmax(q kᵀ · scale + bias) v, and a backward that computes only the gradients asked for.

    S = scale · q kᵀ + bias,   P = softmax(S) over the keys,   out = P v

and backward, with dO the gradient of out (Dao et al. 2022, "FlashAttention", appendix B):

    dP = dO vᵀ,   δ_i = Σ_j P_ij dP_ij,   dS = P ∘ (dP − δ)
    dq = scale · dS k,   dk = scale · dSᵀ q,   dv = Pᵀ dO

Protection differentiates with respect to the image. Where the keys come from a text they depend on
no image, so dq alone is wanted: three products (q kᵀ, dO vᵀ, dS k) in place of five, and where all
keys fit one tile (`outputs.ONE_TILE`) nothing is saved but q, k and v, for a row's softmax and δ are formed
again from what the kernel holds anyway. Otherwise P is formed again from the saved logarithm of
each row's sum of exponentials, lse_i = log Σ_j exp S_ij, and δ_i = Σ_d dO_id out_id.

A row whose keys are all masked attends to nothing: out 0, lse −inf, zero gradients. Sums are taken in
float32 in an order that depends on the shapes alone, without atomics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends import dispatch
from ..backends.outputs import gradients, in_strides_of, needs_no_statistics
from ..backends.registry import Backend
from . import validation as check
from .remembered import Remembered, Run
from .validation import is_dynamo_compiling

Needs = tuple[bool, bool, bool]

# bias: 4-D, each dimension that of the scores or 1. lse: float32 (float64 of float64 operands)
# [B, H, N], natural logarithm; size 0 where it is not asked for. out has q's order of strides.
torch.library.define(
    "udp_fast::attention",
    "(Tensor q, Tensor k, Tensor v, Tensor? bias, float scale, bool need_lse)"
    " -> (Tensor out, Tensor lse)",
)
# out and lse are absent only where `needs_no_statistics`. dq, dk, dv
# have the strides' order of q, k, v; size 0 where not needed.
torch.library.define(
    "udp_fast::attention_backward",
    "(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? out, Tensor? lse,"
    " float scale, bool[3] needs) -> (Tensor dq, Tensor dk, Tensor dv)",
)


def _attention(*args: Any) -> tuple[Tensor, Tensor]:
    out, lse = dispatch.call("attention", *args)
    return out, lse


def _attention_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = dispatch.call("attention_backward", *args)
    return dq, dk, dv


torch.library.impl("udp_fast::attention", "CompositeExplicitAutograd", _attention)
torch.library.impl("udp_fast::attention_backward", "CompositeExplicitAutograd", _attention_backward)


def _fake(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, need_lse: bool
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.empty_like(q), q.new_empty(q.shape[:3] if need_lse else (0,), dtype=dtype)


def _fake_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return gradients(args[-1], (q, k, v))


torch.library.register_fake("udp_fast::attention", _fake)
torch.library.register_fake("udp_fast::attention_backward", _fake_backward)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    q, k, v, bias, ctx.scale, need_lse = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.has_bias = bias is not None
    # What a backward takes beside grad_out, in its order.
    ctx.save_for_backward(
        q, k, v, *(output if need_lse else ()), *(() if bias is None else (bias,))
    )


# Both by scale and needs, and by how many tensors there are.
_remembered, _remembered_backward = Remembered(constants=2), Remembered(constants=2)

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def _gradients(ctx: Any, grad_out: Tensor | None) -> Gradients:
    if grad_out is None:
        return None, None, None
    needs, tensors = ctx.needs_input_grad[:3], (grad_out, *ctx.saved_tensors)
    if not is_dynamo_compiling():
        run = _remembered_backward.find(ctx.scale, needs, *tensors)
        if run is not None:
            found: Gradients = run(*tensors)
            return found
    return _differentiate(ctx.scale, needs, ctx.has_bias, *tensors)


def _differentiate(scale: float, needs: Needs, has_bias: bool, *tensors: Tensor) -> Gradients:
    """Of (grad_out, q, k, v) and what else is in ``tensors``: out and lse, and a bias."""
    rest = len(tensors) - has_bias
    _, q, k, v, *statistics = tensors[:rest]
    unneeded = needs_no_statistics(needs, k.shape[2])
    # Only a caller of the op itself did not foresee these gradients.
    unforeseen = not statistics and not unneeded

    def arguments(*tensors: Tensor) -> tuple[Any, ...]:
        grad_out, q, k, v, *statistics = tensors[:rest]
        bias = tensors[-1] if has_bias else None
        out, lse = None, None
        if unforeseen:
            out, lse = torch.ops.udp_fast.attention(q, k, v, bias, scale, True)
        elif not unneeded:
            out, lse = statistics
        return grad_out, q, k, v, bias, out, lse, scale, list(needs)

    def wanted(grads: Sequence[Tensor]) -> Gradients:
        dq, dk, dv = (x if needed else None for x, needed in zip(grads, needs, strict=True))
        return dq, dk, dv

    args = arguments(*tensors)
    if not check.is_plain(*tensors):
        return wanted(torch.ops.udp_fast.attention_backward(*args))
    chosen = dispatch.taker("attention_backward", args)
    kernel: Any = chosen.ops["attention_backward"]

    grads = wanted(kernel(*args))

    def run(*tensors: Tensor) -> Gradients:
        return wanted(kernel(*arguments(*tensors)))

    if not unforeseen and not (unneeded and statistics):  # the arguments are the tensors
        run = chosen.prepared("attention_backward", args) or run
    _remembered_backward.keep(run, scale, needs, *tensors)
    return grads


def _backward(ctx: Any, grad_out: Tensor | None, _grad_lse: Tensor | None) -> tuple[Any, ...]:
    if ctx.needs_input_grad[3]:
        raise NotImplementedError("attention: bias: requires grad, which attention does not give")
    return *_gradients(ctx, grad_out), None, None, None


def _no_second_derivative(ctx: Any, *grads: Any) -> Any:
    raise NotImplementedError("attention: a second derivative was asked for; there is only a first")


torch.library.register_autograd("udp_fast::attention", _backward, setup_context=_setup_context)
torch.library.register_autograd("udp_fast::attention_backward", _no_second_derivative)


class _Eager(torch.autograd.Function):
    """The same rule without torch.library's dispatch, which gives out alone."""

    # In one function: for a setup_context of its own torch inspects forward's signature at each call,
    # which takes longer than a small latent's attention.
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, call: Any, *bias: Tensor) -> Tensor:
        kernel, ctx.scale, need_lse = call
        out: Tensor
        out, lse = kernel(q, k, v, *bias)
        ctx.set_materialize_grads(False)
        if need_lse:
            ctx.save_for_backward(q, k, v, out, lse, *bias)
        else:
            ctx.save_for_backward(q, k, v, *bias)
        ctx.has_bias = bool(bias)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        dq, dk, dv = _gradients(ctx, grads[0])
        return (dq, dk, dv, None, None) if ctx.has_bias else (dq, dk, dv, None)


def _is_left_to_torch(chosen: Backend, args: tuple[Any, ...], wanted: Sequence[bool]) -> bool:
    """Whether torch's kernels take the forward and the backward that would follow it, so that torch
    may differentiate its function itself: our way there and back takes time, and gains nothing.

    Not on a GPU, nor with a bias, nor under autocast: the function may then take other kernels, and
    other dtypes.
    """
    q, _, _, bias, _, _ = args
    if chosen.name != "sdpa" or bias is not None or not q.is_cpu:
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    return not any(wanted) or dispatch.takes_as_well(
        chosen, "attention_backward", backward_arguments(args, wanted)
    )


def _eager(args: tuple[Any, ...], wanted: Sequence[bool], comes_again: bool) -> Run:
    """How the op is done to q, k, v and a bias, if there is one, without torch.library's dispatch.

    ``comes_again``: whether that will be done to others, for which it may be prepared.
    """
    chosen = dispatch.taker("attention", args)
    q, k, v, bias, scale, need_lse = args
    if _is_left_to_torch(chosen, args, wanted):
        sdpa, strides = F.scaled_dot_product_attention, q.stride()

        def left(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = sdpa(q, k, v, scale=scale)
            # Asked each time: torch's own choice, and with it the strides, may be steered as well.
            return out if out.stride() == strides else in_strides_of(q, out)

        return left

    op: Any = chosen.ops["attention"]

    def kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Any:
        return op(q, k, v, bias, scale, need_lse)

    if comes_again:
        kernel = chosen.prepared("attention", args) or kernel
    if any(wanted):
        # Beneath what `apply` does about transforms of torch.func, and tensors that one has left behind:
        # `is_eager` knows of none here.
        apply = cast(Any, super(torch.autograd.Function, _Eager)).apply
        call = kernel, scale, need_lse

        def run(q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Tensor:
            out: Tensor = apply(q, k, v, call, *bias)
            return out
    else:

        def run(q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Tensor:
            out: Tensor = kernel(q, k, v, *bias)[0]
            return out

    return run


def _check_tensors(q: Any, k: Any, v: Any) -> None:
    op = "attention"
    check.check_tensor(op, "q", q, check.FLOATS)
    if q.dim() != 4:
        raise ValueError(f"{op}: q: got shape {list(q.shape)}, expected [B, H, N, D]")
    b, h, _, d = q.shape
    for name, x in (("k", k), ("v", v)):
        check.check_tensor(op, name, x, (q.dtype,))
        if x.dim() != 4 or x.shape != (b, h, x.shape[2], d):
            raise ValueError(
                f"{op}: {name}: got shape {list(x.shape)}, expected [{b}, {h}, M, {d}] beside q"
            )
        if x.device != q.device:
            raise ValueError(f"{op}: {name}: got a tensor on {x.device}, expected {q.device}")
    if v.shape != k.shape:
        raise ValueError(f"{op}: v: got shape {list(v.shape)}, expected k's, {list(k.shape)}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        strides = x.stride()
        if d > 1 and strides[3] != 1:
            raise ValueError(
                f"{op}: {name}: got stride {strides[3]} in the last dimension, expected 1 (the"
                " numbers of one head side by side; call .contiguous() first)"
            )
        # A result in such an order of strides would have its last dimension elsewhere; torch's own
        # function reads and writes past its memory then. The first question answers nearly every call.
        if (
            d > 1
            and 1 in strides[:3]
            and any(n > 1 and s == 1 for n, s in zip(x.shape[:3], strides[:3], strict=True))
        ):
            raise ValueError(
                f"{op}: {name}: got strides {strides} of shape {list(x.shape)}, expected stride 1"
                " in the last dimension alone (call .contiguous() first)"
            )


def _check_bias(bias: Any, q: Tensor, k: Tensor) -> None:
    op = "attention"
    check.check_tensor(op, "bias", bias, (*check.FLOATS, torch.bool))
    scores = (*q.shape[:3], k.shape[2])
    if bias.dim() > 4 or any(
        size not in (1, full)
        for size, full in zip(reversed(bias.shape), reversed(scores), strict=False)
    ):
        raise ValueError(
            f"{op}: bias: got shape {list(bias.shape)}, expected one that broadcasts to"
            f" {list(scores)}"
        )
    if bias.device != q.device:
        raise ValueError(f"{op}: bias: got a tensor on {bias.device}, expected {q.device}")
    if torch.is_grad_enabled() and bias.requires_grad:
        raise ValueError(
            f"{op}: bias: requires grad; attention gives gradients of q, k and v alone (pass"
            " bias.detach())"
        )


def _additive(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """With four dimensions; a mask as 0 where it is True and -inf where it is False."""
    if bias.dtype == torch.bool:
        bias = torch.zeros_like(bias, dtype=dtype).masked_fill_(~bias, -math.inf)
    return bias if bias.dim() == 4 else bias.reshape((1,) * (4 - bias.dim()) + tuple(bias.shape))


def _check_needs(needs: Any) -> Needs:
    if (
        not isinstance(needs, Sequence)
        or len(needs) != 3
        or not all(isinstance(needed, bool) for needed in needs)
    ):
        raise ValueError(
            f"attention: needs: got {needs!r}, expected three bools, for dq, dk and dv, or None"
        )
    return needs[0], needs[1], needs[2]


def attention(
    q: Tensor,  # [B, H, N, D]
    k: Tensor,  # [B, H, M, D]
    v: Tensor,  # [B, H, M, D]
    *,
    scale: float | None = None,
    bias: Tensor | None = None,  # broadcastable to [B, H, N, M]
    needs: Needs | None = None,
) -> Tensor:
    """softmax(q kᵀ · scale + bias) v, [B, H, N, D] in q's dtype and order of strides.

    Args:
        q, k, v: float32, bfloat16 or float16 (float64: reference), all of one dtype; any strides
            with the last dimension, and no other, contiguous: [B, N, H, D] tensors go in as
            ``.transpose(1, 2)``, without a copy. N, M and D are arbitrary.
        scale: finite; default D ** -0.5.
        bias: added to the scaled scores, a float of any of these dtypes, or a bool mask, True where
            a query attends to a key. Padded keys are a [B, 1, 1, M] bias of 0 and -inf. Finite
            numbers count as no more than 1e4 either way, beside which float32 still holds scores.
            It gets no gradient.
        needs: which of dq, dk, dv may be asked for; a tensor whose entry is False is treated as
            detached. Default: what ``requires_grad`` says. With dq alone and at most 128 keys nothing
            is saved but q, k and v, unless the call is left to torch, which differentiates its own way.

    A query whose keys are all masked gives 0 and zero gradients, as do all queries where M is 0. A NaN
    stays in its row. Differentiable once.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, strides, device or value,
            or a bias that requires a gradient.
        RuntimeError: a second derivative was asked for: NotImplementedError, or torch's own error.
    """
    given = (q, k, v) if bias is None else (q, k, v, bias)
    if not is_dynamo_compiling():
        run = _remembered.find(scale, needs, *given)
        if run is not None:
            out: Tensor = run(*given)
            return out
    _check_tensors(q, k, v)
    constants = scale, needs
    if scale is None:
        scale = max(q.shape[3], 1) ** -0.5
    elif isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"attention: scale: got {type(scale).__name__}, expected a number or None")
    elif not math.isfinite(scale):
        raise ValueError(f"attention: scale: got {scale}, expected a finite number")
    added = None
    if bias is not None:
        _check_bias(bias, q, k)
        added = _additive(bias, q.dtype)
    if needs is not None:
        needs = _check_needs(needs)
        q, k, v = (x if needed else x.detach() for x, needed in zip((q, k, v), needs, strict=True))
    wanted = [torch.is_grad_enabled() and x.requires_grad for x in (q, k, v)]
    need_lse = any(wanted) and not needs_no_statistics(wanted, k.shape[2])
    args = (q, k, v, added, float(scale), need_lse)
    if not check.is_eager(q, k, v, added):
        out, _ = torch.ops.udp_fast.attention(*args)
        assert isinstance(out, Tensor)
        return out
    comes_again = needs is None  # else something was detached
    run = _eager(args, wanted, comes_again)
    out = run(q, k, v) if added is None else run(q, k, v, added)
    if comes_again:
        _remembered.keep(run if added is bias else _with_additive(run), *constants, *given)
    return out


def _with_additive(run: Run) -> Run:
    return lambda q, k, v, bias: run(q, k, v, _additive(bias, q.dtype))


def backward_arguments(forward: tuple[Any, ...], needs: Sequence[bool]) -> tuple[Any, ...]:
    """What ``attention_backward`` would be called with after ``attention(*forward)``, to ask who takes
    it: q stands for the gradient and, where they are kept, for out and lse."""
    q, k, v, bias, scale, _ = forward
    kept = None if needs_no_statistics(needs, k.shape[2]) else q
    return q, q, k, v, bias, kept, kept, scale, list(needs)
