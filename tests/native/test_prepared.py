"""Kernels of which all is known but addresses: csrc/prepared.cpp, and who calls them."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch

from udp_fast.backends.cpu import native

# The module, whose name in the package is the function's.
cpu = importlib.import_module("udp_fast.backends.cpu.attention")

pytestmark = pytest.mark.skipif(bool(native.MISSING), reason=native.MISSING)

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SCALE = 0.3


def heads(rows, dtype=F32, layout="bnhd"):
    """[2, 3, rows, 40], as layers make it, as it is written, or as a slice of one projection."""
    if layout == "bnhd":
        return torch.randn(2, rows, 3, 40).to(dtype).transpose(1, 2)
    if layout == "bhnd":
        return torch.randn(2, 3, rows, 40).to(dtype)
    return torch.randn(2, rows, 3, 3, 40).to(dtype)[:, :, 1].transpose(1, 2)


BIASES = {
    "without": lambda keys: (),
    "of keys": lambda keys: (torch.randn(2, 1, 1, keys),),
    "of scores": lambda keys: (torch.randn(2, 1, 70, keys),),
    "a slice": lambda keys: (torch.randn(2, 3, 70, keys + 3)[..., 3:],),
}


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("layout", ["bnhd", "bhnd", "slice"])
@pytest.mark.parametrize("biased", BIASES)
@pytest.mark.parametrize("keys", [9, 200])
def test_a_prepared_call_is_the_call(keys, biased, layout, dtype):
    """To the bit and in the same strides, for other tensors than those it was prepared with."""
    (q, grad), (k, v) = ([heads(rows, dtype, layout) for _ in range(2)] for rows in (70, keys))
    bias = BIASES[biased](keys)
    like = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype) for x in (q, k, v, *bias)]
    *qkv, its_bias = (*like, None)[:4]
    for need_lse in (True, False):
        expected, lse = cpu.attention(q, k, v, *(bias or (None,)), SCALE, need_lse)
        run = cpu.prepare_attention(*qkv, its_bias, SCALE, need_lse)
        out, its_lse = run(q, k, v, *bias)
        assert torch.equal(out, expected)
        assert out.stride() == expected.stride()
        assert (its_lse is not None) == need_lse
        assert its_lse is None or torch.equal(its_lse, lse)
        if need_lse:
            statistics = out, lse
    for needs in itertools.product([False, True], repeat=3):
        args = (*statistics, SCALE, needs)
        right = cpu.attention_backward(grad, q, k, v, *(bias or (None,)), *args)
        run = cpu.prepare_attention_backward(grad, *qkv, its_bias, *args)
        found = run(grad, q, k, v, *statistics, *bias)
        for x, y, needed in zip(found, right, needs, strict=True):
            assert (x is not None) == needed
            assert x is None or (torch.equal(x, y) and x.stride() == y.stride())


@pytest.mark.parametrize("biased", ["without", "of keys"])
def test_without_statistics(biased):
    q, grad, k, v = heads(70), heads(70), heads(9), heads(9)
    bias = BIASES[biased](9)
    args = (*(bias or (None,)), None, None, SCALE, (True, False, False))
    right, _, _ = cpu.attention_backward(grad, q, k, v, *args)
    run = cpu.prepare_attention_backward(grad, q, k, v, *args)
    dq, dk, dv = run(grad, q, k, v, *bias)
    assert torch.equal(dq, right)
    assert dk is dv is None


def test_what_needs_more_than_addresses_is_not_prepared():
    q, k = heads(70), heads(9)
    apart = torch.randn(2, 3, 40, 70).transpose(2, 3)  # a head's numbers, not side by side
    dq = (SCALE, (True, False, False))
    across = torch.zeros(1, 1, 9, 70).transpose(2, 3)  # read along the keys
    for bias in (torch.zeros(1, 1, 1, 9, dtype=BF16), across, torch.zeros(1, 3, 70, 1)):
        assert cpu.prepare_attention(q, k, k, bias, SCALE, False) is None
        assert cpu.prepare_attention_backward(q, q, k, k, bias, None, None, *dq) is None
    assert cpu.prepare_attention(apart, k, k, None, SCALE, False) is None
    assert cpu.prepare_attention(q, k[:, :, :0], k[:, :, :0], None, SCALE, False) is None
    assert cpu.prepare_attention_backward(apart, q, k, k, None, None, None, *dq) is None
    assert cpu.prepare_attention_backward(q, q, k, k, None, apart, None, *dq) is None
    lse = torch.zeros(2, 70, 3).transpose(1, 2)
    assert cpu.prepare_attention_backward(q, q, k, k, None, q, lse, *dq) is None


def test_a_prepared_call_asks_for_its_large_results(monkeypatch):
    q, k = heads(70), heads(9)
    monkeypatch.setattr(native, "_LARGE", q.nbytes)
    asked = []
    monkeypatch.setattr(native.module(), "prefer_large_pages", lambda *memory: asked.append(memory))
    out, lse = cpu.prepare_attention(q, k, k, None, SCALE, True)(q, k, k)
    assert asked == [(out.data_ptr(), q.nbytes)]
    args = (None, out, lse, SCALE, (True, True, False))
    dq, _, _ = cpu.prepare_attention_backward(q, q, k, k, *args)(q, q, k, k, out, lse)
    assert asked[1:] == [(dq.data_ptr(), q.nbytes)]


def test_a_kernel_says_what_it_was_not_given():
    q, k = heads(70), heads(9)
    kernel = cpu._kernel(q, k, k, None, SCALE, q)
    with pytest.raises(TypeError, match="got 2 arguments, expected 7"):
        kernel(q.data_ptr(), 1)
    with pytest.raises(TypeError):
        kernel(*map(cpu._address, (q, k, k)), 0, 0, 0, 1.5)
    with pytest.raises(OverflowError):
        kernel(*map(cpu._address, (q, k, k)), 0, 0, 0, -1)
