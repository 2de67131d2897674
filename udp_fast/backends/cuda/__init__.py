"""CUDA C++ kernels (csrc/cuda): one pass over memory an op, noise and targets in registers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..registry import Backend, one_by_one
from . import native
from .attention import attention, attention_backward
from .attention import not_supported_reasons as attention_reasons
from .denoising_loss import denoising_loss
from .geglu import geglu, geglu_backward
from .group_norm_silu import group_norm_silu, group_norm_silu_backward
from .image_scale import image_scale, image_scale_
from .pgd_step import pgd_step_
from .pgd_step_multi import pgd_step_multi_
from .q_sample import q_sample
from .quantize import quantize

#: What an op reads or writes; anything else among its tensors is one number an image.
_SERVED = frozenset(native.DTYPES) | {torch.int64}


@lru_cache(maxsize=64)
def _too_old(device: torch.device) -> str:
    found = torch.cuda.get_device_capability(device)
    if found >= native.OLDEST:
        return ""
    oldest = ".".join(map(str, native.OLDEST))
    return (
        f"{device} has compute capability {found[0]}.{found[1]}, the kernels need {oldest} or later"
    )


def _not_supported_reasons(op: str, args: tuple[Any, ...]) -> list[str]:
    if native.MISSING:
        return [native.MISSING]
    device = None
    for value in one_by_one(args):
        if type(value) is torch.dtype:
            if value not in native.DTYPES:
                return [f"out_dtype {value} is not served, only float32, bfloat16 and float16"]
        elif isinstance(value, Tensor):
            if value.dtype not in _SERVED:
                return [f"{value.dtype} is not served, only float32, bfloat16 and float16"]
            if value.is_cpu and value.dim() == 0:
                continue  # a number for all images
            if not value.is_cuda:
                return [f"a tensor is on {value.device}, not on a GPU"]
            if device is not None and value.device != device:
                return [f"tensors are on {device} and {value.device}, not on one GPU"]
            device = value.device
    too_old = _too_old(device) if device is not None else ""
    if too_old:
        return [too_old]
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
    too_old = [reason for reason in map(_too_old, gpus) if reason]
    return "; ".join([built, *too_old])


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
