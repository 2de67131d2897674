"""Which of several backends that can serve a call should: where ours is not the first choice, and why.

Attention has good kernels elsewhere, in torch (`scaled_dot_product_attention`, the backend sdpa) and
in xformers. Ours take a call only where that is justified:

- On a GPU, for the backward with respect to q alone, which computes three of the five products and
  keeps nothing but q, k and v; no other library offers it.
- On the CPU, where ours were measured to be faster. `MEASURED` is the rule: a call whose row is
  missing goes to torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from .registry import backend

OURS_ON_GPU = ("cuda", "triton")


@dataclass(frozen=True)
class Measured:
    """Calls on the CPU for which ours were faster than torch wherever they were measured."""

    op: str
    gradients: str  #: "" forward, "dq" that alone, "all": dk or dv as well
    isa: str  #: of our kernels
    dtype: torch.dtype
    largest_head: int  #: D at most
    ratio: float  #: torch's time over ours, where it was lowest


#: python -m benchmarks --only attention, with UDP_FAST_CPU_ISA=avx2 for the second half; two cores of
#: an AMD EPYC (Zen 4), torch 2.13, D from 40 to 512 and 64 to 4096 queries.
MEASURED = (
    Measured("attention", "", "avx512", torch.float32, 512, 1.07),
    Measured("attention_backward", "dq", "avx512", torch.float32, 512, 1.78),
    Measured("attention_backward", "all", "avx512", torch.float32, 256, 1.10),
)


def _gradients(op: str, args: tuple[Any, ...]) -> str:
    if op == "attention":
        return ""
    _, needs_k, needs_v = args[-1]
    return "all" if needs_k or needs_v else "dq"


@lru_cache(maxsize=256)
def _measured(op: str, gradients: str, isa: str, dtype: torch.dtype, head: int) -> Measured | None:
    for row in MEASURED:
        if (row.op, row.gradients, row.isa, row.dtype) == (op, gradients, isa, dtype):
            return row if head <= row.largest_head else None
    return None


def _on_cpu(op: str, args: tuple[Any, ...]) -> Measured | None:
    """The row that speaks for our kernels, if they are there."""
    ours = backend("cpu")
    if ours.missing:
        return None
    q = args[0]
    return _measured(op, _gradients(op, args), ours.variant(), q.dtype, q.shape[3])


def leaves(name: str, op: str, args: tuple[Any, ...]) -> bool:
    """Whether backend ``name`` leaves a call that it could serve to others, if one of them can."""
    if op not in ("attention", "attention_backward"):
        return False
    if name in OURS_ON_GPU:
        return bool(args[0].is_cuda) and _gradients(op, args) != "dq"
    if name == "sdpa":
        return bool(args[0].is_cpu) and _on_cpu(op, args) is not None
    return False


def remark(name: str, op: str, args: tuple[Any, ...]) -> str:
    """What there is to say about ``name`` and a call that it could serve; see `Candidate`."""
    if op not in ("attention", "attention_backward"):
        return ""
    gradients = _gradients(op, args)
    if args[0].is_cuda and name in OURS_ON_GPU:
        if gradients == "dq":
            return "dq alone is wanted: three products of five"
        what = "dk or dv is wanted" if gradients else "forward"
        return f"{what}: left to torch or xformers, than which ours is not known to be faster"
    if not args[0].is_cpu or name not in ("sdpa", "cpu"):
        return ""
    what = {"": "forward", "dq": "dq alone", "all": "dk or dv is wanted"}[gradients]
    row = _on_cpu(op, args)
    if row is None:
        return f"{what}: ours not measured to be faster for this dtype, head and instruction set"
    return f"{what}: ours measured at least {row.ratio:g} times as fast (preference.MEASURED)"
