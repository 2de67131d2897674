"""attention, forward and backward, beside torch's `scaled_dot_product_attention`.

Backward passes are timed alone, on a graph that is kept. UDP_FAST_BACKEND=cpu measures our kernels
where dispatch would leave a call to torch, and UDP_FAST_CPU_ISA=avx2 those of older processors. What
the choice between the two is made from is `benchmarks/attention_kernels.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from udp_fast.ops import attention

from ..measure import OURS, Bar, Case, named, size_of

#: (B, H, N, M, D), and the least of torch's time over ours: backward for dq alone, for all three.
TEXT = {
    "Stable Diffusion 1.5, 64×64": ((1, 8, 4096, 77, 40), 1.8),
    "Stable Diffusion 1.5, 32×32": ((1, 8, 1024, 77, 80), 1.8),
    "Stable Diffusion 1.5, 16×16": ((1, 8, 256, 77, 160), None),
    "Stable Diffusion XL, 32×32": ((1, 20, 1024, 77, 64), None),
}
SELF = {
    "Stable Diffusion 1.5, 64×64": ((1, 8, 4096, 4096, 40), None),
    "width 40": ((1, 8, 1024, 1024, 40), 1.0),
    "Stable Diffusion 1.5, 32×32": ((1, 8, 1024, 1024, 80), 1.0),
    "Stable Diffusion 1.5, 16×16": ((1, 8, 256, 256, 160), None),
    "Stable Diffusion 1.5, 8×8": ((1, 8, 64, 64, 160), None),
    "Stable Diffusion 2.1, 32×32": ((1, 10, 1024, 1024, 64), None),
    "width 128": ((1, 4, 512, 512, 128), None),
    "VAE, 32×32": ((1, 1, 1024, 1024, 512), None),
}


def backward(
    attend: Callable[..., Tensor], operands: Sequence[Tensor], needs: int
) -> Callable[[], object]:
    """The gradients of the first ``needs`` operands."""
    leaves = [x.detach().requires_grad_(i < needs) for i, x in enumerate(operands)]

    @cache  # at the first call: whoever takes no turn at this needs no graph
    def graph() -> tuple[Tensor, Tensor]:
        out = attend(*leaves)
        return out, torch.randn_like(out)

    def run() -> object:
        out, grad = graph()
        return torch.autograd.grad(out, leaves[:needs], grad, retain_graph=True)

    return run


def forward(attend: Callable[..., Tensor], operands: Sequence[Tensor]) -> Callable[[], object]:
    """With what a backward for all operands would need."""
    leaves = [x.detach().requires_grad_() for x in operands]
    return lambda: attend(*leaves)


def composed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """From torch's operators, scores and probabilities in memory."""
    return torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1) @ v


def step(
    attend: Callable[..., Tensor], operands: Sequence[Tensor], grad: Tensor, needs: int
) -> Callable[[], object]:
    """Forward, and the gradients of the first ``needs`` operands."""
    leaves = [x.detach().requires_grad_(i < needs) for i, x in enumerate(operands)]
    return lambda: torch.autograd.grad(attend(*leaves), leaves[:needs], grad)


def counted_cases() -> Iterator[Case]:
    """To be counted instead of timed: fewer rows, in bfloat16; numbers are for an element of q.

    With dq alone each operand passes once in either direction. For dq, dk and dv two kernels need q, k, v
    and dO, and the sums over rows of dO · O are taken before: of 12 tensors and two numbers a row, of
    which each had to pass once, q, k, v and dO pass once more, and O and dO, for those sums, a third time.
    """
    h, n, d = 2, 256, 64
    for name, m, needs, slack in (
        ("to a text, dq alone, bfloat16", 77, 1, 1.025),
        ("to itself, dq, dk, dv, bfloat16", n, 3, 1.45),
    ):
        operands = [
            torch.randn(1, rows, h, d).to(torch.bfloat16).transpose(1, 2) for rows in (n, m, m)
        ]
        q, k, v = operands
        grad = torch.randn_like(q)
        statistics = h * n * 4 * 2 if needs > 1 else 0  # a logarithm for each row, kept and read
        kept = size_of(q) if needs > 1 else 0
        yield Case(
            "attention",
            name,
            (1, h, n, m, d),
            {
                OURS: step(attention, operands, grad, needs),
                "eager": step(composed, operands, grad, needs),
            },
            2 * size_of(*operands) + size_of(q, grad, *operands[:needs]) + statistics + kept,
            slack=slack,
            total=q.numel(),
        )


def cases(dtype: torch.dtype = torch.float32) -> Iterator[Case]:
    for kind, shapes in (("text", TEXT), ("self", SELF)):
        for name, (shape, bar) in shapes.items():
            b, h, n, m, d = shape
            rows = (n, m, m)
            operands = [torch.randn(b, x, h, d).to(dtype).transpose(1, 2) for x in rows]
            needs = 1 if kind == "text" else 3
            gradients = "dq alone" if kind == "text" else "dq, dk, dv"
            providers = {OURS: attention, "sdpa": F.scaled_dot_product_attention}
            yield Case(
                "attention",
                named(f"{kind}, {name}, forward", dtype),
                shape,
                {who: forward(f, operands) for who, f in providers.items()},
                size_of(*operands, operands[0]),
                (Bar("sdpa", 1.0),) if bar else (),
            )
            yield Case(
                "attention",
                named(f"{kind}, {name}, backward, {gradients}", dtype),
                shape,
                {who: backward(f, operands, needs) for who, f in providers.items()},
                size_of(*operands, *operands[:needs], operands[0]),
                (Bar("sdpa", bar),) if bar else (),
            )
