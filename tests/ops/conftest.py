"""Every contract test in this folder runs on every backend that the registry names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from hypothesis import HealthCheck, settings

from udp_fast.backends.registry import ORDER, backend
from udp_fast.backends.triton import INTERPRETS

ON_GPU = ("cuda", "triton")


def device_of(name: str) -> AbstractContextManager[object]:
    """Within it tensors are made where the backend wants them."""
    return torch.device("cuda") if name in ON_GPU and not INTERPRETS else nullcontext()


@pytest.fixture(
    params=[pytest.param(n, marks=pytest.mark.gpu) if n in ON_GPU else n for n in ORDER]
)
def backend_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Pins one backend for the test, on whose device the test's tensors are made; skips it, with the
    reason, where it cannot run."""
    name: str = request.param
    if backend(name).missing:
        pytest.skip(f"{name}: {backend(name).missing}")
    monkeypatch.setenv("UDP_FAST_BACKEND", name)
    with device_of(name):
        declined = backend(name).not_supported_reasons(
            "image_scale", (torch.ones(1, 1), torch.ones(1))
        )
        if declined:
            pytest.skip(f"{name}: {declined[0]}")
        yield name


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
