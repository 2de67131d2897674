"""Which calls the CUDA backend takes, and what it says of those it does not."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from udp_fast import explain, info
from udp_fast.backends import dispatch
from udp_fast.backends.cuda import BACKEND, _no_code, native
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


F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
U8, BOOL, I64 = torch.uint8, torch.bool, torch.int64


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A GPU of compute capability 9.0 and an extension that has code for it, neither of which runs."""
    module = ModuleType("udp_fast._native_cuda")
    module.cuda_version = "13.0"  # type: ignore[attr-defined]
    module.architectures = "sm_80, sm_90, PTX 80"  # type: ignore[attr-defined]
    monkeypatch.setattr(native, "MISSING", "")
    monkeypatch.setattr(native, "_module", module)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    _no_code.cache_clear()
    yield module
    _no_code.cache_clear()


#: Calls that are served: of a tensor the dtype stands here.
CALLS: dict[str, dict[str, Any]] = {
    "attention": {"q": F16, "k": F16, "v": F16, "bias": F32, "scale": 0.1, "need_lse": True},
    "attention_backward": {
        "grad_out": F32, "q": F16, "k": F16, "v": F16, "bias": None, "out": F16, "lse": F32,
        "scale": 0.1, "needs": [True, True, True],
    },
    "denoising_loss": {
        "pred": F16, "target": None, "x": F32, "t": I64, "table": F32, "noise": BF16, "key": I64,
        "weight": F32,
    },
    "geglu": {"x": BF16},
    "geglu_backward": {"grad_y": F32, "x": BF16},
    "group_norm_silu": {"x": BF16, "weight": F32, "bias": F16},
    "group_norm_silu_backward": {"grad_y": F16, "x": BF16, "mean": F32, "rstd": F32},
    "image_scale": {"x": F16, "scale": F32},
    "image_scale_": {"x": BF16, "scale": F32},
    "pgd_step_": {
        "delta": F16, "grad": BF16, "x": U8, "alpha": torch.tensor(0.1), "eps": F32, "mask": BOOL,
        "step": "sign", "norm": "linf", "maximize": True, "lo": 0.0, "hi": 1.0, "out_lo": 0.0,
        "out_hi": 1.0, "out_dtype": BF16,
    },
    "pgd_step_multi_": {
        "deltas": [F32, F32], "advs": [BF16, BF16], "grads": [F16, F16], "xs": [U8, U8],
        "alpha": torch.tensor(0.1), "eps": F32,
    },
    "q_sample": {
        "x": F16, "t": I64, "table": F32, "noise": F32, "key": I64, "path": "flow",
        "return_noise": False, "out_dtype": BF16,
    },
    "quantize": {"value": F16, "original": U8, "eps": torch.tensor(0.1), "key": I64},
}  # fmt: skip


def reasons(op: str, **changed: Any) -> list[str]:
    """Against the call of `CALLS`, but for what is changed in it; tensors are on a GPU."""

    def made(value: Any) -> Any:
        if isinstance(value, list):
            return [made(v) for v in value]
        with FakeTensorMode():  # no memory
            is_tensor = isinstance(value, torch.dtype)
            return torch.empty(1, 1, 4, 64, dtype=value, device="cuda") if is_tensor else value

    arguments = CALLS[op] | changed
    args = (v if name == "out_dtype" else made(v) for name, v in arguments.items())
    return BACKEND.not_supported_reasons(op, tuple(args))


@pytest.mark.usefixtures("gpu")
def test_what_the_kernels_are_for_is_served() -> None:
    assert {op: reasons(op) for op in CALLS} == {op: [] for op in BACKEND.ops}


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("op", "name", "dtype"),
    [
        ("attention", "q", U8),
        ("attention", "bias", BOOL),
        ("attention_backward", "grad_out", I64),
        ("attention_backward", "lse", F16),
        ("denoising_loss", "pred", U8),
        ("denoising_loss", "t", F32),
        ("denoising_loss", "table", BF16),
        ("denoising_loss", "weight", F16),
        ("geglu", "x", BOOL),
        ("geglu_backward", "grad_y", U8),
        ("group_norm_silu", "weight", U8),
        ("group_norm_silu_backward", "mean", BF16),
        ("image_scale", "x", U8),
        ("image_scale", "scale", F16),
        ("image_scale_", "scale", BF16),
        ("pgd_step_", "delta", U8),
        ("pgd_step_", "x", BOOL),
        ("pgd_step_", "mask", I64),
        ("pgd_step_", "eps", F16),
        ("pgd_step_", "out_dtype", U8),
        ("pgd_step_multi_", "advs", U8),
        ("pgd_step_multi_", "eps", BF16),
        ("q_sample", "noise", U8),
        ("q_sample", "key", F32),
        ("q_sample", "table", F16),
        ("q_sample", "out_dtype", U8),
        ("q_sample", "out_dtype", BOOL),
        ("quantize", "value", U8),
        ("quantize", "original", F32),
        ("quantize", "original", BOOL),
    ],
    ids=str,
)
def test_what_a_kernel_would_misread_is_declined(op: str, name: str, dtype: torch.dtype) -> None:
    """An address does not say what lies there."""
    is_list = isinstance(CALLS[op][name], list)
    (found,) = reasons(op, **{name: [dtype, dtype] if is_list else dtype})
    assert found.startswith(f"{name}: {dtype} is not served, only ")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", ["deltas", "advs", "grads", "xs"])
def test_a_list_is_of_one_dtype(name: str) -> None:
    (found,) = reasons("pgd_step_multi_", **{name: [F32, F16]})
    assert found == "a list has tensors of torch.float16 and torch.float32, not of one dtype"


@pytest.mark.parametrize(
    ("architectures", "served", "not_served"),
    [
        ("sm_80, sm_86, sm_89, sm_90, sm_100, PTX 80", ["8.0", "8.7", "10.3", "12.1"], ["7.5"]),
        ("sm_90", ["9.0"], ["8.0", "8.9", "10.0", "12.0"]),
        ("sm_86", ["8.6", "8.9"], ["8.0", "9.0"]),
        ("sm_80, sm_90, PTX 90", ["8.0", "8.9", "9.0", "10.0", "12.1"], ["7.5"]),
        ("sm_89, PTX 89", ["8.9", "9.0", "12.0"], ["8.0", "8.6"]),
        ("sm_90a, PTX 90a", ["9.0"], ["8.9", "10.0"]),
        ("sm_100f, PTX 100f", ["10.0", "10.3"], ["9.0", "11.0", "12.0"]),
        ("sm_103a, sm_120", ["10.3", "12.0", "12.1"], ["10.0"]),
    ],
)
def test_a_gpu_that_there_is_no_code_for_is_declined(
    gpu: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    architectures: str,
    served: list[str],
    not_served: list[str],
) -> None:
    gpu.architectures = architectures  # type: ignore[attr-defined]
    monkeypatch.setattr(native, "no_device", lambda: "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for capability in (*served, *not_served):
        numbers = tuple(map(int, capability.split(".")))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, n=numbers: n)
        _no_code.cache_clear()
        reason = f"cuda:0 has compute capability {capability}, the kernels were built for {architectures}"
        assert reasons("geglu") == ([] if capability in served else [reason])
        assert (reason in BACKEND.status()) == (capability in not_served)


def test_without_the_extension_every_call_is_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "MISSING", "not installed")
    assert BACKEND.not_supported_reasons("image_scale", ()) == ["not installed"]


@pytest.mark.usefixtures("usable")
def test_a_torch_without_cuda_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in native.no_device()
