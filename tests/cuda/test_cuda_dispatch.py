"""Which calls the CUDA backend takes, and what it says of those it does not."""

from __future__ import annotations

import pytest
import torch

from udp_fast import explain, info
from udp_fast.backends import dispatch
from udp_fast.backends.cuda import BACKEND, native
from udp_fast.ops import pgd_step

X = torch.full((2, 3, 4, 4), 0.5)


@pytest.fixture
def usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with the extension and a GPU."""
    monkeypatch.setattr(native, "MISSING", "")


def test_cuda_is_asked_first() -> None:
    assert dispatch.order("pgd_step_")[0] == dispatch.order("attention")[0] == "cuda"


@pytest.mark.skipif(not BACKEND.missing, reason="there is a GPU here")
def test_without_a_gpu_the_others_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = dispatch.select("image_scale", (X, torch.tensor(0.5)))
    assert chosen.name in ("cpu", "reference")
    assert BACKEND.missing in str(explain("pgd_step_", X, X, X, alpha=0.1, eps=0.1))
    monkeypatch.setenv("UDP_FAST_BACKEND", "cuda")
    with pytest.raises(dispatch.BackendError) as refused:
        pgd_step(X, X, X, alpha=0.1, eps=0.1)
    assert BACKEND.missing in str(refused.value)


def test_info_has_one_line_for_cuda() -> None:
    (line,) = (line for line in info.report().splitlines() if line.startswith("  cuda "))
    assert BACKEND.missing in line
    assert BACKEND.status() in line


@pytest.mark.usefixtures("usable")
def test_tensors_elsewhere_are_declined() -> None:
    assert BACKEND.not_supported_reasons("image_scale", (X, torch.tensor(0.5))) == [
        "a tensor is on cpu, not on a GPU"
    ]


@pytest.mark.usefixtures("usable")
def test_float64_is_declined() -> None:
    for args in ((X.double(),), (torch.float64,)):
        (reason,) = BACKEND.not_supported_reasons("image_scale", args)
        assert "float64 is not served" in reason


def test_without_the_extension_every_call_is_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "MISSING", "not installed")
    assert BACKEND.not_supported_reasons("image_scale", ()) == ["not installed"]


@pytest.mark.usefixtures("usable")
def test_a_torch_without_cuda_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in native.no_device()
