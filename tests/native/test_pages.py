"""Large results are asked for in large pages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from udp_fast.backends.cpu import native
from udp_fast.ops import (
    attention,
    conv3x3,
    denoising_loss,
    geglu,
    group_norm_silu,
    noise_key,
    pgd_step_,
    pgd_step_multi_,
    q_sample,
    quantize,
)
from udp_fast.ops.image_scale import image_scale

_native = pytest.importorskip("udp_fast._native", reason="the native kernels are not built")


def flags_of(x: Tensor) -> set[str]:
    """Of the mapping that x's middle lies in, as Linux writes them."""
    middle, inside = x.data_ptr() + x.numel() * x.element_size() // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if first == "VmFlags:" and inside:
            return set(rest)
        if not first.endswith(":"):
            begin, end = (int(address, 16) for address in first.split("-"))
            inside = begin <= middle < end
    raise AssertionError("the tensor is in no mapping")


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="there are no large pages"
)
def test_the_system_is_asked() -> None:
    x = native.fresh(torch.empty(native._LARGE // 4))
    assert "hg" in flags_of(x)
    x.fill_(1.0)
    assert x.min() == x.max() == 1.0


def test_only_for_what_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(_native, "prefer_large_pages", lambda *memory: asked.append(memory))
    small = native.fresh(torch.empty(native._LARGE - 1, dtype=torch.uint8))
    large = native.fresh(torch.empty(native._LARGE // 2, dtype=torch.float16))
    assert asked == [(large.data_ptr(), large.nbytes)]
    assert small.nbytes < large.nbytes


def test_of_memory_that_holds_no_page_nothing_is_asked() -> None:
    x = torch.arange(4.0)
    for size in (0, 1, 16):
        _native.prefer_large_pages(x.data_ptr(), size)
    assert x.tolist() == [0, 1, 2, 3]


def test_every_op_asks_for_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDP_FAST_BACKEND", "cpu")
    monkeypatch.setattr(native, "_LARGE", 1)
    asked: set[int] = set()
    monkeypatch.setattr(_native, "prefer_large_pages", lambda data, _bytes: asked.add(data))

    x, key = torch.rand(2, 4, 8, 8), noise_key(0, [1, 2])
    t, table = torch.tensor([1, 2]), torch.linspace(0.9, 0.1, 3)
    results = {
        "pgd_step": pgd_step_(torch.zeros_like(x), x, x, alpha=0.1, eps=0.1)[0],
        "quantize": quantize(torch.zeros_like(x), x.byte(), eps=0.1),
        "image_scale": image_scale(x, torch.ones(2)),
    }
    deltas = [torch.zeros_like(x[0])]
    ((results["pgd_step_multi"],), _) = pgd_step_multi_(deltas, [x[0]], [x[0]], alpha=0.1, eps=0.1)
    results["q_sample"], results["noise"] = q_sample(x, t, table, key=key, return_noise=True)

    def through(name: str, op: object, *inputs: Tensor, **options: object) -> None:
        """The result, and the first input's gradient, which must be the kernel's own memory."""
        leaf = inputs[0].clone().requires_grad_()
        results[name] = y = op(leaf, *inputs[1:], **options)  # type: ignore[operator]
        (results[f"{name}'s gradient"],) = torch.autograd.grad(y, leaf, torch.ones_like(y))

    through("group_norm_silu", group_norm_silu, x, torch.ones(4), torch.zeros(4), num_groups=2)
    through("geglu", geglu, torch.rand(2, 6))
    through("attention", attention, *torch.rand(3, 1, 2, 5, 8))
    inner = torch.rand(1, 32, 8, 8).contiguous(memory_format=torch.channels_last)
    through("conv3x3", conv3x3, inner, torch.rand(32, 32, 3, 3))
    pred = x.clone().requires_grad_()
    (results["denoising_loss's gradient"],) = torch.autograd.grad(
        denoising_loss(pred, key=key).sum(), pred
    )
    assert {name for name, y in results.items() if y.data_ptr() not in asked} == set()
