"""Which of several backends that can serve a call should: where ours is not the first choice, and why.

Convolutions on a GPU are torch's, that is cuDNN's: there is no kernel of ours. Attention has good
kernels elsewhere, in torch (`scaled_dot_product_attention`, the backend sdpa) and in xformers. Ours
take a call only where that is justified:

- On a GPU, for the backward with respect to q alone, which computes three of the five products and
  keeps nothing but q, k and v; no other library offers it.
- On the CPU, where ours were measured to be faster. `MEASURED` is the rule: a call whose row is
  missing goes to torch, and so does one of a dtype that torch multiplies in AMX's tiles.
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
    """Calls on the CPU for which our kernels were faster than torch's on every shape that was measured."""

    op: str
    gradients: str  #: "" forward, "dq" that alone, "all": dk or dv as well
    isa: str  #: of our kernels
    dtype: torch.dtype
    largest_head: int  #: D at most
    ratio: float  #: torch's time over ours, where it was lowest
    least_work: int = 0  #: B * H * N * M * D at least

    def covers(self, head: int, work: int) -> bool:
        return head <= self.largest_head and work >= self.least_work


F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
FORWARD, BACKWARD = "attention", "attention_backward"

#: Whose reference is no definition in steps but torch's own kernel: on a GPU cuDNN's, beside which
#: there is none of ours, and on the CPU what serves the shapes that ours leave alone. So taking it is
#: no fallback.
TORCHS_OWN = frozenset(("conv3x3", "conv3x3_dx"))

#: ``ratio``: python -m benchmarks.attention_kernels, which times the kernels alone, as they are behind the
#: ops and behind torch's function, one thread and two, torch 2.13. AVX2: two cores of a Zen 3, which has no
#: more, and of few keys in float32 more shapes, 4 to 128 keys and 16 to 4096 queries. Its backward in 16 bits
#: is many times slower there; its forward in bfloat16 of wide heads is not. Float32 with wide heads gains
#: least. AVX-512: two cores of a Zen 5, where torch has bfloat16's products as well (a Zen 4, measured with
#: older kernels of ours, gained less). Missing are what torch did as fast.
#:
#: ``least_work``: python -m benchmarks.attention_calls, forward and backward together. Below, what is around
#: a call takes longer than our kernels gain; left to torch it then takes 0.95 to 0.99 of the speed of torch's
#: function. Heads up to 160 gain at every size with two threads (AVX2 1.01 to 2.1 times its speed, AVX-512
#: 1.26 to 3.2); with one, all gradients together of less than some 5 million products reach 0.9 to 1.0 of it
#: with AVX2, of less than 0.1 million with AVX-512.
MEASURED = (
    Measured(FORWARD, "", "avx512", F32, 160, 2.12),
    Measured(FORWARD, "", "avx512", F32, 512, 1.97, least_work=1_500_000),
    Measured(FORWARD, "", "avx512", F16, 512, 2.72),
    Measured(FORWARD, "", "avx512", BF16, 512, 2.01),
    Measured(FORWARD, "", "avx2", F32, 80, 1.04),
    Measured(FORWARD, "", "avx2", F32, 160, 1.003),
    Measured(FORWARD, "", "avx2", F16, 512, 1.24),
    Measured(FORWARD, "", "avx2", BF16, 160, 1.11),
    Measured(BACKWARD, "dq", "avx512", F32, 160, 3.24),
    Measured(BACKWARD, "dq", "avx512", F32, 512, 3.19, least_work=1_500_000),
    Measured(BACKWARD, "dq", "avx512", F16, 512, 20),
    Measured(BACKWARD, "dq", "avx512", BF16, 512, 1.91),
    Measured(BACKWARD, "dq", "avx2", F32, 160, 1.54),
    Measured(BACKWARD, "dq", "avx2", F32, 512, 1.54, least_work=1_500_000),
    Measured(BACKWARD, "dq", "avx2", F16, 512, 7.9),
    Measured(BACKWARD, "dq", "avx2", BF16, 512, 11.4),
    Measured(BACKWARD, "all", "avx512", F32, 160, 1.72),
    Measured(BACKWARD, "all", "avx512", F32, 512, 1.9, least_work=1_500_000),
    Measured(BACKWARD, "all", "avx512", F16, 512, 12),
    Measured(BACKWARD, "all", "avx512", BF16, 512, 1.15),
    Measured(BACKWARD, "all", "avx2", F32, 80, 1.05),
    Measured(BACKWARD, "all", "avx2", F32, 160, 1.02),
    Measured(BACKWARD, "all", "avx2", F16, 512, 7.3),
    Measured(BACKWARD, "all", "avx2", BF16, 512, 4.7),
)


@lru_cache(maxsize=4)
def torch_has_tiles(dtype: torch.dtype) -> bool:
    """Whether torch multiplies matrices of this dtype in AMX's tiles here, beside which our kernels were
    never measured; their products are float32's."""
    names = {BF16: "_is_amx_tile_supported", F16: "_is_amx_fp16_supported"}
    asked = getattr(torch.cpu, names.get(dtype, ""), None)
    return asked is not None and bool(asked())


def _gradients(op: str, args: tuple[Any, ...]) -> str:
    if op == FORWARD:
        return ""
    _, needs_k, needs_v = args[-1]
    return "all" if needs_k or needs_v else "dq"


@lru_cache(maxsize=256)
def _measured(
    op: str,
    gradients: str,
    isa: str,
    dtype: torch.dtype,
    head: int,
    work: int,
) -> Measured | None:
    for row in MEASURED:
        same = (row.op, row.gradients, row.isa, row.dtype) == (op, gradients, isa, dtype)
        if same and row.covers(head, work):
            return row
    return None


def _on_cpu(op: str, args: tuple[Any, ...]) -> Measured | None:
    """The row that speaks for our kernels, if they are there."""
    ours = backend("cpu")
    if ours.missing:
        return None
    if torch_has_tiles(args[0].dtype):
        return None
    q, k = args[:2] if op == FORWARD else args[1:3]
    kind = (op, _gradients(op, args), ours.variant(), q.dtype)
    return _measured(*kind, q.shape[3], q.numel() * k.shape[2])


def leaves(name: str, op: str, args: tuple[Any, ...]) -> bool:
    """Whether backend ``name`` leaves a call that it could serve to others, if one of them can."""
    if op not in (FORWARD, BACKWARD):
        return False
    if name in OURS_ON_GPU:
        return bool(args[0].is_cuda) and _gradients(op, args) != "dq"
    if name == "sdpa":
        return bool(args[0].is_cpu) and _on_cpu(op, args) is not None
    return False


def remark(name: str, op: str, args: tuple[Any, ...]) -> str:
    """What there is to say about ``name`` and a call that it could serve; see `Candidate`."""
    if op in TORCHS_OWN and name == "reference":
        return "torch's convolution" + (", on a GPU cuDNN's" if args[0].is_cuda else "")
    if op not in (FORWARD, BACKWARD):
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
        return f"{what}: ours not measured to be faster (preference.MEASURED)"
    return (
        f"{what}: our kernels measured at least {row.ratio:g} times as fast (preference.MEASURED)"
    )
