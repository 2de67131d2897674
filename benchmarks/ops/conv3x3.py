"""conv3x3 and its gradient with respect to the image, on shapes of Stable Diffusion 1.5's UNet."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from udp_fast.ops import conv3x3

from ..measure import OURS, Bar, Case, size_of

#: Channels in and out, height and width of a latent of 64 × 64 at each depth of the network.
SHAPES = ((320, 320, 64), (640, 640, 32), (1280, 1280, 16), (1280, 1280, 8))


def step(
    convolve: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, dy: Tensor
) -> Tensor:
    (dx,) = torch.autograd.grad(convolve(x, weight), x, dy)
    return dx


def eager(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


def cases() -> Iterator[Case]:
    if not torch.empty(0).is_cpu:
        return  # torch itself serves this op on a GPU
    for channels, out, side in SHAPES:
        weight = torch.randn(out, channels, 3, 3) / (9 * channels) ** 0.5
        x = torch.randn(1, channels, side, side, requires_grad=True)
        dy = torch.randn(1, out, side, side)
        last = torch.channels_last
        ours = x.detach().contiguous(memory_format=last).requires_grad_()
        ours_dy = dy.contiguous(memory_format=last)
        yield Case(
            "conv3x3",
            "forward and dx",
            (1, channels, side, side),
            {
                OURS: lambda x=ours, w=weight, g=ours_dy: step(conv3x3, x, w, g),
                "eager": lambda x=x, w=weight, g=dy: step(eager, x, w, g),
                "eager, channels_last": lambda x=ours, w=weight, g=ours_dy: step(eager, x, w, g),
            },
            2 * size_of(x, weight, dy),
            (Bar("eager", 1.5),),
        )
