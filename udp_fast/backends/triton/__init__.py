"""Triton kernels, for NVIDIA GPUs; with TRITON_INTERPRET=1, and slowly, for CPU tensors.

Interpreted kernels are for tests. Somebody who set TRITON_INTERPRET for kernels of their own must not
find ours a thousand times slower, so they serve only where UDP_FAST_BACKEND=triton asks for them.

Importing this package does not import Triton: the first call does.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import dtypes
from ..registry import Backend, one_by_one

#: Op -> the module that has it.
OPS = {
    "attention": "attention",
    "attention_backward": "attention",
    "denoising_loss": "denoising_loss",
    "geglu": "geglu",
    "geglu_backward": "geglu",
    "group_norm_silu": "group_norm_silu",
    "group_norm_silu_backward": "group_norm_silu",
    "image_scale": "image_scale",
    "image_scale_": "image_scale",
    "pgd_step_": "pgd_step",
    "pgd_step_multi_": "pgd_step_multi",
    "q_sample": "q_sample",
    "quantize": "quantize",
}

#: Triton reads it when kernels are defined, that is once.
INTERPRETS = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")

OLDEST = (8, 0)  # compute capability: what the proof compiles for


def _missing() -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if not INTERPRETS and (torch.version.cuda is None or not torch.cuda.is_available()):
        return (
            "no NVIDIA GPU found (with TRITON_INTERPRET=1 and UDP_FAST_BACKEND=triton the kernels"
            " are interpreted on the CPU, for tests)"
        )
    return ""


@lru_cache(maxsize=64)
def _too_old(device: torch.device) -> str:
    found = torch.cuda.get_device_capability(device)
    if found >= OLDEST:
        return ""
    needed = ".".join(map(str, OLDEST))
    return f"{device} has compute capability {found[0]}.{found[1]}, the kernels need {needed}"


def _not_supported_reasons(op: str, args: tuple[Any, ...]) -> list[str]:
    if INTERPRETS and os.environ.get("UDP_FAST_BACKEND") != "triton":
        return ["kernels are interpreted, for tests: only UDP_FAST_BACKEND=triton asks for that"]
    expected = "cpu" if INTERPRETS else "cuda"
    not_served = dtypes.not_served(op, args)
    if not_served:
        return [not_served]
    device = None
    for tensor in dtypes.tensors_on_gpu(op, args):
        if tensor.device.type != expected:
            where = "interpreted on the CPU" if INTERPRETS else "run on a GPU"
            return [f"a tensor is on {tensor.device}, the kernels are {where}"]
        if device is not None and tensor.device != device:
            return [f"tensors are on {device} and {tensor.device}, not on one GPU"]
        device = tensor.device
    too_old = _too_old(device) if device is not None and not INTERPRETS else ""
    return [too_old] if too_old else []


def _status() -> str:
    missing = _missing()
    if missing:
        return missing
    version = f"Triton {importlib.metadata.version('triton')}"
    if INTERPRETS:
        return f"{version}, interpreting on the CPU where UDP_FAST_BACKEND=triton asks for it"
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return "; ".join([version, *(reason for reason in map(_too_old, gpus) if reason)])


def _first_call(op: str) -> Callable[..., Any]:
    module = importlib.import_module(f"{__name__}.{OPS[op]}")
    function: Callable[..., Any] = getattr(module, op)
    return function


def _op(op: str) -> Callable[..., Any]:
    found: list[Callable[..., Any]] = []

    def call(*args: Any) -> Any:
        if not found:
            found.append(_first_call(op))
        device = next(
            (a.device for a in one_by_one(args) if isinstance(a, Tensor) and a.is_cuda), None
        )
        if device is None or device.index == torch.cuda.current_device():
            return found[0](*args)
        with torch.cuda.device(device):  # Triton launches on the current one
            return found[0](*args)

    return call


BACKEND = Backend(
    name="triton",
    ops={op: _op(op) for op in OPS},
    not_supported_reasons=_not_supported_reasons,
    status=_status,
    missing=_missing(),
)
