"""One contract for all backends: a test that asks for ``backend_name`` runs on each in the registry."""

from __future__ import annotations

import importlib
import os
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from udp_fast.backends import dispatch
from udp_fast.backends.cpu import native
from udp_fast.backends.registry import ORDER, backend, order
from udp_fast.backends.triton import INTERPRETS
from udp_fast.ops import validation

ON_GPU = ("cuda", "triton")
REMEMBERING = [f"udp_fast.ops.{op}" for op in ("attention", "pgd_step", "pgd_step_multi")]


def device_of(name: str) -> AbstractContextManager[object]:
    """Within it tensors are made where the backend wants them."""
    return torch.device("cuda") if name in ON_GPU and not INTERPRETS else nullcontext()


def each(names: tuple[str, ...]) -> list[Any]:
    """The backends as parameters; those that want a GPU are marked."""
    return [pytest.param(n, marks=pytest.mark.gpu) if n in ON_GPU else n for n in names]


def pinned(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    op: str,
    arguments: Callable[[], tuple[Any, ...]],
) -> Iterator[str]:
    """Pins one backend for the test, on whose device the test's tensors are made; skips it, with the
    reason, where it cannot run a call such as the op's with these arguments."""
    if backend(name).missing:
        pytest.skip(f"{name}: {backend(name).missing}")
    monkeypatch.setenv("UDP_FAST_BACKEND", name)
    with device_of(name):
        declined = backend(name).not_supported_reasons(op, arguments())
        if declined:
            pytest.skip(f"{name}: {declined[0]}")
        yield name


@pytest.fixture(params=each(ORDER))
def backend_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield from pinned(
        request.param, monkeypatch, "image_scale", lambda: (torch.ones(1, 1), torch.ones(1))
    )


@pytest.fixture(params=["eager", "library"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through our own autograd function, or through torch.library as for a tensor's subclass."""
    if request.param == "library":
        monkeypatch.setattr(validation, "is_eager", lambda *tensors: False)


def _attention() -> tuple[Any, ...]:
    x = torch.ones(1, 1, 8, 8)
    return x, x, x, None, 1.0, False


@pytest.fixture(params=each(order("attention")))
def attention_backend(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    if "attention" not in backend(request.param).ops:
        pytest.skip(f"{request.param} has no attention")
    yield from pinned(request.param, monkeypatch, "attention", _attention)


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mapping[Any, Any]]:
    """What is remembered from here on of calls, not of their backward, with no variable set."""
    if native.MISSING:
        pytest.skip(native.MISSING)
    for name in dispatch.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    modules = map(importlib.import_module, REMEMBERING)
    calls: list[dict[Any, Any]] = [module._remembered._runs for module in modules]
    backward = importlib.import_module("udp_fast.ops.attention")._remembered_backward._runs
    for runs in (*calls, backward):
        runs.clear()
    yield ChainMap(*calls)
    for runs in (*calls, backward):
        runs.clear()


settings.register_profile(
    "ops",
    deadline=None,
    max_examples=80,
    # On CI the same examples every time: a red build must mean a changed project.
    derandomize="CI" in os.environ,
    # `backend_name` pins the same backend for all examples of a test, as it should.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("ops")
