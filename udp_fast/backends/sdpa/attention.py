"""attention by the kernels behind torch's `scaled_dot_product_attention`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..bias import limited
from ..outputs import in_strides_of

_aten: Any = torch.ops.aten


@lru_cache(maxsize=64)
def _has_flash(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def kernel(q: Tensor, bias: Tensor | None, keys: int) -> str | None:
    """Which of torch's kernels serves this on a GPU: flash, efficient or none that asks no padding."""
    if q.shape[3] % 8 != 0:
        return None
    if bias is not None:
        return "efficient" if keys % 8 == 0 else None
    half = q.dtype in (torch.float16, torch.bfloat16)
    return "flash" if half and q.shape[3] <= 256 and _has_flash(q.device) else "efficient"


def _limited(bias: Tensor | None, q: Tensor) -> Tensor | None:
    return None if bias is None else limited(bias.to(q.dtype))


def _expanded(bias: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    if bias is None:
        return None
    return bias.expand(*q.shape[:3], k.shape[2])


def _forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, need_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """Out, in any strides, and lse."""
    if q.is_cpu:
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, attn_mask=bias, scale=scale
        )
        if bias is not None and need_lse:  # it gives 0 where all keys are masked
            lse = lse.masked_fill_((bias == -math.inf).all(-1), -math.inf)
        return out, lse
    if kernel(q, bias, k.shape[2]) == "flash":
        out, lse, *_ = _aten._scaled_dot_product_flash_attention(
            q, k, v, 0.0, False, False, scale=scale
        )
        return out, lse
    out, lse, *_ = _aten._scaled_dot_product_efficient_attention(
        q, k, v, _expanded(bias, q, k), need_lse, 0.0, False, scale=scale
    )
    return out, lse.narrow(2, 0, q.shape[2]) if need_lse else None


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, need_lse: bool
) -> tuple[Tensor, Tensor]:
    out, lse = _forward(q, k, v, _limited(bias, q), scale, need_lse)
    if need_lse:
        assert lse is not None
        lse = lse.contiguous()
    else:
        lse = q.new_empty((0,), dtype=torch.float32)
    return in_strides_of(q, out), lse


def attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor | None,
    lse: Tensor | None,
    scale: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    bias = _limited(bias, q)
    if lse is None:  # kept for a backward that does without; these kernels do not
        out, lse = _forward(q, k, v, bias, scale, True)
    assert lse is not None
    grads: Sequence[Tensor]
    if q.is_cpu:
        # All keys masked: exp(-inf - inf) is the 0 that it should be.
        finite = lse.masked_fill(lse == -math.inf, math.inf) if bias is not None else lse
        grads = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_out, q, k, v, out, finite, 0.0, False, attn_mask=bias, scale=scale
        )
    else:
        seed = torch.zeros((), dtype=torch.int64, device=q.device)
        if kernel(q, bias, k.shape[2]) == "flash":
            grads = _aten._scaled_dot_product_flash_attention_backward(
                *(grad_out, q, k, v, out, lse, None, None, q.shape[2], k.shape[2]),
                *(0.0, False, seed, seed),
                scale=scale,
            )
        else:  # which reads sums by 32
            lse = torch.nn.functional.pad(lse, (0, -q.shape[2] % 32), value=math.inf)
            grads = _aten._scaled_dot_product_efficient_attention_backward(
                *(grad_out, q, k, v, _expanded(bias, q, k), out, lse, seed, seed, 0.0),
                *([*needs, False], False),
                scale=scale,
            )
    dq, dk, dv = (
        in_strides_of(x, grad) if needed else x.new_empty((0,))
        for x, grad, needed in zip((q, k, v), grads, needs, strict=False)
    )
    return dq, dk, dv
