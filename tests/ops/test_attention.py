"""attention's contract, on every backend that the registry names for it."""

from __future__ import annotations

import importlib
import itertools
import logging
import math
import sys
import types

import pytest
import torch
from cases import BF16, F16, F32, F64, FLOATS, here, opcheck, same_bits
from torch import Tensor

from udp_fast import explain
from udp_fast.backends import dispatch, preference
from udp_fast.backends.outputs import ONE_TILE
from udp_fast.backends.reference.attention import attention as definition
from udp_fast.backends.reference.attention import attention_backward as definition_backward
from udp_fast.backends.registry import backend
from udp_fast.ops import attention
from udp_fast.ops import remembered as remembered_module
from udp_fast.ops.remembered import Remembered

attention_module = importlib.import_module("udp_fast.ops.attention")
INF = math.inf
OPS = torch.ops.udp_fast
#: Of the largest number of a result: sixteen roundings of float32, two of the others.
TOLERANCE = {F32: 16 * 2.0**-23, F16: 2 * 2.0**-10, BF16: 2 * 2.0**-7}
OURS = ("cuda", "triton", "cpu", "reference")
NAMES = ("out", "dq", "dk", "dv")

#: B, H, N, M, D: heads of the models and others, tiles and blocks that are full, ragged, alone.
SHAPES = {
    "one of each": (1, 1, 1, 1, 1),
    "one key": (1, 2, 33, 1, 8),
    "one query": (2, 1, 1, 129, 40),
    "text, 40": (2, 3, 130, 77, 40),
    "text, 160": (1, 2, 64, 77, 160),
    "80 keys": (1, 2, 65, 80, 80),
    "127 keys": (1, 2, 66, 127, 64),
    "128 keys": (1, 1, 100, 128, 128),
    "129 keys": (1, 1, 40, 129, 64),
    "300 keys, 40": (1, 2, 70, 300, 40),
    "700 keys, 24": (1, 1, 20, 700, 24),
    "VAE, 512": (1, 1, 50, 90, 512),
    "odd head": (1, 2, 37, 41, 17),
    "head of 9": (1, 1, 20, 30, 9),
    "few heads, many queries": (1, 1, 1100, 60, 40),
}
LAYOUTS = ("[B, H, N, D]", "[B, N, H, D]", "a slice of one projection", "expanded")


def tensor(b: int, h: int, n: int, d: int, seed: int, dtype=F32, layout="[B, N, H, D]") -> Tensor:
    g = torch.Generator().manual_seed(seed)
    if layout == "[B, H, N, D]":
        return here(torch.randn(b, h, n, d, generator=g, device="cpu")).to(dtype)
    if layout == "a slice of one projection":
        return (
            here(torch.randn(b, n, 3, h, d, generator=g, device="cpu"))
            .to(dtype)[:, :, 1]
            .transpose(1, 2)
        )
    if layout == "expanded":
        return here(torch.randn(1, 1, n, d, generator=g, device="cpu")).to(dtype).expand(b, h, n, d)
    return here(torch.randn(b, n, h, d, generator=g, device="cpu")).to(dtype).transpose(1, 2)


def operands(shape, dtype=F32, layout="[B, N, H, D]", seed=0) -> list[Tensor]:
    """q, k, v and a gradient of out."""
    b, h, n, m, d = shape
    return [
        tensor(b, h, rows, d, 10 * seed + i, dtype, layout) for i, rows in enumerate((n, m, m, n))
    ]


def biases(shape, kind: str) -> Tensor | None:
    b, h, n, m, _ = shape
    g = torch.Generator().manual_seed(9)
    if kind == "none":
        return None
    if kind == "padded keys":
        bias = torch.zeros(b, 1, 1, m)
        bias[..., m // 2 + 1 :] = -INF
        return bias
    if kind == "a number a score":
        bias = here(torch.randn(b, h, n, m, generator=g, device="cpu"))
        bias[:, :, : n // 3, m // 2 :] = -INF
        return bias
    if kind == "a number a query":
        return here(torch.randn(1, h, n, 1, generator=g, device="cpu"))
    if kind == "a number":
        return torch.full((), 3.0)
    if kind == "[N, M]":
        return here(torch.randn(m, n, generator=g, device="cpu")).t()
    if kind == "half":
        return here(torch.randn(b, 1, n, m, generator=g, device="cpu")).to(BF16)
    if kind == "mask":
        return here(torch.rand(1, 1, n, m, generator=g, device="cpu")) < 0.6
    assert kind == "nothing to attend to"
    mask = torch.ones(b, 1, n, m, dtype=torch.bool)
    mask[:, :, ::2] = False
    return mask


BIASES = (
    *("none", "padded keys", "a number a score", "a number a query", "a number", "[N, M]", "half"),
    *("mask", "nothing to attend to"),
)


def evaluate(q, k, v, grad, needs=(True, True, True), **options) -> list[Tensor | None]:
    """out, dq, dk, dv through autograd."""
    leaves = [x.detach().requires_grad_(needed) for x, needed in zip((q, k, v), needs, strict=True)]
    out = attention(*leaves, **options)
    out.backward(grad)
    return [out.detach(), *(x.grad for x in leaves)]


def exact(q, k, v, grad, bias=None, scale=None) -> list[Tensor]:
    """The same, by the definition in float64."""
    q, k, v, grad = (x.double() for x in (q, k, v, grad))
    if bias is not None:
        if bias.dtype == torch.bool:
            bias = torch.zeros(bias.shape).masked_fill(~bias, -INF)
        bias = bias.double().reshape((1,) * (4 - bias.dim()) + tuple(bias.shape))
    scale = q.shape[3] ** -0.5 if scale is None else scale
    out, lse = definition(q, k, v, bias, scale, True)
    grads = definition_backward(grad, q, k, v, bias, out, lse, scale, [True] * 3)
    return [out, *grads]


def close(got: Tensor, expected: Tensor, dtype: torch.dtype, what: str, least: float = 0) -> None:
    assert got.dtype == dtype
    error = (got.double() - expected).abs().max()
    # A row of one key has a gradient of 0, the difference of numbers of this size.
    size = max(float(expected.abs().max()), 1.0)
    assert error <= max(TOLERANCE[dtype], least) * size, f"{what}: error {error / size:.2g}"


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_values(attention_backend, shape, dtype):
    ops = operands(SHAPES[shape], dtype)
    for name, got, expected in zip(NAMES, evaluate(*ops), exact(*ops), strict=True):
        close(got, expected, dtype, name)


@pytest.mark.parametrize("kind", BIASES)
@pytest.mark.parametrize("shape", ["text, 40", "129 keys"])
def test_bias_and_mask(attention_backend, shape, kind):
    ops, bias = operands(SHAPES[shape]), biases(SHAPES[shape], kind)
    for name, a, b in zip(NAMES, evaluate(*ops, bias=bias), exact(*ops, bias), strict=True):
        close(a, b, F32, name)
    (dq,) = evaluate(*ops, bias=bias, needs=(True, False, False))[1:2]
    close(dq, exact(*ops, bias)[1], F32, "dq alone")


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3))[1:], ids=str)
@pytest.mark.parametrize("shape", ["text, 40", "129 keys", "few heads, many queries"])
def test_every_set_of_gradients(attention_backend, shape, needs):
    ops = operands(SHAPES[shape])
    expected = exact(*ops)
    for results in (evaluate(*ops, needs=needs), masked(ops, needs)):
        for name, got, wanted, right in zip(NAMES, results, (True, *needs), expected, strict=True):
            assert (got is not None) == wanted
            if got is not None:
                close(got, right, F32, name)


