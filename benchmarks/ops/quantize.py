"""quantize: the perturbation to the written bytes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from udp_fast.ops import noise_key, quantize

from ..measure import OURS, Bar, Case, named, size_of
from .shapes import IMAGES

LEVELS = 8


def eager(delta: Tensor, original: Tensor) -> Tensor:
    levels = (delta * 255).nan_to_num_(0).round_().clamp_(-LEVELS, LEVELS)
    return levels.add_(original).clamp_(0, 255).to(torch.uint8)


def stochastic(delta: Tensor, original: Tensor) -> Tensor:
    levels = (delta * 255).nan_to_num_(0).add_(torch.rand_like(delta)).floor_()
    return levels.clamp_(-LEVELS, LEVELS).add_(original).clamp_(0, 255).to(torch.uint8)


def cases(dtype: torch.dtype = torch.float32) -> Iterator[Case]:
    delta = torch.randn(IMAGES, dtype=dtype) * 0.02
    original = torch.randint(0, 256, IMAGES, dtype=torch.uint8)
    key = noise_key(0, range(IMAGES[0]))
    eps = LEVELS / 255
    yield Case(
        "quantize",
        named("to nearest", dtype),
        IMAGES,
        {
            OURS: lambda: quantize(delta, original, eps=eps),
            "eager": lambda: eager(delta, original),
            "compile": lambda f=torch.compile(eager, dynamic=False): f(delta, original),
        },
        size_of(delta, original, original),
        (Bar("eager", 4),),
    )
    yield Case(
        "quantize",
        named("stochastic", dtype),
        IMAGES,
        {
            OURS: lambda: quantize(delta, original, eps=eps, key=key),
            "eager": lambda: stochastic(delta, original),
            "compile": lambda f=torch.compile(stochastic, dynamic=False): f(delta, original),
        },
        size_of(delta, original, original),
    )
