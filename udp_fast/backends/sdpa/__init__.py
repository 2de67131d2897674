"""torch's own fused attention, `torch.nn.functional.scaled_dot_product_attention`, as a candidate.

The kernels behind that function are called directly: they hand out the rows' sums, which a backward
by another backend can then use, and the other way round.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..registry import Backend
from .attention import attention, attention_backward, kernel

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _not_supported_reasons(op: str, args: tuple[Any, ...]) -> list[str]:
    device = args[0].device
    for value in args:
        if isinstance(value, Tensor) and (
            value.device != device or not (value.is_cpu or value.is_cuda)
        ):
            return [f"a tensor is on {value.device}; all on the CPU or on one GPU are served"]
    q, k, _, bias = args[:4] if op == "attention" else args[1:5]
    if q.dtype not in _DTYPES:
        return [f"{q.dtype} is not served, only float32, bfloat16 and float16"]
    if q.numel() == 0 or k.numel() == 0:
        return ["a tensor is empty"]
    if bias is not None and torch.promote_types(bias.dtype, q.dtype) != q.dtype:
        return [f"torch's kernels would round the bias, {bias.dtype}, to {q.dtype}"]
    if q.is_cuda and kernel(q, bias, k.shape[2]) is None:
        return [
            "torch's GPU kernels want heads of a multiple of 8 numbers"
            + ("" if bias is None else " and a bias on a multiple of 8 keys")
        ]
    return []


BACKEND = Backend(
    name="sdpa",
    ops={"attention": attention, "attention_backward": attention_backward},
    not_supported_reasons=_not_supported_reasons,
    status=lambda: f"scaled_dot_product_attention of torch {torch.__version__}",
)
