"""One file an op: shapes of real use, and what else does the same job."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..measure import Case
from . import attention, denoising_loss, pgd_step, pgd_step_multi, q_sample, quantize


def cases() -> Iterator[Case]:
    """All of them; each builds its tensors when its turn comes."""
    for module in (pgd_step, pgd_step_multi, q_sample, denoising_loss, quantize, attention):
        yield from module.cases()


def cases_16_bit() -> Iterator[Case]:
    """Those of them that also come in bfloat16, as models on a GPU have it."""
    for module in (q_sample, denoising_loss, quantize, attention):
        yield from module.cases(torch.bfloat16)