def is_torchs(out: Tensor) -> bool:
    """Whether torch differentiates its own function."""
    return type(out.grad_fn).__name__ == "ScaledDotProductFlashAttentionForCpuBackward0"


def masked(ops, needs) -> list[Tensor | None]:
    """Everything requires a gradient; the argument says what may get one."""
    q, k, v = (x.detach().requires_grad_() for x in ops[:3])
    out = attention(q, k, v, needs=needs)
    out.backward(ops[3])
    return [out.detach(), q.grad, k.grad, v.grad]


@pytest.mark.parametrize("shape", [(1, 1, 130, 800, 64), (1, 2, 130, 700, 24)], ids=str)
@pytest.mark.parametrize("attention_backend", ["cpu"], indirect=True)
def test_several_blocks_of_keys_and_of_queries(attention_backend, shape):
    ops = operands(shape)
    expected = exact(*ops)
    for needs in ((True, True, True), (True, False, False)):
        for name, got, right in zip(NAMES, evaluate(*ops, needs=needs), expected, strict=True):
            if got is not None:
                close(got, right, F32, name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", ["text, 40", "129 keys"])
def test_layouts(attention_backend, shape, layout):
    ops = operands(SHAPES[shape], layout=layout)
    results = evaluate(*ops)
    for name, got, expected in zip(NAMES, results, exact(*ops), strict=True):
        close(got, expected, F32, name)
    with torch.no_grad():
        out = attention(*ops[:3])
    assert out.stride() == torch.empty_like(ops[0]).stride()


def test_layouts_may_differ(attention_backend):
    shape = SHAPES["text, 40"]
    ops = [operands(shape, layout=layout)[i] for i, layout in enumerate(LAYOUTS)]
    for name, got, expected in zip(NAMES, evaluate(*ops), exact(*ops), strict=True):
        close(got, expected, F32, name)


@pytest.mark.parametrize("scale", [0.0, -0.3, 0.5])
def test_scale(attention_backend, scale):
    ops = operands(SHAPES["text, 40"])
    for name, a, b in zip(
        NAMES, evaluate(*ops, scale=scale), exact(*ops, scale=scale), strict=True
    ):
        close(a, b, F32, name)


@pytest.mark.parametrize("factor", [30.0, 1e3, 1e15], ids=str)
def test_large_scores(attention_backend, factor):
    """Scores of 1e2, 1e5 and 1e29: a row is then one key's, and no exponential overflows."""
    q, k, v, grad = operands(SHAPES["129 keys"])
    q, k = q * factor, k * factor
    out = evaluate(q, k, v, grad)[0]
    assert out.isfinite().all()
    if factor > 100:  # the largest score is alone
        scores = q.double() @ k.double().transpose(-1, -2)
        best = scores.argmax(-1, keepdim=True).expand(-1, -1, -1, v.shape[3])
        first, second = scores.topk(2, -1).values.unbind(-1)
        sure = (first - second > 1e-3 * first.abs()).unsqueeze(-1)
        assert torch.where(sure, out - v.gather(2, best), 0.0).abs().max() == 0


def test_masked_rows_give_zero_and_zero_gradients(attention_backend):
    shape = SHAPES["text, 40"]
    q, k, v, grad = operands(shape)
    mask = biases(shape, "nothing to attend to")
    for needs in ((True, True, True), (True, False, False)):
        out, dq, *_ = evaluate(q, k, v, grad, needs, bias=mask)
        assert not out[:, :, ::2].any()
        assert not dq[:, :, ::2].any()
    nothing = torch.zeros(1, 1, 1, shape[3], dtype=torch.bool)
    for result in evaluate(q, k, v, grad, bias=nothing):
        assert not result.any()


def test_masked_keys_get_no_gradient(attention_backend):
    shape = SHAPES["129 keys"]
    bias = biases(shape, "padded keys")
    _, _, dk, dv = evaluate(*operands(shape), bias=bias)
    off = bias[0, 0, 0] == -INF
    assert not dk[:, :, off].any()
    assert not dv[:, :, off].any()
    assert dk[:, :, ~off].abs().amin(-1).all()


@pytest.mark.parametrize(
    ("dtype", "lowest"),
    [(F32, -1e9), *((dtype, torch.finfo(F32).min) for dtype in FLOATS)],
    ids=str,
)
@pytest.mark.parametrize("kind", ["of keys", "of scores"])
@pytest.mark.parametrize("shape", ["text, 40", "129 keys"])
def test_padding_by_a_low_number(attention_backend, shape, kind, lowest, dtype):
    """As by -inf, but where all keys have it: each counts as if none had.

    Of a score beside 1e4, and of the logarithm of their sum, float32 keeps a multiple of 2^-10.
    """
    b, _, n, m, _ = SHAPES[shape]
    low = torch.zeros(b, 1, n if kind == "of scores" else 1, m, dtype=torch.bool)
    low[..., m // 2 :] = True
    low[(slice(None), slice(None), slice(n // 2)) if kind == "of scores" else -1] = True
    bias = torch.zeros(low.shape).masked_fill(low, lowest)
    if attention_backend == "sdpa":  # which takes no wider one than q
        bias = bias.clamp(torch.finfo(dtype).min).to(dtype)
    same = torch.zeros(low.shape).masked_fill(low & ~low.all(-1, keepdim=True), -INF)
    ops = operands(SHAPES[shape], dtype)
    expected = exact(*ops, same)
    for name, got, right in zip(NAMES, evaluate(*ops, bias=bias), expected, strict=True):
        close(got, right, dtype, name, least=2**-9)
    (dq,) = evaluate(*ops, bias=bias, needs=(True, False, False))[1:2]
    close(dq, expected[1], dtype, "dq alone", least=2**-9)


@pytest.mark.parametrize("value", [math.nan, INF], ids=str)
@pytest.mark.parametrize("kind", ["of keys", "of scores"])
@pytest.mark.parametrize("shape", ["text, 40", "129 keys"])
def test_what_is_no_number_in_a_bias_stays_in_its_rows(attention_backend, shape, kind, value):
    b, _, n, m, _ = SHAPES[shape]
    bias = torch.zeros(b, 1, n if kind == "of scores" else 1, m)
    bias[-1, 0, -1, m // 2] = value
    bad = torch.zeros(b, 1, n, dtype=torch.bool)
    bad[-1, 0, -1 if kind == "of scores" else slice(None)] = True
    ops = operands(SHAPES[shape])
    for needs in ((True, True, True), (True, False, False)):
        for result in evaluate(*ops, needs, bias=bias)[:2]:
            assert torch.equal(result.isnan().any(-1), bad.expand(result.shape[:3]))


def test_a_nan_stays_in_its_row(attention_backend):
    q, k, v, grad = operands(SHAPES["text, 40"])
    q[0, 1, 5, 7] = math.nan
    for needs in ((True, True, True), (True, False, False)):
        out, dq, *_ = evaluate(q, k, v, grad, needs)
        for result in (out, dq):
            bad = result.isnan().any(-1)
            assert bad[0, 1, 5]
            assert bad.sum() == 1


@pytest.mark.parametrize(
    "shape", [(0, 2, 3, 4, 5), (1, 0, 3, 4, 5), (1, 2, 0, 4, 5), (1, 2, 3, 0, 5)]
)
def test_empty(attention_backend, shape, monkeypatch):
    if attention_backend in ("sdpa", "xformers"):
        monkeypatch.delenv("UDP_FAST_BACKEND")  # they decline, and others take it
    ops = operands(shape)
    for result, like in zip(evaluate(*ops), (ops[0], *ops[:3]), strict=True):
        assert result.shape == like.shape
        assert not result.any()


# --- accuracy ------------------------------------------------------------------------------------

REAL = {"text, 40": (1, 4, 512, 77, 40), "self, 64": (1, 4, 384, 384, 64)}


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", REAL)
def test_no_more_than_twice_the_error_of_torch(attention_backend, shape, dtype):
    ops = operands(REAL[shape], dtype)
    leaves = [x.detach().requires_grad_() for x in ops[:3]]
    out = torch.nn.functional.scaled_dot_product_attention(*leaves)
    out.backward(ops[3])
    theirs = [out.detach(), *(x.grad for x in leaves)]
    expected = exact(*ops)
    for name, a, b, right in zip(NAMES, evaluate(*ops), theirs, expected, strict=True):
        assert rms(a - right) <= 2 * rms(b - right), name
    (dq,) = evaluate(*ops, needs=(True, False, False))[1:2]
    assert rms(dq - expected[1]) <= 2 * rms(theirs[1] - expected[1])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", REAL)
def test_signs_of_dq(attention_backend, shape, dtype):
    """The step takes the gradient's sign: it agrees wherever dq is above the rounding level."""
    ops = operands(REAL[shape], dtype)
    right = exact(*ops)[1]
    for needs in ((True, False, False), (True, True, True)):
        dq = evaluate(*ops, needs=needs)[1].double()
        above = right.abs() > TOLERANCE[dtype] * right.abs().max()
        assert above.double().mean() > (0.99 if dtype == F32 else 0.8)
        assert (dq.sign() == right.sign())[above].all()


# --- determinism ---------------------------------------------------------------------------------


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(2, 3, 300, 77, 40), (1, 2, 1100, 300, 24)])
def test_equal_bits_for_any_number_of_threads(attention_backend, shape, threads):
    if attention_backend not in OURS[:3]:
        pytest.skip("a promise of our kernels")
    ops = operands(shape)
    for needs in ((True, True, True), (True, False, False)):
        threads(1)
        expected = evaluate(*ops, needs=needs)
        for n in (2, 3, 7):
            threads(n)
            for a, b in zip(evaluate(*ops, needs=needs), expected, strict=True):
                assert (a is None) == (b is None)
                assert a is None or same_bits(a, b)


@pytest.mark.parametrize("shape", [(3, 2, 100, 77, 40), (3, 1, 1100, 150, 24)])
def test_equal_bits_alone_and_in_a_batch(attention_backend, shape):
    if attention_backend not in OURS[:3]:
        pytest.skip("a promise of our kernels")
    ops = operands(shape)
    for needs in ((True, True, True), (True, False, False)):
        together = evaluate(*ops, needs=needs)
        for image in range(shape[0]):
            alone = evaluate(*(x[image : image + 1] for x in ops), needs=needs)
            for a, b in zip(alone, together, strict=True):
                assert a is None or same_bits(a, b[image : image + 1])


# --- autograd and torch.library ------------------------------------------------------------------


def test_gradcheck():
    q, k, v = (x.requires_grad_() for x in operands((2, 2, 5, 7, 4), F64)[:3])
    bias = torch.randn(2, 1, 5, 7, dtype=F64)
    assert torch.autograd.gradcheck(lambda *x: attention(*x, bias=bias), (q, k, v))
    assert torch.autograd.gradcheck(lambda x: attention(x, k.detach(), v.detach(), scale=0.7), (q,))


@pytest.mark.parametrize("keys", [ONE_TILE, ONE_TILE + 1])
def test_what_is_saved(attention_backend, keys):
    """For dq alone with one tile of keys, nothing but q, k and v, unless torch differentiates it."""
    q, k, v, grad = operands((1, 2, 40, keys, 16))
    saved: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = attention(q.requires_grad_(), k, v)
    own = {x.data_ptr() for x in (q, k, v)}
    others = sorted(x.shape for x in saved if x.data_ptr() not in own)
    nothing = keys <= ONE_TILE and not is_torchs(out)
    assert others == ([] if nothing else [out.shape[:3], out.shape])


@pytest.mark.parametrize("keys", [9, 130])
def test_opcheck(attention_backend, keys):
    q, k, v, grad = operands((1, 2, 5, keys, 8))
    bias = torch.zeros(1, 1, 1, keys)
    bias[..., 1] = -INF
    leaf = q.clone().requires_grad_()
    opcheck(OPS.attention, (leaf, k, v, bias, 0.5, True))
    opcheck(OPS.attention, (leaf, k.clone().requires_grad_(), v, None, 0.5, True))
    opcheck(OPS.attention, (q, k, v, None, 0.5, False))
    out, lse = OPS.attention(q, k, v, bias, 0.5, True)
    assert lse.dtype == F32
    opcheck(OPS.attention_backward, (grad, q, k, v, bias, out, lse, 0.5, [True, True, True]))
    opcheck(OPS.attention_backward, (grad, q, k, v, bias, out, lse, 0.5, [False, False, True]))
    if keys <= ONE_TILE:
        none = (None, None)
        opcheck(OPS.attention_backward, (grad, q, k, v, bias, *none, 0.5, [True, False, False]))


def test_lse_is_that_of_the_definition(attention_backend):
    """Any backend's backward can use any other's forward."""
    shape = SHAPES["129 keys"]
    q, k, v, _ = operands(shape)
    bias = biases(shape, "a number a score")
    bias[:, :, 3] = -INF
    lse = OPS.attention(q, k, v, bias, 0.3, True)[1]
    right = definition(q.double(), k.double(), v.double(), bias.double(), 0.3, True)[1]
    assert torch.equal(lse == -INF, right == -INF)
    finite = right > -INF
    assert (lse - right)[finite].abs().max() < 4e-6


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_without_a_graph_break(attention_backend, dynamic):
    def run(q, k, v, mask):
        return attention(q, k, v, bias=mask, needs=(True, False, False)) + attention(q, k * 2, v)

    torch._dynamo.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    *ops, grad = operands((2, 2, 9, 11, 8))
    mask = biases((2, 2, 9, 11, 8), "mask")
    results = []
    for f in (run, compiled):
        leaves = [x.detach().requires_grad_() for x in ops]
        out = f(*leaves, mask)
        out.backward(grad)
        results.append([out.detach(), *(x.grad for x in leaves)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_a_second_derivative_is_refused(attention_backend):
    q, k, v, _ = operands((1, 1, 3, 4, 8))
    (dq,) = torch.autograd.grad(attention(q.requires_grad_(), k, v).sum(), q, create_graph=True)
    ours, torchs = "a second derivative was asked for", "backward is not implemented"
    with pytest.raises(RuntimeError, match=torchs if attention_backend == "sdpa" else ours):
        dq.sum().backward()


# --- errors --------------------------------------------------------------------------------------

Q, K = torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 7, 8)
ERRORS = {
    "q: got list": ([1], K, K, {}),
    "q: got dtype int64": (Q.long(), K, K, {}),
    r"q: got shape \[5, 8\], expected \[B, H, N, D\]": (Q[0, 0], K, K, {}),
    "k: got dtype float64, expected one of float32": (Q, K.double(), K, {}),
    r"k: got shape \[2, 1, 7, 8\], expected \[2, 3, M, 8\] beside q": (Q, K[:, :1], K, {}),
    r"v: got shape \[2, 3, 5, 8\], expected k's, \[2, 3, 7, 8\]": (Q, K, Q, {}),
    "k: got a tensor on meta, expected cpu": (Q, K.to("meta"), K, {}),
    "q: got stride 5 in the last dimension": (torch.zeros(2, 3, 8, 5).transpose(2, 3), K, K, {}),
    r"k: got strides \(21, 7, 1, 1\) of shape \[2, 3, 7, 8\], expected stride 1 in the last": (
        *(Q, torch.zeros(49).as_strided(K.shape, (21, 7, 1, 1)), K),
        {},
    ),
    "scale: got str": (Q, K, K, {"scale": "1"}),
    "scale: got nan": (Q, K, K, {"scale": math.nan}),
    r"bias: got shape \[5, 6\], expected one that broadcasts to \[2, 3, 5, 7\]": (
        *(Q, K, K),
        {"bias": torch.zeros(5, 6)},
    ),
    "bias: got dtype int64": (Q, K, K, {"bias": torch.zeros(7).long()}),
    "bias: requires grad": (Q, K, K, {"bias": torch.zeros(7, requires_grad=True)}),
    "bias: got a tensor on meta": (Q, K, K, {"bias": torch.zeros(7, device="meta")}),
    r"needs: got \(1, 0, 0\), expected three bools": (Q, K, K, {"needs": (1, 0, 0)}),
    "needs: got 'dq'": (Q, K, K, {"needs": "dq"}),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_name_the_argument(message):
    *tensors, options = ERRORS[message]
    with pytest.raises((TypeError, ValueError), match=f"attention: {message}"):
        attention(*tensors, **options)


# --- who takes a call ----------------------------------------------------------------------------

needs_native = pytest.mark.skipif(
    bool(backend("cpu").missing), reason=f"cpu: {backend('cpu').missing}"
)


def ours_measured(isa: str) -> bool:
    return any(row.isa == isa for row in preference.MEASURED)


@needs_native
def test_explain_says_who_and_why():
    q, k, v, _ = operands((1, 8, 256, 77, 40))
    said = explain("attention", q.requires_grad_(), k, v)
    assert [c.backend for c in said.candidates] == list(dispatch.order("attention"))
    assert said.backward is not None
    if ours_measured(backend("cpu").variant()):
        assert said.backward.chosen == "cpu"
        assert "dq alone: our kernels measured at least" in str(said)
    else:
        assert said.backward.chosen == "sdpa"
    assert explain("attention", q.detach(), k, v).backward is None
    huge = [x.requires_grad_() for x in operands((1, 1, 8, 8, 1000))[:3]]
    said = explain("attention", *huge)
    assert said.backward is not None
    assert said.backward.chosen == "sdpa"
    assert "not measured to be faster" in str(said.backward)


#: Wide heads, and little to do: torch takes all of it in float32.
LEFT = (2, 4, 8, 8, 192)


def test_wide_heads_go_to_torch():
    said = explain("attention", *operands(LEFT)[:3])
    assert said.chosen == "sdpa"


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_call_left_to_torch_is_its_function(layout, needs):
    """To the bit, forward and backward, with torch's own autograd; out in q's order of strides."""
    *ops, grad = operands(LEFT, layout=layout)
    results = []
    for f in (attention, torch.nn.functional.scaled_dot_product_attention):
        leaves = [x.detach().requires_grad_(need) for x, need in zip(ops, needs, strict=True)]
        out = f(*leaves)
        if any(needs):
            out.backward(grad)
        results.append([out, *(x.grad for x in leaves)])
    ours, torchs = results
    for a, b in zip(ours, torchs, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)
    assert ours[0].stride() == torch.empty_like(ops[0]).stride()


def test_a_call_left_to_torch_leaves_out_what_needs_says():
    q, k, v = (x.requires_grad_() for x in operands(LEFT)[:3])
    out = attention(q, k, v, needs=(True, False, True))
    assert is_torchs(out)
    out.sum().backward()
    assert [x.grad is not None for x in (q, k, v)] == [True, False, True]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("needs", [(True, False, False), (True, True, True)], ids=str)
@pytest.mark.parametrize(
    "shape",
    [LEFT, (1, 8, 128, 128, 40), (1, 8, 80, 77, 160), (1, 4, 64, 144, 256), (1, 1, 8, 8, 1000)],
)
def test_explain_agrees_with_what_happens(shape, needs, dtype):
    """torch differentiates its function where explain names it for the forward and the backward."""
    leaves = [x.requires_grad_(n) for x, n in zip(operands(shape, dtype), needs, strict=False)]
    said = explain("attention", *leaves)
    assert said.backward is not None
    both = said.chosen == said.backward.chosen == "sdpa"
    assert is_torchs(attention(*leaves)) == both
    assert both or shape != LEFT or dtype != F32


@pytest.mark.parametrize("grad", [False, True], ids=["forward", "with a backward"])
def test_a_call_left_to_torch_is_logged(grad, monkeypatch, caplog):
    """Both choices are made, and logged, when the forward is called: nothing is asked afterwards."""
    monkeypatch.setenv("UDP_FAST_LOG_DISPATCH", "1")
    q, k, v = (x.requires_grad_(grad) for x in operands(LEFT)[:3])
    with caplog.at_level(logging.INFO, "udp_fast.dispatch"):
        out = attention(q, k, v)
        if grad:
            out.sum().backward()
    what = "sdpa (float32[2, 4, 8, 192] on cpu)"
    expected = [f"attention -> {what}", f"attention_backward -> {what}"]
    assert caplog.messages == expected[: 1 + grad]


def test_only_the_pinned_backend_runs(attention_backend, monkeypatch, caplog):
    """torch's function is called where sdpa is pinned, and where another is, that one is called."""
    monkeypatch.setenv("UDP_FAST_LOG_DISPATCH", "1")
    q, k, v = (x.requires_grad_() for x in operands(LEFT)[:3])
    with caplog.at_level(logging.INFO, "udp_fast.dispatch"):
        out = attention(q, k, v)
        out.sum().backward()
    assert is_torchs(out) == (attention_backend == "sdpa")
    assert [x.split(" (")[0] for x in caplog.messages] == [
        f"attention -> {attention_backend}",
        f"attention_backward -> {attention_backend}",
    ]


REMEMBERED_BIASES = {
    "": lambda shape: None,
    "of keys": lambda shape: torch.randn(shape[0], 1, 1, shape[3]),
    "of scores": lambda shape: torch.randn(shape[2], shape[3]),
    "bfloat16": lambda shape: torch.randn(shape[0], 1, 1, shape[3]).to(BF16),
    "mask": lambda shape: torch.randn(shape[0], 1, 1, shape[3]) > 0,
}


@pytest.mark.parametrize(
    "needs", [(False, False, False), (True, False, False), (True, True, True)], ids=str
)
@pytest.mark.parametrize("bias", REMEMBERED_BIASES)
@pytest.mark.parametrize("shape", [LEFT, (1, 8, 256, 77, 40), (1, 4, 64, 144, 256)], ids=str)
def test_a_call_like_an_earlier_one_is_neither_checked_nor_chosen_for(
    shape, bias, needs, remembered, monkeypatch
):
    """Whoever takes it, torch, its kernel in our backward, or ours."""
    *leaves, grad = operands(shape)
    leaves = [x.requires_grad_(n) for x, n in zip(leaves, needs, strict=True)]
    given = REMEMBERED_BIASES[bias](shape)

    def results():
        out = attention(*leaves, bias=given)
        wanted = [x for x in leaves if x.requires_grad]
        return [out, *(torch.autograd.grad(out, wanted, grad) if wanted else ())]

    first = results()
    assert len(remembered) == 1
    with monkeypatch.context() as patch:
        for name in ("_check_tensors", "_eager", "_differentiate"):
            patch.setattr(attention_module, name, None)
        again = results()
    assert all(map(same_bits, again, first))
    assert type(again[0].grad_fn) is type(first[0].grad_fn)


@pytest.mark.usefixtures("remembered")
def test_what_was_left_to_torch_once_is_chosen_anew_where_anything_differs(monkeypatch, caplog):
    """What the checks and choices look at counts."""
    q, k, v = operands(LEFT)[:3]
    first = attention(q, k, v)
    with monkeypatch.context() as patch:
        patch.setattr(attention_module, "_check_tensors", None)  # which is not called again
        assert torch.equal(attention(q, k, v), first)
    with pytest.raises(TypeError, match="v: got dtype"):
        attention(q, k, v.double())
    with pytest.raises(ValueError, match="v: got shape"):
        attention(q, k, v[:, :, 1:])
    with pytest.raises(TypeError, match="scale"):
        attention(q, k, v, scale=True)
    with pytest.raises(TypeError, match="q: got NoneType"):
        attention(None, k, v)
    assert explain("attention", q, k, v).chosen == "sdpa"  # and nothing runs
    monkeypatch.setenv("UDP_FAST_BACKEND", "reference")
    monkeypatch.setenv("UDP_FAST_LOG_DISPATCH", "1")
    with caplog.at_level(logging.INFO, "udp_fast.dispatch"):
        attention(q, k, v)
    assert caplog.messages == ["attention -> reference (float32[2, 4, 8, 192] on cpu)"]


def test_a_backward_that_nobody_foresaw_forms_the_statistics_once(monkeypatch):
    """Of the op itself, called without them."""
    monkeypatch.setenv("UDP_FAST_BACKEND", "cpu" if not backend("cpu").missing else "reference")
    q, k, v, grad = operands((1, 2, 9, 7, 16))
    right = torch.autograd.grad(
        attention(*(x.requires_grad_() for x in (q, k, v))), (q, k, v), grad
    )
    forwards = []
    called = dispatch.call
    monkeypatch.setattr(
        dispatch, "call", lambda op, *args: forwards.append(op) or called(op, *args)
    )
    for n in (1, 2):
        out, _ = torch.ops.udp_fast.attention(q, k, v, None, 0.25, False)
        assert all(map(torch.equal, torch.autograd.grad(out, (q, k, v), grad), right))
        assert forwards.count("attention") == 2 * n


@pytest.mark.usefixtures("remembered")
def test_a_bias_of_a_remembered_call_must_not_require_a_gradient_either():
    q, k, v, _ = operands((1, 2, 9, 7, 16))
    bias = torch.randn(1, 1, 1, 7, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(attention(q, k, v, bias=bias), attention(q, k, v, bias=bias))
    with pytest.raises(ValueError, match="bias: requires grad"):
        attention(q, k, v, bias=bias)


@pytest.mark.usefixtures("remembered")
def test_a_bias_changed_before_a_remembered_backward_is_an_error():
    q, k, v, grad = operands((1, 2, 9, 7, 16))
    q.requires_grad_()
    bias = torch.randn(1, 1, 1, 7)
    torch.autograd.grad(attention(q, k, v, bias=bias), q, grad)
    out = attention(q, k, v, bias=bias)
    bias.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(out, q, grad)


@pytest.mark.usefixtures("remembered")
def test_only_so_many_calls_are_remembered(monkeypatch):
    calls = Remembered(constants=2, most=3, most_of_a_key=2)
    monkeypatch.setattr(attention_module, "_remembered", calls)
    for n in range(1, 6):
        attention(*(torch.ones(1, 1, n, 8) for _ in range(3)))
        assert len(calls._runs) == (n - 1) % 3 + 1
    ((_, alike),) = list(calls._runs.items())[-1:]
    for m in range(1, 4):  # as many queries, and other keys
        attention(torch.ones(1, 1, 5, 8), *(torch.ones(1, 1, m, 8) for _ in range(2)))
        assert len(alike) == [2, 1, 2][m - 1]
    assert len(calls._runs) == 2


def test_one_tensor_for_all_three_is_not_kept(remembered):
    x = operands(LEFT)[0]
    assert torch.equal(attention(x, x, x), attention(x, x.clone(), x.clone()))
    assert len(remembered) == 1
    attention(x, x, x)
    assert sum(map(len, remembered.values())) == 1


@pytest.mark.usefixtures("remembered")
def test_what_was_remembered_is_not_taken_under_autocast():
    q, k, v, _ = operands(LEFT)
    first = attention(q, k, v)
    for _ in range(2):
        with torch.autocast("cpu", BF16):
            out = attention(q, k, v)
        assert out.dtype == F32
        assert not is_torchs(out)
        assert same_bits(attention(q, k, v), first)


def test_nothing_is_remembered_where_torch_does_not_tell_calls_apart(remembered, monkeypatch):
    monkeypatch.setattr(remembered_module, "_tells_apart", lambda: False)
    q, k, v, _ = operands(LEFT)
    assert torch.equal(attention(q, k, v), attention(q, k, v))
    assert not remembered


def test_torch_is_tried_before_it_is_believed(monkeypatch):
    tells_apart = remembered_module._tells_apart.__wrapped__
    monkeypatch.setattr(remembered_module, "_likeness", lambda tensors: lambda *others: True)
    assert not tells_apart()
    monkeypatch.setattr(remembered_module, "_likeness", None)
    assert not tells_apart()


def test_this_torch_tells_calls_apart():
    if not hasattr(getattr(torch._C._dynamo, "guards", None), "TensorGuards"):
        pytest.skip("this torch has no TensorGuards")
    assert remembered_module._tells_apart.__wrapped__()


def test_torchs_function_is_not_given_what_it_would_do_in_another_way():
    """With a bias, under autocast, and of no keys: the backends' own kernels and dtypes."""
    q, k, v = (x.requires_grad_() for x in operands(LEFT)[:3])
    assert not is_torchs(attention(q, k, v, bias=torch.zeros(8)))
    with torch.autocast("cpu", BF16):
        out = attention(q, k, v)
    assert out.dtype == F32
    assert not is_torchs(out)
    nothing = attention(q, k[:, :, :0], v[:, :, :0])
    assert not is_torchs(nothing)
    assert not nothing.any()


def test_every_row_of_the_table_is_a_gain_and_is_reached():
    for row in preference.MEASURED:
        assert row.ratio > 1
        head, work = row.largest_head, max(row.least_work, 1)
        key = row.op, row.gradients, row.isa, row.dtype
        assert preference._measured(*key, head, work) is row
        assert preference._measured(*key, head + 1, work) is not row
        if row.least_work:
            assert preference._measured(*key, head, work - 1) is not row


def test_a_compiled_call_does_not_depend_on_what_was_remembered(remembered):
    """Of the memory torch.compile would keep a guard: each small call would compile anew."""
    torch._dynamo.reset()
    frames = []

    def count(graph, inputs):
        frames.append(graph)
        return graph.forward

    compiled = torch.compile(lambda q, k, v: attention(q, k, v) * 1, backend=count, fullgraph=True)
    q, k, v, _ = operands((1, 1, 8, 8, 16))
    compiled(q, k, v)
    for n in range(1, 20):
        other, *_ = operands((1, 1, n, n, 16))
        attention(other, other, other)
        compiled(q, k, v)
    assert len(frames) == 1


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_a_float32_bias_is_not_rounded(dtype):
    """torch's function would: 0.3 is no bfloat16 number beside 300."""
    q, k, v, _ = (x.to(dtype) for x in operands((1, 2, 16, 32, 16)))
    steps = (torch.arange(16)[:, None] - torch.arange(32)).abs()
    bias = -0.3 * steps - 300.7
    right = attention(q.double(), k.double(), v.double(), bias=bias.double())
    got = attention(q, k, v, bias=bias).double()
    assert (got - right).abs().max() <= 2 * torch.finfo(dtype).eps * right.abs().max()


@needs_native
def test_what_is_not_in_the_table_goes_to_torch(monkeypatch):
    monkeypatch.setattr(preference, "MEASURED", ())
    preference._measured.cache_clear()
    q, k, v, _ = operands((1, 8, 256, 77, 40))
    said = explain("attention", q.requires_grad_(), k, v)
    preference._measured.cache_clear()
    assert said.chosen == "sdpa"


@needs_native
@pytest.mark.parametrize("tiles", [(), ("tile",), ("tile", "fp16")], ids=str)
def test_torch_takes_what_it_multiplies_in_tiles(tiles, monkeypatch):
    if not ours_measured(backend("cpu").variant()):
        pytest.skip("ours were not measured with these kernels")
    for name in ("tile", "fp16"):
        asked = f"_is_amx_{name}_supported"  # older ones have but one
        monkeypatch.setattr(torch.cpu, asked, lambda has=name in tiles: has, raising=False)
    preference.torch_has_tiles.cache_clear()
    for dtype, needed in ((F32, "none"), (BF16, "tile"), (F16, "fp16")):
        args = (*(x.to(dtype) for x in operands((1, 8, 256, 77, 40))[:3]), None, 1.0, False)
        chosen = "sdpa" if needed in tiles else "cpu"
        assert dispatch.select("attention", args).name == chosen
    preference.torch_has_tiles.cache_clear()


def test_a_backend_that_leaves_a_call_takes_it_where_no_other_can(monkeypatch):
    q, k, v, _ = operands((1, 1, 4, 4, 8))
    args = (q, k, v, None, 1.0, False)
    monkeypatch.setattr(preference, "leaves", lambda name, op, args: name == "sdpa")
    monkeypatch.setattr(dispatch, "order", lambda op: ("sdpa", "reference"))
    assert dispatch.select("attention", args).name == "sdpa"


def test_on_a_gpu_ours_takes_dq_alone():
    """Decided on fake tensors: what matters is who would be asked."""
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        q = torch.empty(1, 2, 64, 40, device="cuda")
        k = torch.empty(1, 2, 77, 40, device="cuda")
        backward = (q, q, k, k, None, None, None, 1.0)
        for name in preference.OURS_ON_GPU:
            assert preference.leaves(name, "attention", (q, k, k, None, 1.0, True))
            assert preference.leaves(name, "attention_backward", (*backward, [True, True, True]))
            assert not preference.leaves(
                name, "attention_backward", (*backward, [True, False, False])
            )


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
def test_torch_kernels_for_the_gpu_are_called_with_what_they_take(dtype, biased, monkeypatch):
    """On the meta device they check their arguments and say what comes out: no GPU is needed."""
    kernels = importlib.import_module("udp_fast.backends.sdpa.attention")
    monkeypatch.setattr(kernels, "_has_flash", lambda device: True)
    q = torch.empty(2, 70, 3, 40, device="meta", dtype=dtype).transpose(1, 2)
    k = torch.empty(2, 80, 3, 40, device="meta", dtype=dtype).transpose(1, 2)
    bias = torch.empty(2, 1, 1, 80, device="meta") if biased else None
    expected = "efficient" if biased or dtype == F32 else "flash"
    assert kernels.kernel(q, bias, 80) == expected
    out, lse = kernels.attention(q, k, k, bias, 0.5, True)
    assert (out.shape, out.stride(), out.dtype) == (q.shape, q.stride(), dtype)
    assert (lse.shape, lse.dtype) == ((2, 3, 70), F32)
    grads = kernels.attention_backward(q, q, k, k, bias, out, lse, 0.5, [True, True, False])
    assert [g.shape for g in grads] == [q.shape, k.shape, (0,)]


class Fmha(types.ModuleType):
    """What the backend uses of xformers: [B, N, H, D], and sums padded as its kernels pad them."""

    @staticmethod
    def memory_efficient_attention_forward_requires_grad(q, k, v, scale):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out, lse = definition(q, k, v, None, scale, True)
        padded = torch.nn.functional.pad(lse, (0, -lse.shape[2] % 32), value=INF)
        return out.transpose(1, 2).contiguous(), padded

    @staticmethod
    def memory_efficient_attention_forward(q, k, v, scale):
        return Fmha.memory_efficient_attention_forward_requires_grad(q, k, v, scale)[0]

    @staticmethod
    def memory_efficient_attention_backward(grad, out, lse, q, k, v, scale):
        grad, out, q, k, v = (x.transpose(1, 2) for x in (grad, out, q, k, v))
        grads = definition_backward(grad, q, k, v, None, out, lse, scale, [True] * 3)
        return [x.transpose(1, 2).contiguous() for x in grads]


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_xformers_is_given_and_gives_its_own_layout(layout, monkeypatch):
    """The backend's way there and back, with the definition in place of the library."""
    ops = backend("xformers").ops
    package = types.ModuleType("xformers.ops")
    package.fmha = Fmha("xformers.ops.fmha")
    monkeypatch.setitem(sys.modules, "xformers", types.ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", package)
    q, k, v, grad = operands(SHAPES["text, 40"], layout=layout)
    out, lse = ops["attention"](q, k, v, None, 0.3, True)
    only, none = ops["attention"](q, k, v, None, 0.3, False)
    assert torch.equal(out, only)
    assert (out.stride(), lse.shape, none.shape) == (q.stride(), q.shape[:3], (0,))
    needs = [True, False, True]
    dq, dk, dv = ops["attention_backward"](grad, q, k, v, None, out, lse, 0.3, needs)
    assert (dq.stride(), dk.shape, dv.stride()) == (q.stride(), (0,), v.stride())
    right, right_dq, _, right_dv = exact(q, k, v, grad, scale=0.3)
    close(out, right, F32, "out")
    close(dq, right_dq, F32, "dq")
    close(dv, right_dv, F32, "dv")


def test_xformers_declines_in_words():
    x = torch.zeros(1, 1, 8, 8)
    ask = backend("xformers").not_supported_reasons
    assert ask("attention", (x, x, x, None, 1.0, False)) == [
        "a tensor is on cpu, not on the one GPU"
    ]
