"""pgd_step_multi: `pgd_step_` on many images of different sizes at once.

Image i is updated as ``pgd_step_`` would update it alone, with the L-infinity budget and without a
mask, to the last bit. What is gained is the launches: a GPU does 64 images in one, where a loop over
photographs of all sizes would spend more time on starting kernels than in them.

An L2 step or budget needs a norm of each image first, and a pass more; use `pgd_step_` for those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends import dispatch
from . import validation as check
from .budget import Budget
from .remembered import Remembered
from .validation import is_dynamo_compiling

STEPS = ("sign", "raw")

# The results are arguments: of an op that returns a list torch.compile cannot follow what it mutates.
torch.library.define(
    "udp_fast::pgd_step_multi_",
    "(Tensor(a!)[] deltas, Tensor(b!)[] advs, Tensor[] grads, Tensor[] xs, Tensor alpha, Tensor eps,"
    " str step, bool maximize, float lo, float hi, float out_lo, float out_hi) -> Tensor",
)


class PGDStepMulti(NamedTuple):
    """What `pgd_step_multi_` returns: the perturbed images, and gradient elements skipped in each."""

    advs: list[Tensor]  # N of deltas' shapes, out_dtype, in out_range
    skipped: Tensor  # [N] int64


def _step(*args: Any) -> Any:
    return dispatch.call("pgd_step_multi_", *args)


torch.library.impl("udp_fast::pgd_step_multi_", "CompositeExplicitAutograd", _step)


def _fake(deltas: list[Tensor], *args: Any) -> Tensor:
    return deltas[0].new_empty((len(deltas),), dtype=torch.int64)


torch.library.register_fake("udp_fast::pgd_step_multi_", _fake)


def _check_images(
    op: str,
    name: str,
    value: Any,
    dtypes: tuple[torch.dtype, ...],
    like: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """``value`` is a sequence of tensors of one dtype on one device, as many and as large as those
    of ``like``."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{op}: {name}: got {type(value).__name__}, expected a list of tensors")
    if like is not None and len(value) != len(like):
        raise ValueError(f"{op}: {name}: got {len(value)} tensors, expected {len(like)}")
    for i, image in enumerate(value):
        of = None if like is None else like[i]
        check.check_tensor(op, f"{name}[{i}]", image, dtypes, like=of)
        check.check_tensor(op, f"{name}[{i}]", image, (value[0].dtype,))
        if image.device != value[0].device:
            raise ValueError(
                f"{op}: {name}[{i}]: got a tensor on {image.device}, expected {value[0].device}"
            )
    return list(value)


_LISTS = frozenset((list, tuple))
_remembered = Remembered(constants=9)


def pgd_step_multi_(
    deltas: Sequence[Tensor],  # N of any shapes, each updated in place
    grads: Sequence[Tensor],  # N, shaped like deltas
    xs: Sequence[Tensor],  # N, shaped like deltas: the originals
    *,
    alpha: float | Tensor | Budget,
    eps: float | Tensor | Budget,
    step: str = "sign",
    maximize: bool = True,
    range: tuple[float, float] = (0.0, 1.0),
    out_range: tuple[float, float] | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> PGDStepMulti:
    """Updates every perturbation in place by one step and returns the images for the model.

    Args:
        deltas: N tensors, an image each, of any shapes and one dtype: float32, float16 or bfloat16
            (float64 on the reference), in units of xs. No two may share memory.
        grads: dL/dadv or dL/ddelta, shaped like deltas; one dtype: float32, bfloat16 or float16.
        xs: the originals, shaped like deltas; one dtype: float, or uint8 meaning
            ``lo + x * (hi - lo) / 255``.
        alpha: step size, eps: L-infinity budget; >= 0; in units of xs a number or a float tensor of
            shape [] or [N], as a fraction of their range a `Budget`. Values in a tensor on an
            accelerator are not checked. A number eps is at most hi - lo, or math.inf: no budget.
        step: "sign" (default) or "raw".
        maximize, range, out_range, out_dtype: as for `pgd_step_`.

    Each result has its delta's memory format. On a GPU an operand whose memory format differs from
    its delta's is copied first.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, number, shape, device or value.
    """
    given: tuple[Any, ...] | None = None
    if not is_dynamo_compiling() and _LISTS.issuperset(map(type, (deltas, grads, xs))):
        options = (alpha, eps, step, maximize, range, out_range, out_dtype)
        given = (len(grads), len(xs), *options, *deltas, *grads, *xs)
        found = _remembered.find(*given)
        if found is not None:
            stepped: PGDStepMulti = found(deltas, grads, xs)
            return stepped
    op = "pgd_step_multi_"
    deltas = _check_images(op, "deltas", deltas, check.FLOATS)
    grads = _check_images(op, "grads", grads, check.FLOATS, deltas)
    xs = _check_images(op, "xs", xs, (*check.FLOATS, torch.uint8), deltas)
    device = deltas[0].device if deltas else torch.device("cpu")
    check.check_choice(op, "step", step, STEPS)
    lo, hi = check.check_range(op, "range", range)
    alpha = check.per_image(op, "alpha", alpha, len(deltas), device, span=hi - lo)
    eps = check.budget_per_image(op, eps, len(deltas), device, (lo, hi))
    out_lo, out_hi = (
        (lo, hi) if out_range is None else check.check_range(op, "out_range", out_range)
    )
    check.check_float_dtype(op, "out_dtype", out_dtype)
    seen: set[int] = set()
    for i, delta in enumerate(deltas):
        check.check_updatable(op, f"deltas[{i}]", delta)
        if id(delta) in seen:
            raise ValueError(f"{op}: deltas[{i}]: got a tensor for the second time")
        seen.add(id(delta))
    if not deltas:
        return PGDStepMulti([], torch.zeros(0, dtype=torch.int64))
    grads, xs = [g.detach() for g in grads], [x.detach() for x in xs]
    constants = (alpha, eps, step, bool(maximize), lo, hi, out_lo, out_hi)
    kernel: Any = torch.ops.udp_fast.pgd_step_multi_

    def run(
        deltas: Sequence[Tensor],
        grads: Sequence[Tensor],
        xs: Sequence[Tensor],
        advs: list[Tensor] | None = None,
    ) -> PGDStepMulti:
        if advs is None:
            advs = [torch.empty_like(delta, dtype=out_dtype) for delta in deltas]
        skipped = kernel(deltas, advs, grads, xs, *constants)
        check.written(*deltas)
        return PGDStepMulti(advs, skipped)

    if not check.is_plain(*deltas, *grads, *xs):
        return run(deltas, grads, xs)
    advs = [torch.empty_like(delta, dtype=out_dtype) for delta in deltas]
    kernel = dispatch.taker(op, (deltas, advs, grads, xs, *constants)).ops[op]
    stepped = run(deltas, grads, xs, advs)
    if given is not None:
        _remembered.keep(run, *given)
    return stepped
