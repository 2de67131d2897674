"""What all reference ops share: the dtype they calculate in and numbers that belong to an image."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any operand is, else float32."""
    double = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if double else torch.float32


def per_image(value: Tensor, like: Tensor) -> Tensor:
    """A 0-dim or [B] tensor on ``like``'s device, with trailing dimensions to broadcast to it."""
    value = value.to(like.device)
    return value if value.dim() == 0 else value.reshape(-1, *[1] * (like.dim() - 1))
