"""xformers' memory-efficient attention, for NVIDIA GPUs, as a candidate; never needed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any

import torch
from torch import Tensor

from ..registry import Backend
from .attention import attention, attention_backward

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _missing() -> str:
    if importlib.util.find_spec("xformers") is None:
        return "xformers is not installed (pip install xformers)"
    return ""


def _not_supported_reasons(op: str, args: tuple[Any, ...]) -> list[str]:
    tensors = [a for a in args if isinstance(a, Tensor)]
    for tensor in tensors:
        if not tensor.is_cuda or tensor.device != tensors[0].device:
            return [f"a tensor is on {tensor.device}, not on the one GPU"]
    q, k, _, bias = args[:4] if op == "attention" else args[1:5]
    if q.dtype not in _DTYPES:
        return [f"{q.dtype} is not served, only float32, bfloat16 and float16"]
    if q.numel() == 0 or k.numel() == 0:
        return ["a tensor is empty"]
    if bias is not None:
        return ["a bias is left to torch, which wants no alignment of it"]
    if q.shape[3] % 8 != 0:
        return [f"heads of {q.shape[3]} numbers are not served, only multiples of 8"]
    if op == "attention_backward" and args[6] is None:
        return ["needs the forward's out and lse, which this call does without"]
    return []


def _status() -> str:
    return _missing() or f"xformers {importlib.metadata.version('xformers')}"


BACKEND = Backend(
    name="xformers",
    ops={"attention": attention, "attention_backward": attention_backward},
    not_supported_reasons=_not_supported_reasons,
    status=_status,
    missing=_missing(),
)
