"""The reference: torch code that defines every op, in any float dtype, on any device. Not fast."""

from __future__ import annotations

from typing import Any

from ..registry import Backend
from .attention import attention, attention_backward
from .denoising_loss import denoising_loss
from .image_scale import image_scale
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
        "denoising_loss": denoising_loss,
        "image_scale": image_scale,
        "pgd_step_": pgd_step_,
        "pgd_step_multi_": pgd_step_multi_,
        "q_sample": q_sample,
        "quantize": quantize,
    },
    not_supported_reasons=_not_supported_reasons,
    status=lambda: "torch code, always available",
)
