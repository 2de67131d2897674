"""Calls that were checked and chosen for, found again by all that checks and choices look at.

Beside a small tensor's op they take long, and most of that is asking tensors one thing after another from
Python. torch's compiler has to know the same of every call of a compiled function (type, dtype, device,
dispatch keys, requires_grad, sizes, strides) and asks in one call; so do we. Where torch has it no longer,
or not as it was, nothing is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..backends import dispatch
from . import validation as check
from .budget import Budget

Run = Callable[..., Any]
Key = tuple[Any, ...]
Likeness = Callable[..., bool]

#: What may be in a key: constants, two of which are equal only if they mean the same. (True is 1.)
_PLAIN = frozenset((float, int, str, Budget, torch.dtype, type(None)))
_is_grad_enabled = torch.is_grad_enabled


def call_key(first: Any, *values: Any) -> Key | None:
    """What a call is looked for by, before what its tensors are like: the first one's shape and all that is
    no tensor. None where it cannot be remembered, or where somebody steers or traces it: under
    torch.compile a look into what is remembered would be a guard on all of it."""
    if not check.is_usual() or not dispatch.is_unsteered():
        return None
    if type(first) is not Tensor or not _PLAIN.issuperset(map(type, values)):
        return None
    return first.shape, _is_grad_enabled(), *values


def _likeness(tensors: Sequence[Tensor]) -> Likeness:
    """Whether others are like these in what is listed above. Two of them that are one tensor never are."""
    guards: Any = torch._C._dynamo.guards
    return guards.TensorGuards(  # type: ignore[no-any-return]
        *tensors,
        dynamic_dims_sizes=[list(x.shape) for x in tensors],
        dynamic_dims_strides=[list(x.stride()) for x in tensors],
    ).check


@cache
def _tells_apart() -> bool:
    """Whether the compiler's question is still there, and still asks what we need to know."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    try:
        a, b = empty(2, 4), empty(2, 4)
        others = (
            empty(2, 3),
            empty(4, 2).t(),
            empty(2, 4, dtype=torch.float64),
            empty(2, 4, device="meta"),
            empty(2, 4).requires_grad_(),
            torch._neg_view(empty(2, 4)),
            torch.nn.Parameter(empty(2, 4), requires_grad=False),
            torch.zeros(2, 4, dtype=torch.float32, device="cpu").to_sparse(),
        )
        like = _likeness([a, b])
        apart = not any(like(a, other) or like(other, a) for other in others)
        with torch.autocast("cpu"):
            apart = apart and not like(a, b)
        return apart and like(b, a)
    except Exception:  # whatever it has become
        return False


class Remembered:
    """How calls are run: by their key, and then by what their tensors are like."""

    def __init__(self, most: int = 1024, most_of_a_key: int = 8) -> None:
        self._runs: dict[Key, list[tuple[Likeness, Run]]] = {}
        self._most, self._most_of_a_key = most, most_of_a_key

    def find(self, key: Key, *tensors: Any) -> Run | None:
        for like, run in self._runs.get(key, ()):
            if like(*tensors):
                return run
        return None

    def keep(self, key: Key, run: Run, *tensors: Tensor) -> None:
        """After a call that ``run`` has done."""
        if not _tells_apart():
            return
        like = _likeness(tensors)
        if not like(*tensors):  # one tensor twice, which would not be found
            return
        if key not in self._runs and len(self._runs) >= self._most:
            self._runs.clear()
        of_key = self._runs.setdefault(key, [])
        if len(of_key) >= self._most_of_a_key:
            of_key.clear()
        of_key.append((like, run))
