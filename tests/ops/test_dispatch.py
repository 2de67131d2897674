"""Who takes a call, how to pin it, and what is said when nobody can."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys

import pytest
import torch
from cases import floats, images

from udp_fast import explain, info
from udp_fast.backends import dispatch, preference, registry
from udp_fast.backends.registry import NAMES, ORDER, backend
from udp_fast.ops import conv3x3, noise_key, pgd_step_, q_sample, quantize

MISSING = backend("cpu").missing
needs_native = pytest.mark.skipif(bool(MISSING), reason=f"cpu: {MISSING}")


def call(x=None):
    x = floats((2, 3, 8, 8), 0) if x is None else x
    return q_sample(x, torch.tensor([0, 1]), sigmas=torch.ones(2), key=noise_key(0, [1, 2]))


def test_every_backend_declares_only_known_ops_and_has_a_status():
    defined = set(backend("reference").ops)
    for name in NAMES:
        assert set(backend(name).ops) <= defined
        assert backend(name).name == name
        assert backend(name).status()


@needs_native
def test_the_native_backend_takes_what_it_can():
    x = floats((2, 3, 8, 8), 0)
    said = explain(
        "q_sample", x, torch.tensor([0, 1]), sigmas=torch.ones(2), key=noise_key(0, [1, 2])
    )
    assert said.chosen == "cpu"
    said = explain(
        "q_sample", x.double(), torch.tensor([0, 1]), sigmas=torch.ones(2), key=noise_key(0, [1, 2])
    )
    assert said.chosen == "reference"
    assert "float64" in str(said)


def test_explain_runs_nothing():
    delta = torch.zeros(1, 3, 8, 8)
    text = str(explain("pgd_step_", delta, delta + 1, delta, alpha=0.1, eps=0.1))
    assert text.startswith("pgd_step_ -> ")
    assert "reference" in text
    assert not delta.any()


def test_explain_checks_the_call_like_the_op():
    with pytest.raises(ValueError, match="op: got 'matmul', expected one of attention"):
        explain("matmul")
    with pytest.raises(ValueError, match="eps: got -1"):
        explain("pgd_step_", *[torch.zeros(1, 4)] * 3, alpha=0.1, eps=-1)


@pytest.mark.parametrize("name", ORDER)
def test_pinning(name, monkeypatch, caplog):
    if backend(name).missing:
        pytest.skip(backend(name).missing)
    monkeypatch.setenv("UDP_FAST_BACKEND", name)
    monkeypatch.setenv("UDP_FAST_LOG_DISPATCH", "1")
    with caplog.at_level(logging.INFO, "udp_fast.dispatch"):
        call()
    assert f"q_sample -> {name} (float32[2, 3, 8, 8] on cpu)" in caplog.text


@needs_native
def test_a_pinned_backend_that_cannot_is_an_error_in_words(monkeypatch):
    monkeypatch.setenv("UDP_FAST_BACKEND", "cpu")
    with pytest.raises(dispatch.BackendError) as caught:
        call(floats((2, 3, 8, 8), 0).double())
    message = str(caught.value)
    assert "UDP_FAST_BACKEND=cpu pins a backend that cannot serve this call" in message
    assert "reference: could serve it" in message
    assert "float64[2, 3, 8, 8] on cpu" in message


def test_strict_forbids_the_reference_unless_pinned(monkeypatch):
    monkeypatch.setenv("UDP_FAST_STRICT", "1")
    with pytest.raises(dispatch.BackendError, match="UDP_FAST_STRICT=1 forbids falling back"):
        call(floats((2, 3, 8, 8), 0).double())
    monkeypatch.setenv("UDP_FAST_BACKEND", "reference")
    call(floats((2, 3, 8, 8), 0).double())


def test_torchs_own_convolution_is_no_fallback(monkeypatch):
    monkeypatch.setenv("UDP_FAST_STRICT", "1")
    x, weight = torch.ones(1, 4, 8, 8), torch.ones(4, 4, 3, 3)  # too few channels for our kernel
    said = explain("conv3x3", x, weight)
    assert said.chosen == "reference"
    assert {c.backend: c.remark for c in said.candidates}["reference"] == "torch's convolution"
    assert torch.equal(conv3x3(x, weight), torch.nn.functional.conv2d(x, weight, padding=1))


def test_on_a_gpu_convolutions_are_cudnns():
    class OnGPU:
        is_cuda = True

    for op in ("conv3x3", "conv3x3_dx"):
        assert preference.remark("reference", op, (OnGPU(),)).endswith("on a GPU cuDNN's")
        for name in ("cuda", "triton"):
            assert op not in backend(name).ops


@pytest.mark.parametrize(
    ("name", "value"), [("UDP_FAST_BACKEND", "gpu"), ("UDP_FAST_STRICT", "yes")]
)
def test_meaningless_variables_are_named(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name}: got '{value}'"):
        call(floats((2, 3, 8, 8), 0).double())


def test_nobody_can(monkeypatch):
    refusing = dataclasses.replace(
        backend("reference"), not_supported_reasons=lambda op, args: ["not today"]
    )
    monkeypatch.setattr(dispatch, "backend", lambda name: refusing)
    with pytest.raises(dispatch.BackendError, match=r"no backend can serve this call\n.*not today"):
        call()


def test_a_library_is_a_candidate_for_attention_alone(monkeypatch):
    asked = [c.backend for c in dispatch.candidates("image_scale", (torch.ones(1, 1),))]
    assert asked == list(ORDER)
    monkeypatch.setenv("UDP_FAST_BACKEND", "sdpa")
    with pytest.raises(dispatch.BackendError, match="UDP_FAST_BACKEND=sdpa pins a backend that"):
        call()


def test_unknown_backends_are_refused():
    with pytest.raises(ValueError, match="backend: got 'tpu'"):
        registry.backend("tpu")


def test_info_lists_every_op_and_backend():
    text = info.report()
    for name in NAMES:
        assert name in text
    for op in backend("reference").ops:
        assert op in text
    assert f"torch {torch.__version__}" in text


def test_info_is_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "udp_fast.info"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("udp_fast ")


def test_subclasses_and_other_devices_do_not_reach_a_kernel_by_mistake():
    meta = torch.zeros(1, 4, device="meta")
    asked = {c.backend: c for c in dispatch.candidates("image_scale", (meta, torch.zeros(1)))}
    assert all(asked[name].reasons for name in ORDER if name != "reference")


def test_quantize_and_pgd_share_one_original():
    """The two ends of a protection step agree about what a uint8 original is."""
    original = images((1, 3, 16, 16), 3, torch.uint8)
    delta = torch.zeros(1, 3, 16, 16)
    for step in range(3):
        pgd_step_(delta, floats((1, 3, 16, 16), step), original, alpha=4 / 255, eps=8 / 255)
    out = quantize(delta, original, eps=8 / 255)
    assert ((out.int() - original.int()) - delta * 255).abs().max() <= 0.5


def test_explain_of_a_call_without_images():
    said = explain("pgd_step_multi_", [], [], [], alpha=0.1, eps=0.1)
    assert said.chosen is None
    assert "nothing to compute" in str(said)
