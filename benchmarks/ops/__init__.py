"""One file an op: shapes of real use, and what else does the same job."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..measure import Case
from . import (
    attention,
    conv3x3,
    denoising_loss,
    geglu,
    group_norm_silu,
    image_scale,
    pgd_step,
    pgd_step_multi,
    q_sample,
    quantize,
)

_MODULES = (
    pgd_step,
    pgd_step_multi,
    q_sample,
    denoising_loss,
    image_scale,
    quantize,
    attention,
    group_norm_silu,
    conv3x3,
    geglu,
)
#: Those that also come in bfloat16, as models on a GPU have it.
_MODULES_16_BIT = (
    q_sample,
    denoising_loss,
    image_scale,
    quantize,
    attention,
    group_norm_silu,
    geglu,
)


def cases(only: str = "") -> Iterator[Case]:
    """All of them, or, where `only` begins with the name of an op, as titles do, at least those that it
    may be meant for; each builds its tensors when its turn comes."""
    word = only.split(",")[0]
    meant = [m for m in _MODULES if word and m.__name__.rpartition(".")[2].startswith(word)]
    for module in meant or _MODULES:
        yield from module.cases()


def cases_16_bit() -> Iterator[Case]:
    """In bfloat16."""
    for module in _MODULES_16_BIT:
        yield from module.cases(torch.bfloat16)
