"""What a backend is, and the list of those that exist, in the order in which they are tried."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

#: Tried in this order; `reference` defines every op and takes every call the others decline.
ORDER = ("cuda", "triton", "cpu", "reference")

#: Where other libraries have kernels as well, these are asked after ours for the GPU. Who takes a call
#: that several could serve is then decided by `preference`.
ORDER_OF = dict.fromkeys(
    ("attention", "attention_backward"),
    ("cuda", "triton", "xformers", "sdpa", "cpu", "reference"),
)

#: All there are, each after those that are asked before it.
NAMES = ORDER_OF["attention"]


def order(op: str) -> tuple[str, ...]:
    """The candidates for an op."""
    return ORDER_OF.get(op, ORDER)


@dataclass(frozen=True)
class Backend:
    """One implementation of some or all ops.

    ``ops`` maps an op's name to a function that takes the op's arguments in the order of its
    torch.library schema. ``not_supported_reasons(op, args)`` answers why this call cannot be served
    (sentences; an empty list means it can) without touching any data. ``status()`` is one line for
    `python -m udp_fast.info`: what was found, or why the backend is not usable on this machine.
    ``missing`` says why it cannot take any call in this process (not built, no driver); empty if
    it can. ``variant()`` names the kernels that this machine gets, where there are several kinds.
    ``prepares`` has, for some ops, a function that takes the same arguments and returns one that does
    this to other tensors that are like these, in less time, or None.
    """

    name: str
    ops: Mapping[str, Callable[..., Any]]
    not_supported_reasons: Callable[[str, tuple[Any, ...]], list[str]]
    status: Callable[[], str]
    missing: str = ""
    variant: Callable[[], str] = str
    prepares: Mapping[str, Callable[..., Callable[..., Any] | None]] = field(default_factory=dict)

    def prepared(self, op: str, args: tuple[Any, ...]) -> Callable[..., Any] | None:
        """What ``prepares`` has for this call."""
        prepare = self.prepares.get(op)
        return None if prepare is None else prepare(*args)


def one_by_one(args: tuple[Any, ...]) -> Iterable[Any]:
    """An op's arguments, and in place of a list what is in it."""
    if {list, tuple}.isdisjoint(map(type, args)):  # nearly every call: as cheap as it gets
        return args
    pieces: list[Any] = []
    for value in args:
        if isinstance(value, (list, tuple)):
            pieces.extend(value)
        else:
            pieces.append(value)
    return pieces


@cache
def backend(name: str) -> Backend:
    """The backend called ``name``, imported on first use."""
    if name not in NAMES:
        raise ValueError(f"backend: got {name!r}, expected one of {', '.join(NAMES)}")
    found = importlib.import_module(f"udp_fast.backends.{name}").BACKEND
    assert isinstance(found, Backend)
    return found
