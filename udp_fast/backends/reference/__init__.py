"""The reference: torch code that defines every op, in any float dtype, on any device. Not fast."""

from __future__ import annotations

from typing import Any

from ..registry import Backend
from .attention import attention, attention_backward
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
    return []


BACKEND = Backend(
    name="reference",
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
    status=lambda: "torch code, always available",
)
