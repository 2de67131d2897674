"""Calls that were checked and chosen for, found again by all that checks and choices look at.

Beside a small tensor's op they take long, and most of that is asking tensors one thing after another from
Python. torch's compiler has to know the same of every call of a compiled function (type, dtype, device,
dispatch keys, requires_grad, sizes, strides) and asks in one call; so do we. Where torch has it no longer,
or not as it was, nothing is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

Run = Callable[..., Tensor]
Likeness = Callable[..., bool]


def _likeness(tensors: Sequence[Tensor]) -> Likeness:
    """Whether others are like these in what is listed above. Two of them that are one tensor never are."""
    guards: Any = torch._C._dynamo.guards
    return guards.TensorGuards(  # type: ignore[no-any-return]
        *tensors,
        dynamic_dims_sizes=[list(x.shape) for x in tensors],
        dynamic_dims_strides=[list(x.stride()) for x in tensors],
    ).check


def _tells_apart() -> bool:
    """Whether the compiler's question is still there, and still asks what we need to know."""
    a, b = torch.empty(2, 4), torch.empty(2, 4)
    others = (
        torch.empty(2, 3),
        torch.empty(4, 2).t(),
        torch.empty(2, 4, dtype=torch.float64),
        torch.empty(2, 4, device="meta"),
        torch.empty(2, 4, requires_grad=True),
        torch._neg_view(b),
        torch.nn.Parameter(b, requires_grad=False),
        torch.eye(4)[:2].to_sparse(),
    )
    try:
        like = _likeness([a, b])
        return like(b, a) and not any(like(a, other) for other in others)
    except Exception:  # whatever it has become
        return False


class Remembered:
    """How calls are run: by a key, for what is no tensor, and then by what the tensors are like.

    Who looks here must have found that nobody traces, and have the autograd mode in the key.
    """

    def __init__(self, most: int = 1024, most_of_a_key: int = 8) -> None:
        self._runs: dict[Hashable, list[tuple[Likeness, Run]]] = {}
        self._most, self._most_of_a_key = most, most_of_a_key

    def find(self, key: Hashable, *tensors: Any) -> Run | None:
        for like, run in self._runs.get(key, ()):
            if like(*tensors):
                return run
        return None

    def keep(self, key: Hashable, run: Run, *tensors: Tensor) -> None:
        if not _TELLS_APART:
            return
        if len(self._runs) >= self._most:
            self._runs.clear()
        of_key = self._runs.setdefault(key, [])
        if len(of_key) >= self._most_of_a_key:
            of_key.clear()
        of_key.append((_likeness(tensors), run))


_TELLS_APART = _tells_apart()
