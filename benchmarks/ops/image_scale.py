"""image_scale: a factor per image, in one pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from udp_fast.ops.image_scale import image_scale

from ..measure import OURS, Case, named, size_of
from .shapes import IMAGES


def eager(x: Tensor, scale: Tensor) -> Tensor:
    return x * scale.to(x.dtype).reshape(-1, 1, 1, 1)


def cases(dtype: torch.dtype = torch.float32) -> Iterator[Case]:
    x, scale = torch.randn(IMAGES, dtype=dtype), torch.rand(IMAGES[0])
    yield Case(
        "image_scale",
        named("a factor an image", dtype),
        IMAGES,
        {
            OURS: lambda: image_scale(x, scale),
            "eager": lambda: eager(x, scale),
            "compile": lambda f=torch.compile(eager, dynamic=False): f(x, scale),
        },
        size_of(x, x),
    )
