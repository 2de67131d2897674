"""Native CPU kernels (csrc/cpu), one pass over memory an op, on torch's own threads."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import dtypes
from ..registry import Backend, one_by_one
from . import conv3x3 as _conv3x3
from . import geglu as _geglu
from . import native
from .attention import (
    attention,
    attention_backward,
    prepare_attention,
    prepare_attention_backward,
)
from .conv3x3 import conv3x3, conv3x3_dx
from .denoising_loss import denoising_loss
from .geglu import geglu, geglu_backward
from .group_norm_silu import group_norm_silu, group_norm_silu_backward
from .image_scale import image_scale, image_scale_
from .pgd_step import pgd_step_
from .pgd_step_multi import pgd_step_multi_
from .q_sample import q_sample
from .quantize import quantize


def _not_supported_reasons(op: str, args: tuple[Any, ...]) -> list[str]:
    if op in ("conv3x3", "conv3x3_dx"):
        return _conv3x3.not_supported_reasons(*args[:2])
    if op in ("geglu", "geglu_backward"):
        return _geglu.not_supported_reasons(*args)
    not_served = dtypes.not_served(op, args)
    if not_served:
        return [not_served]
    for value in one_by_one(args):
        if isinstance(value, Tensor) and not value.is_cpu:
            return [f"a tensor is on {value.device}, not in the processor's memory"]
    return []


def _status() -> str:
    if native.MISSING:
        return native.MISSING
    found = native.module()
    try:
        isa = found.isa()
    except ValueError as error:
        return f"not usable: {error}"
    compiled = ", ".join(found.compiled_isas())
    return f"{isa} kernels (built: {compiled}) on {found.threading_runtime()}"


BACKEND = Backend(
    name="cpu",
    ops={
        "attention": attention,
        "attention_backward": attention_backward,
        "conv3x3": conv3x3,
        "conv3x3_dx": conv3x3_dx,
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
    prepares={
        "attention": prepare_attention,
        "attention_backward": prepare_attention_backward,
    },
    missing=native.MISSING,
    variant=lambda: str(native.module().isa()),
)
