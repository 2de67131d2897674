"""q_sample with fresh noise."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from udp_fast.ops import noise_key, q_sample

from ..measure import OURS, Bar, Case, named, size_of
from .shapes import IMAGES, LATENTS


def cases(dtype: torch.dtype = torch.float32) -> Iterator[Case]:
    alphas_cumprod = torch.linspace(0.9999, 0.01, 1000)
    for shape in (IMAGES, LATENTS):
        x = torch.rand(shape, dtype=dtype)
        t = torch.arange(len(x)) * 100
        key = noise_key(0, range(len(x)))

        def eager(x: torch.Tensor = x, t: torch.Tensor = t) -> object:
            a = alphas_cumprod[t].reshape(-1, 1, 1, 1).to(x.dtype)
            return a.sqrt() * x + (1 - a).sqrt() * torch.randn_like(x)

        yield Case(
            "q_sample",
            named("fresh noise", dtype),
            shape,
            {
                OURS: lambda x=x, t=t, key=key: q_sample(x, t, alphas_cumprod, key=key),
                "eager": eager,
                "compile": torch.compile(eager, dynamic=False),
            },
            size_of(x, x),
            (Bar("eager", 7),) if shape == IMAGES else (),
        )
