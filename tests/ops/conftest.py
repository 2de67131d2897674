"""Every contract test in this folder runs on every backend that the registry names."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from udp_fast.backends.registry import ORDER, backend, order


def pin(name: str, monkeypatch: pytest.MonkeyPatch, op: str, *args: Any) -> None:
    """Pins a backend for the test; skips it, with the reason, where that cannot run such a call."""
    if backend(name).missing:
        pytest.skip(f"{name}: {backend(name).missing}")
    monkeypatch.setenv("UDP_FAST_BACKEND", name)
    declined = backend(name).not_supported_reasons(op, args)
    if declined:  # the tests make their tensors in the processor's memory
        pytest.skip(f"{name}: {declined[0]}")


@pytest.fixture(params=ORDER)
def backend_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    pin(name, monkeypatch, "image_scale", torch.ones(1, 1), torch.ones(1))
    return name


@pytest.fixture(params=order("attention"))
def attention_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if "attention" not in backend(name).ops:
        pytest.skip(f"{name} has no attention")
    x = torch.ones(1, 1, 8, 8)
    pin(name, monkeypatch, "attention", x, x, x, None, 1.0, False)
    return name


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
