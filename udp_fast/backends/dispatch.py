"""Which backend takes a call: the first in `registry.order` with no reason against it.

A backend that could serve a call may still leave it to another that can: `preference` holds what was
measured. If no other can, it takes the call after all.

Three variables steer it, read at every call (docs/environment.md):
UDP_FAST_BACKEND pins one backend, UDP_FAST_STRICT=1 makes falling back to the reference an error,
UDP_FAST_LOG_DISPATCH=1 logs every choice to the logger ``udp_fast.dispatch``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from . import preference
from .registry import NAMES, Backend, backend, one_by_one, order

VARIABLES = ("UDP_FAST_BACKEND", "UDP_FAST_STRICT", "UDP_FAST_LOG_DISPATCH")

logger = logging.getLogger("udp_fast.dispatch")


class BackendError(RuntimeError):
    """No backend, or not the pinned one, can serve a call; the message says why."""


@dataclass(frozen=True)
class Candidate:
    """One backend's answer to one call: no reasons means it could serve it.

    ``remark`` says why it leaves such a call to others, or what it has over them; empty where the
    order decides.
    """

    backend: str
    reasons: tuple[str, ...]
    remark: str = ""


#: To find out that a variable is not set `os.environ` raises two errors and catches them, which takes
#: as long as checking a tensor. The dictionary behind it, where there is one, knows at once.
_ENVIRONMENT: dict[Any, Any] | None = getattr(os.environ, "_data", None)
_KEYS: dict[str, Any] = (
    {} if _ENVIRONMENT is None else {v: os.environ.encodekey(v) for v in VARIABLES}
)


def _value(name: str) -> str:
    """A variable's value, "" where it is not set."""
    if _ENVIRONMENT is not None and _KEYS[name] not in _ENVIRONMENT:
        return ""
    return os.environ.get(name, "")


def _flag(name: str) -> bool:
    value = _value(name)
    if value not in ("", "0", "1"):
        raise ValueError(f"{name}: got {value!r}, expected 0 or 1")
    return value == "1"


def _pinned() -> str | None:
    name = _value("UDP_FAST_BACKEND")
    if name in ("", "auto"):
        return None
    if name not in NAMES:
        raise ValueError(
            f"UDP_FAST_BACKEND: got {name!r}, expected auto or one of {', '.join(NAMES)}"
        )
    return name


def _reasons(candidate: Backend, op: str, args: tuple[Any, ...]) -> list[str]:
    if candidate.missing:
        return [candidate.missing]
    if op not in candidate.ops:
        return [f"the {candidate.name} backend has no {op}"]
    return candidate.not_supported_reasons(op, args)


def candidates(op: str, args: tuple[Any, ...]) -> list[Candidate]:
    """Every backend's answer to this call, in dispatch order, whatever the environment pins."""
    answers = []
    for name in order(op):
        reasons = tuple(_reasons(backend(name), op, args))
        answers.append(
            Candidate(name, reasons, "" if reasons else preference.remark(name, op, args))
        )
    return answers


#: Tensors that a refusal names; of a list of many images the first ones say enough.
_NAMED = 12


def describe(value: Any) -> str:
    """One argument as it reads in an error message: a tensor by dtype, shape and device."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)} on {value.device}"
    return repr(value)


def refusal(op: str, args: tuple[Any, ...], headline: str) -> str:
    """The text of a `BackendError`: the headline, every candidate with its reasons, the inputs."""
    lines = [f"{op}: {headline}"]
    for candidate in candidates(op, args):
        reasons = "; ".join(candidate.reasons) or "could serve it"
        lines.append(f"  {candidate.backend}: {reasons}")
    tensors = [a for a in one_by_one(args) if isinstance(a, torch.Tensor)]
    inputs = ", ".join(map(describe, tensors[:_NAMED]))
    if len(tensors) > _NAMED:
        inputs += f" and {len(tensors) - _NAMED} more"
    return "\n".join([*lines, f"  tensors: {inputs}"])


def _if_able(candidate: Backend, op: str, args: tuple[Any, ...]) -> Backend | None:
    return None if _reasons(candidate, op, args) else candidate


def willing(op: str, args: tuple[Any, ...]) -> Backend | None:
    """The first backend that can serve the call and does not leave it to another that can, too."""
    left = None
    for name in order(op):
        candidate = _if_able(backend(name), op, args)
        if candidate is None:
            continue
        if name == "reference":  # only where nobody else can
            return left or candidate
        if not preference.leaves(name, op, args):
            return candidate
        left = left or candidate
    return left


def _choice(op: str, args: tuple[Any, ...], pinned: str | None) -> Backend | None:
    return willing(op, args) if pinned is None else _if_able(backend(pinned), op, args)


def select(op: str, args: tuple[Any, ...]) -> Backend:
    """The backend for this call.

    Raises:
        BackendError: the pinned backend cannot serve it, or UDP_FAST_STRICT=1 and only the
            reference can.
        ValueError: one of the variables holds a value that means nothing.
    """
    pinned = _pinned()
    chosen = _choice(op, args, pinned)
    if chosen is None:
        headline = (
            "no backend can serve this call"
            if pinned is None
            else (f"UDP_FAST_BACKEND={pinned} pins a backend that cannot serve this call")
        )
        raise BackendError(refusal(op, args, headline))
    fallback = chosen.name == "reference" and op not in preference.TORCHS_OWN
    if fallback and pinned is None and _flag("UDP_FAST_STRICT"):
        raise BackendError(
            refusal(op, args, "UDP_FAST_STRICT=1 forbids falling back to the reference")
        )
    _log(op, chosen.name, args)
    return chosen


def takes_as_well(chosen: Backend, op: str, args: tuple[Any, ...]) -> bool:
    """Whether the backend that `select` gave one call would get this one, too, which follows it.

    If so, that is the choice for this one, and is logged as such.
    """
    if _choice(op, args, _pinned()) is not chosen:
        return False
    _log(op, chosen.name, args)
    return True


def _log(op: str, name: str, args: tuple[Any, ...]) -> None:
    if not _flag("UDP_FAST_LOG_DISPATCH"):
        return
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
    first = next((a for a in one_by_one(args) if isinstance(a, torch.Tensor)), None)
    logger.info("%s -> %s (%s)", op, name, describe(first))


class Intercepted(Exception):
    """Carries a call that was checked and about to be dispatched; see `intercept`."""

    def __init__(self, op: str, args: tuple[Any, ...]) -> None:
        super().__init__(op)
        self.op, self.arguments = op, args


_intercepting: ContextVar[bool] = ContextVar("udp_fast_intercepting", default=False)


@contextmanager
def intercept() -> Iterator[None]:
    """Within it `taker` raises `Intercepted`, so that nothing runs, for `explain`."""
    token = _intercepting.set(True)
    try:
        yield
    finally:
        _intercepting.reset(token)


def steering() -> tuple[dict[Any, Any] | None, tuple[Any, ...], ContextVar[bool]]:
    """What may be asked whether a choice, made once, holds for a call that is like that one in all that a
    backend looks at: the environment, None where its dictionary is not known, the keys none of which may
    be in it, and a variable that must be False."""
    return _ENVIRONMENT, tuple(_KEYS.values()), _intercepting


def taker(op: str, args: tuple[Any, ...]) -> Backend:
    """The backend that `select` picks for a call that is about to run."""
    if _intercepting.get():
        raise Intercepted(op, args)
    return select(op, args)


def call(op: str, *args: Any) -> Any:
    """Runs ``op`` on the backend that `select` picks."""
    return taker(op, args).ops[op](*args)
