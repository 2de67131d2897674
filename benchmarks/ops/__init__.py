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
    """All of them, or at least those whose title has `only` in it; each builds its tensors when its turn
    comes. Titles begin with an op's name: where `only` does, the files of other ops are left out."""
    names = {module.__name__.rpartition(".")[2]: module for module in _MODULES}
    op = only.split(",")[0]
    for name, module in names.items():
        if op not in names or op in name:
            yield from module.cases()


def cases_16_bit() -> Iterator[Case]:
    """In bfloat16."""
    for module in _MODULES_16_BIT:
        yield from module.cases(torch.bfloat16)
