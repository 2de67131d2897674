"""What an additive bias of attention counts as: csrc/math/bias.h in torch."""

from __future__ import annotations

import torch
from torch import Tensor

#: Beside a finite bias of more than that, such as the lowest float that stands for padding, scores
#: would be lost, and with them a row's sum of exponentials in its logarithm. exp(-10000) is 0.
MOST_BIAS = 1e4


def limited(bias: Tensor) -> Tensor:
    """Within ±`MOST_BIAS`; -inf, which masks a key, and what is no number stay."""
    return torch.where(bias.isfinite(), bias.clamp(-MOST_BIAS, MOST_BIAS), bias)
