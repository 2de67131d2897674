"""Calls that were checked and chosen for, found again by all that checks and choices look at.

Beside a small tensor's op they take long, and most of that is asking tensors one thing after another from
Python. torch's compiler has to know the same of every call of a compiled function (type, dtype, device,
dispatch keys, requires_grad, sizes, strides) and asks in one call; so do we, from csrc/remembered.cpp. Where
torch has it no longer, or not as it was, nothing is remembered, nor without the native module, nor where
`os.environ` has no dictionary that C could ask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..backends import dispatch
from ..backends.cpu import native
from . import validation as check
from .budget import Budget

Run = Callable[..., Any]
Key = tuple[Any, ...]
Likeness = Callable[..., bool]


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

    # Whatever the first call is made under.
    usual = (torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False))
    try:
        with usual[0], usual[1], usual[2]:
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
            for steered in (torch.autocast("cpu"), torch.inference_mode()):
                with steered:
                    apart = apart and not like(a, b)

            def within(x: Tensor) -> Tensor:
                nonlocal apart
                apart = apart and not like(a, b)
                return x

            torch.func.vmap(within)(a)
            return apart and like(b, a)
    except Exception:  # whatever it has become
        return False


class Remembered:
    """How calls are run: by a key of what is no tensor, and then by what their tensors are like.

    ``constants``: how many of an op's arguments come first and are no tensors.
    """

    def __init__(self, constants: int, most: int = 1024, most_of_a_key: int = 8) -> None:
        self._runs: dict[Key, list[tuple[Likeness, Run]]] = {}
        self._constants, self._most, self._most_of_a_key = constants, most, most_of_a_key
        #: ``find(*constants, *tensors)``: the run of an earlier call like this one, or None.
        self.find: Callable[..., Run | None] = lambda *args: None
        self._key: Callable[..., Key | None] = lambda *args: None
        environment, *steering = dispatch.steering()
        if not native.MISSING and environment is not None:
            self.find, self._key = native.module().remembered(
                (
                    self._runs,
                    constants,
                    Tensor,
                    (Budget, torch.dtype),
                    torch.is_grad_enabled,
                    check.count_modes,
                    vars(forward_ad),
                    environment,
                    *steering,
                )
            )

    def keep(self, run: Run, *args: Any) -> None:
        """After a call with these ``(*constants, *tensors)`` that ``run`` has done.

        Not where somebody steers, traces, transforms or sees it: a call that is like that one would not be
        run as it would elsewhere.
        """
        if not check.is_usual() or not _tells_apart():
            return
        key, tensors = self._key(*args), args[self._constants :]
        if key is None:
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
