"""CUDA C++ kernels (csrc/cuda): one pass over memory an op, noise and targets in registers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from .. import dtypes
from ..registry import Backend
from . import native
from .attention import attention, attention_backward
from .attention import not_supported_reasons as attention_reasons
from .denoising_loss import denoising_loss
from .geglu import geglu, geglu_backward
from .group_norm_silu import group_norm_silu, group_norm_silu_backward
from .image_scale import image_scale, image_scale_
from .pgd_step import pgd_step_
from .pgd_step_multi import not_supported_reasons as multi_reasons
from .pgd_step_multi import pgd_step_multi_
from .q_sample import q_sample
from .quantize import quantize


@lru_cache(maxsize=64)
def _no_code(device: torch.device) -> str:
    found = torch.cuda.get_device_capability(device)
    if native.runs_on(found):
        return ""
    return (
        f"{device} has compute capability {found[0]}.{found[1]}, the kernels were built for"
        f" {native.module().architectures}"
    )


def _not_supported_reasons(op: str, args: tuple[Any, ...]) -> list[str]:
    if native.MISSING:
        return [native.MISSING]
    not_served = dtypes.not_served(op, args)
    if not_served:
        return [not_served]
    device = None
    for tensor in dtypes.tensors_on_gpu(op, args):
        if not tensor.is_cuda:
            return [f"a tensor is on {tensor.device}, not on a GPU"]
        if device is not None and tensor.device != device:
            return [f"tensors are on {device} and {tensor.device}, not on one GPU"]
        device = tensor.device
    no_code = _no_code(device) if device is not None else ""
    if no_code:
        return [no_code]
    if op == "pgd_step_multi_":
        return multi_reasons(*args[:4])
    return attention_reasons(op, args) if op.startswith("attention") else []


def _status() -> str:
    if native.MISSING:
        return native.MISSING
    found = native.module()
    built = f"built with CUDA {found.cuda_version} for {found.architectures}"
    missing = native.no_device()
    if missing:
        return f"{missing} ({built})"
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return "; ".join([built, *filter(None, map(_no_code, gpus))])


BACKEND = Backend(
    name="cuda",
    ops={
        "attention": attention,
        "attention_backward": attention_backward,
        "denoising_loss": denoising_loss,
        "geglu": geglu,
        "geglu_backward": geglu_backward,
        "group_norm_silu": group_norm_silu,
        "group_norm_silu_backward": group_norm_silu_backward,
        "image_scale": image_scale,
        "image_scale_": image_scale_,
        "pgd_step_": pgd_step_,
        "pgd_step_multi_": pgd_step_multi_,
        "q_sample": q_sample,
        "quantize": quantize,
    },
    not_supported_reasons=_not_supported_reasons,
    status=_status,
    missing=native.no_device(),
)
