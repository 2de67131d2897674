"""pgd_step_: a sign step, in float32 and in the types of a run in 16 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from udp_fast.ops import pgd_step_

from ..measure import OURS, Bar, Case, size_of
from .shapes import IMAGES, LATENTS

ALPHA, EPS = 2 / 255, 8 / 255

Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def eager(delta: Tensor, grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The same job, in place wherever torch can: the image, and skipped elements by image."""
    skipped = grad.isfinite().logical_not_().flatten(1).sum(1)
    delta.add_(grad.nan_to_num(0, 0, 0).sign_(), alpha=ALPHA).clamp_(-EPS, EPS)
    adv = torch.add(x, delta).clamp_(0, 1)
    torch.sub(adv, x, out=delta)
    return adv, skipped


def unguarded(delta: Tensor, grad: Tensor, x: Tensor) -> tuple[Tensor, None]:
    """As scripts have it: a gradient that is not finite poisons delta, and nobody is told."""
    delta.add_(grad.sign(), alpha=ALPHA).clamp_(-EPS, EPS)
    adv = torch.add(x, delta).clamp_(0, 1)
    torch.sub(adv, x, out=delta)
    return adv, None


def functional(delta: Tensor, grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """What `eager` does, as a compiler likes it."""
    finite = grad.isfinite()
    step = torch.where(finite, grad, 0).sign() * ALPHA
    adv = (x + (delta + step).clamp(-EPS, EPS)).clamp(0, 1)
    delta.copy_(adv - x)
    return adv, (~finite).flatten(1).sum(1)


def eager_bytes(delta: Tensor, grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """`eager` for an original in bytes, the result in the gradient's dtype."""
    skipped = grad.isfinite().logical_not_().flatten(1).sum(1)
    delta.add_(grad.nan_to_num(0, 0, 0).sign_(), alpha=ALPHA).clamp_(-EPS, EPS)
    original = x.float().div_(255)
    adv = torch.add(original, delta).clamp_(0, 1)
    delta.copy_(adv - original)
    return adv.to(grad.dtype), skipped


def tensors(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)  # of whatever device is the default
    return torch.zeros(shape), torch.randn(shape), torch.rand(shape)


def cases() -> Iterator[Case]:
    for shape in (IMAGES, LATENTS):
        delta, grad, x = tensors(shape)
        compiled = torch.compile(functional, dynamic=False)

        def ours(delta: Tensor = delta, grad: Tensor = grad, x: Tensor = x) -> object:
            return pgd_step_(delta, grad, x, alpha=ALPHA, eps=EPS)

        others: dict[str, Step] = {"eager": eager, "compile": compiled, "unguarded": unguarded}
        yield Case(
            "pgd_step",
            "float32",
            shape,
            {
                OURS: ours,
                **{
                    # Each on a delta of its own: all start from the same one.
                    name: lambda step=step, d=delta.clone(), g=grad, x=x: step(d, g, x)
                    for name, step in others.items()
                },
            },
            size_of(delta, delta, grad, x, x),
            (Bar("eager", 4), Bar("compile", 0.95), Bar("copy", 0.85)) if shape == IMAGES else (),
        )

    delta, grad, x = tensors(IMAGES)
    small = (delta.half(), grad.bfloat16(), (x * 255).byte())
    yield Case(
        "pgd_step",
        "uint8 original, bfloat16 gradient and result, float16 delta",
        IMAGES,
        {
            OURS: lambda: pgd_step_(*small, alpha=ALPHA, eps=EPS, out_dtype=torch.bfloat16),
            "float32": lambda: pgd_step_(delta, grad, x, alpha=ALPHA, eps=EPS),
            "eager": lambda: eager_bytes(*small),
        },
        size_of(*small, small[0], small[1]),
        (Bar("float32", 1.7),),
    )
    nhwc = [t.contiguous(memory_format=torch.channels_last) for t in (delta, grad, x)]
    yield Case(
        "pgd_step",
        "float32 channels_last",
        IMAGES,
        {
            OURS: lambda: pgd_step_(*nhwc, alpha=ALPHA, eps=EPS),
            "eager": lambda: eager(*nhwc),
        },
        size_of(*nhwc, delta, x),
    )
