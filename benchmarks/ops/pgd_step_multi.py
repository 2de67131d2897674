"""pgd_step_multi_: photographs of many sizes in one call."""

from __future__ import annotations

from collections.abc import Iterator

from udp_fast.ops import pgd_step_, pgd_step_multi_

from ..measure import OURS, Case, size_of
from .pgd_step import ALPHA, EPS, eager, tensors

#: Small pictures, as crops and thumbnails are: what a call costs shows here.
SIZES = [(3, 64 + 8 * i, 96 + 4 * i) for i in range(24)]


def cases() -> Iterator[Case]:
    deltas, grads, xs = zip(*map(tensors, SIZES), strict=True)
    # The others step on deltas of their own.
    one_by_one, plain = [d[None].clone() for d in deltas], [d[None].clone() for d in deltas]
    batches = [(g[None], x[None]) for g, x in zip(grads, xs, strict=True)]

    def loop() -> None:
        for delta, (grad, x) in zip(one_by_one, batches, strict=True):
            pgd_step_(delta, grad, x, alpha=ALPHA, eps=EPS)

    def torch_loop() -> None:
        for delta, (grad, x) in zip(plain, batches, strict=True):
            eager(delta, grad, x)

    yield Case(
        "pgd_step_multi",
        "float32, 64 to 248 rows",
        (len(SIZES),),
        {
            OURS: lambda: pgd_step_multi_(deltas, grads, xs, alpha=ALPHA, eps=EPS),
            "a loop of pgd_step": loop,
            "eager": torch_loop,
        },
        size_of(*deltas, *deltas, *grads, *xs, *xs),
        total=sum(d.numel() for d in deltas),
    )
