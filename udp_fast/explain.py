"""`explain`: which backend would take a call, and why each of the others would not."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import ops
from .backends import dispatch
from .ops.attention import backward_arguments

OPS = (
    "attention",
    "pgd_step",
    "pgd_step_",
    "pgd_step_multi_",
    "q_sample",
    "conv3x3",
    "denoising_loss",
    "geglu",
    "quantize",
    "group_norm_silu",
    "image_scale",
)


@dataclass(frozen=True)
class Explanation:
    """The answer to one call; prints as a small table."""

    op: str
    chosen: str | None
    candidates: tuple[dispatch.Candidate, ...]
    error: str | None = None
    #: Of attention, if a gradient would be wanted: the same for its backward.
    backward: Explanation | None = None

    def __str__(self) -> str:
        lines = [f"{self.op} -> {self.chosen or 'no backend'}"]
        for candidate in self.candidates:
            mark = "*" if candidate.backend == self.chosen else " "
            reasons = "; ".join(candidate.reasons) or candidate.remark or "can serve this call"
            lines.append(f" {mark} {candidate.backend:<10} {reasons}")
        text = "\n".join(lines + ([self.error] if self.error else []))
        return text if self.backward is None else f"{text}\n{self.backward}"


def _explain(op: str, name: str, args: tuple[Any, ...]) -> Explanation:
    asked = tuple(dispatch.candidates(name, args))
    try:
        return Explanation(op, dispatch.select(name, args).name, asked)
    except dispatch.BackendError as refused:
        return Explanation(op, None, asked, str(refused).splitlines()[0])


def explain(op: str, *inputs: Any, **options: Any) -> Explanation:
    """Checks a call like ``udp_fast.ops.<op>(*inputs, **options)`` and says who would run it.

    Nothing is computed and no input changes. Print the result.

    Raises:
        ValueError: no such op; and whatever the op itself raises for bad arguments.
    """
    if op not in OPS:
        raise ValueError(f"explain: op: got {op!r}, expected one of {', '.join(OPS)}")
    # Attention's choice depends on which gradients are wanted; of the others none is ever computed.
    differentiable = op == "attention"
    try:
        with nullcontext() if differentiable else torch.no_grad(), dispatch.intercept():
            getattr(ops, op)(*inputs, **options)
    except dispatch.Intercepted as call:
        name, args = call.op, call.arguments
    else:
        return Explanation(op, None, (), "there is nothing to compute, and nobody is asked")
    said = _explain(op, name, args)
    needs = [differentiable and torch.is_grad_enabled() and x.requires_grad for x in args[:3]]
    if differentiable and any(needs):
        after = backward_arguments(args, needs)
        said = replace(said, backward=_explain("attention, backward", "attention_backward", after))
    return said
