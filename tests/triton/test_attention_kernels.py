"""The attention kernels, interpreted or on a GPU, against the definition in float64.

How wrong a low-precision attention may be has no a priori measure: torch's own on the same operands is
the yardstick. Since protection uses the gradient's sign, signs are compared as well.
"""

from __future__ import annotations

import functools
import importlib
import itertools

import pytest
import torch
import triton
import triton.language as tl
from cases import BF16, F16, F32, same_bits
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from udp_fast.backends.reference.attention import attention as definition
from udp_fast.backends.reference.attention import attention_backward as definition_backward
from udp_fast.backends.triton import BACKEND, INTERPRETS
from udp_fast.backends.triton.attention_wide import places_in_piece

ATTENTION, BACKWARD = BACKEND.ops["attention"], BACKEND.ops["attention_backward"]
DEVICE = "cpu" if INTERPRETS else "cuda"
INF = float("inf")
ALL = (True, True, True)
IMAGE = (True, False, False)
NAMES = ("out", "dq", "dk", "dv")

#: B, H, N, M, D. Every kernel, with tiles that are whole, with what remains, and with that alone.
SHAPES = {
    "text, 40": (1, 2, 33, 77, 40),
    "text, 64": (2, 1, 128, 77, 64),
    "text, 80": (1, 1, 33, 77, 80),
    "text, 128": (1, 1, 40, 77, 128),
    "text, 160": (1, 1, 33, 77, 160),
    "16 keys": (1, 1, 65, 16, 40),
    "48 keys": (1, 1, 20, 48, 64),
    "96 keys": (1, 1, 70, 96, 64),
    "128 keys": (1, 1, 70, 128, 40),
    "one key": (1, 1, 3, 1, 64),
    "self, 40": (1, 1, 150, 150, 40),
    "self, 64": (1, 1, 128, 128, 64),
    "self, 80": (1, 1, 70, 131, 80),
    "self, 128": (1, 1, 70, 133, 128),
    "VAE, 512": (1, 1, 33, 17, 512),
    "300 in two pieces": (1, 1, 20, 33, 300),
    "odd": (1, 1, 9, 140, 17),
}
#: Beside bfloat16, with which all are run, for what differs: conversions and their ranges.
IN_FLOAT16 = ("text, 64", "text, 80", "96 keys", "self, 40", "self, 128", "300 in two pieces")
RUNS = [
    *((BF16, name) for name in SHAPES),
    *((F16, name) for name in IN_FLOAT16),
]


@triton.jit
def piece_kernel(
    base, row, found, ROWS: tl.constexpr, PIECE: tl.constexpr, D: tl.constexpr, UNIT: tl.constexpr
):
    """Where the rows of the second piece lie, int64 [ROWS, PIECE]."""
    places, _ = places_in_piece(base, 1, 0, ROWS, row, ROWS, PIECE, D, UNIT)
    i = tl.arange(0, ROWS)[:, None] * PIECE + tl.arange(0, PIECE)[None, :]
    tl.store(found + i, places.to(tl.int64))


def heads(shape, seed, dtype, layout="[B, N, H, D]") -> list[Tensor]:
    """q, k, v and a gradient of out."""
    b, h, n, m, d = shape
    g = torch.Generator().manual_seed(seed)
    found = []
    for rows in (n, m, m, n):
        if layout == "[B, N, H, D]":
            x = torch.randn(b, rows, h, d, generator=g).to(dtype).transpose(1, 2)
        elif layout == "[B, H, N, D]":
            x = torch.randn(b, h, rows, d, generator=g).to(dtype)
        elif layout == "a slice, rows anywhere":
            x = torch.randn(b, h, rows, d + 3, generator=g).to(dtype)[..., 2 : d + 2]
        else:
            assert layout == "expanded"
            x = torch.randn(1, 1, rows, d, generator=g).to(dtype).expand(b, h, rows, d)
        found.append(x)
    return found


def on(device: str, *values):
    return [v.to(device) if isinstance(v, Tensor) else v for v in values]


def kernels(q, k, v, grad, bias=None, scale=None, needs=ALL, saved=True) -> list[Tensor]:
    """[out, dq, dk, dv]; ``saved``: the backward gets out and lse."""
    scale = q.shape[3] ** -0.5 if scale is None else scale
    q, k, v, grad, bias = on(DEVICE, q, k, v, grad, bias)
    out, lse = ATTENTION(q, k, v, bias, scale, True)
    rest = (out, lse) if saved else (None, None)
    return on("cpu", out, *BACKWARD(grad, q, k, v, bias, *rest, scale, needs))


def exact(q, k, v, grad, bias=None, scale=None) -> list[Tensor]:
    scale = q.shape[3] ** -0.5 if scale is None else scale
    q, k, v, grad, bias = (None if x is None else x.double() for x in (q, k, v, grad, bias))
    out, lse = definition(q, k, v, bias, scale, True)
    return [out, *definition_backward(grad, q, k, v, bias, out, lse, scale, ALL)]


def torchs(q, k, v, grad, bias=None, scale=None) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    if bias is not None:
        bias = bias.to(q.dtype).expand(*q.shape[:3], k.shape[2])
    out = scaled_dot_product_attention(*leaves, attn_mask=bias, scale=scale)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def errors(got, expected) -> list[float]:
    return [float((a.double() - b).abs().max()) for a, b in zip(got, expected, strict=True)]


def check(got, arguments, **options) -> None:
    """The output and the gradients that there are: no more than twice as wrong as torch's, and dq of
    the right signs.
    """
    right, theirs = (f(*arguments, **options)[: len(got)] for f in (exact, torchs))
    eps = torch.finfo(arguments[0].dtype).eps
    for name, a, b, mine, limit in zip(
        NAMES[: len(got)], got, right, errors(got, right), errors(theirs, right), strict=True
    ):
        assert a.dtype == arguments[0].dtype
        # Where torch is exact by luck, one rounding of the largest number.
        assert mine <= max(2 * limit, eps * float(b.abs().max())), (name, mine, limit)
    dq, true = got[1].double(), right[1]
    above = true.abs() > eps * true.abs().max()
    assert above.double().mean() > 0.5 or not true.any()
    assert (dq.sign() == true.sign())[above].double().mean() >= 0.999


@pytest.mark.parametrize(("dtype", "shape"), RUNS, ids=str)
def test_all_gradients(dtype, shape):
    arguments = heads(SHAPES[shape], 1, dtype)
    if SHAPES[shape][3] == 1:  # dq and dk are 0, differences of equal numbers
        out, *_, dv = kernels(*arguments)
        right = exact(*arguments)
        assert max(errors([out, dv], [right[0], right[3]])) < 0.02
        return
    check(kernels(*arguments), arguments)


@pytest.mark.parametrize(("dtype", "shape"), [run for run in RUNS if run[1] != "one key"], ids=str)
def test_the_gradient_of_queries_alone(dtype, shape):
    arguments = heads(SHAPES[shape], 2, dtype)
    few = SHAPES[shape][3] <= 128
    out, dq, dk, dv = kernels(*arguments, needs=IMAGE, saved=not few)
    assert dk.numel() == dv.numel() == 0
    check([out, dq], arguments)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 33, 77, 40), (1, 1, 33, 131, 128), (1, 1, 9, 41, 160), (1, 1, 9, 17, 300)],
    ids=str,
)
def test_float32(shape):
    """Whose tiles are 32 by 32."""
    arguments = heads(shape, 3, F32)
    check(kernels(*arguments), arguments)
    few = shape[3] <= 128
    dq = kernels(*arguments, needs=IMAGE, saved=not few)[1]
    right = exact(*arguments)[1]
    assert float((dq.double() - right).abs().max()) < 2e-6 * float(right.abs().max())


def biases(shape):
    b, h, n, m, _ = shape
    g = torch.Generator().manual_seed(4)
    padding = torch.zeros(b, 1, 1, m)
    padding[..., m // 3 :] = -INF
    full = torch.randn(b, h, n, m, generator=g)
    full[:, :, 2] = -INF  # nothing to attend to
    return {
        "padded keys": padding,
        "a number a score": full,
        "a number a query": torch.randn(1, h, n, 1, generator=g),
        "its transpose": torch.randn(m, n, generator=g).t()[None, None],
        "a number": torch.full((1, 1, 1, 1), 2.0),
        "half": torch.randn(1, h, n, m, generator=g).to(BF16),
    }


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        *itertools.product(["text, 40", "self, 80"], biases((1, 1, 3, 3, 1))),
        ("300 in two pieces", "a number a score"),  # the same lines read all of them
    ],
)
def test_bias(shape, kind):
    sizes = SHAPES[shape]
    arguments, bias = heads(sizes, 5, BF16), biases(sizes)[kind]
    right = exact(*arguments, bias=bias)
    got = kernels(*arguments, bias=bias)
    if sizes[3] <= 128:
        got.append(kernels(*arguments, bias=bias, needs=IMAGE, saved=False)[1])
        right.append(right[1])
    for a, b in zip(got, right, strict=True):
        assert (a.double() - b).abs().max() <= 2e-2 * b.abs().max()
    if kind == "a number a score":
        assert not any(x[:, :, 2].any() for x in (*got[:2], *got[4:]))


@functools.cache
def everything(shape: str, seed: int, dtype: torch.dtype) -> list[Tensor]:
    return kernels(*heads(SHAPES[shape], seed, dtype))


@pytest.mark.parametrize(
    ("shape", "needs"),
    [
        *itertools.product(["text, 40", "self, 80"], itertools.product([False, True], repeat=3)),
        *itertools.product(
            ["text, 160", "300 in two pieces"], [(True, False, True), (False, True, False)]
        ),
    ],
    ids=str,
)
def test_every_set_of_gradients_has_the_same_bits(shape, needs):
    """Whatever else is computed; but for dq alone and few keys, which is a kernel of its own."""
    arguments = heads(SHAPES[shape], 6, BF16)
    all_of_them = everything(shape, 6, BF16)
    own = needs == IMAGE and SHAPES[shape][3] <= 128
    got = kernels(*arguments, needs=needs)
    for i, (a, b, needed) in enumerate(zip(got[1:], all_of_them[1:], needs, strict=True)):
        assert a.numel() == (b.numel() if needed else 0)
        if needed and not (own and i == 0):
            assert same_bits(a, b)


LAYOUTS = ("[B, H, N, D]", "a slice, rows anywhere", "expanded")


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        *itertools.product(["text, 40", "self, 80"], LAYOUTS),
        ("300 in two pieces", "a slice, rows anywhere"),
    ],
)
def test_layouts_have_the_same_bits(shape, layout):
    arguments = heads(SHAPES[shape], 7, F16, layout)
    copies = [x.contiguous() for x in arguments]
    for saved, needs in ((True, ALL), (SHAPES[shape][3] > 128, IMAGE)):
        got = kernels(*arguments, needs=needs, saved=saved)
        for a, b in zip(got, kernels(*copies, needs=needs, saved=saved), strict=True):
            assert same_bits(a, b)


def test_a_gradient_that_is_expanded_everywhere():
    """As that of a sum is: even its rows have stride 0."""
    q, k, v, grad = heads(SHAPES["text, 40"], 8, F16)
    ones = torch.ones((), dtype=F16).expand(grad.shape)
    for needs, saved in ((ALL, True), (IMAGE, False)):
        got = kernels(q, k, v, ones, needs=needs, saved=saved)
        for a, b in zip(
            got, kernels(q, k, v, ones.contiguous(), needs=needs, saved=saved), strict=True
        ):
            assert same_bits(a, b)


@pytest.mark.parametrize("shape", [(2, 1, 70, 77, 40), (2, 2, 40, 140, 64), (2, 1, 9, 17, 512)])
def test_bits_do_not_depend_on_the_batch(shape, monkeypatch):
    """Nor on how many tiles of queries a program takes."""
    launcher = importlib.import_module("udp_fast.backends.triton.attention")
    few = shape[3] <= 128
    arguments = heads(shape, 9, BF16)
    for needs, saved in ((ALL, True), (IMAGE, not few)):
        together = kernels(*arguments, needs=needs, saved=saved)
        alone = kernels(*(x[-1:] for x in arguments), needs=needs, saved=saved)
        for a, b in zip(alone, together, strict=True):
            assert same_bits(a, b[-1:]) or a.numel() == 0
        monkeypatch.setattr(launcher, "PROGRAMS", 2)
        for a, b in zip(kernels(*arguments, needs=needs, saved=saved), together, strict=True):
            assert same_bits(a, b)
        monkeypatch.undo()


@pytest.mark.parametrize("scale", [0.0, -0.3])
@pytest.mark.parametrize("shape", ["text, 40", "self, 80", "300 in two pieces"])
def test_scales_that_are_not_positive(shape, scale):
    arguments = heads(SHAPES[shape], 10, F16)
    few = SHAPES[shape][3] <= 128
    right = exact(*arguments, scale=scale)
    got = [*kernels(*arguments, scale=scale)]
    got.append(kernels(*arguments, scale=scale, needs=IMAGE, saved=not few)[1])
    for a, b in zip(got, [*right, right[1]], strict=True):
        assert (a.double() - b).abs().max() <= 4e-3 * b.abs().max()


def test_offsets_of_more_than_32_bits():
    """Rows that are 2^24 numbers apart: a tile of 128 spans 2^31."""
    q, k, v, grad = heads((1, 1, 2, 2, 16), 11, F16)
    far = torch.empty(2**24 + 16, dtype=F16).as_strided(q.shape, (0, 0, 2**24, 1)).copy_(q)
    launcher = importlib.import_module("udp_fast.backends.triton.attention")
    assert launcher._Layout.of(far).offset != launcher._Layout.of(q).offset
    for a, b in zip(kernels(far, k, v, grad), kernels(q, k, v, grad), strict=True):
        assert same_bits(a, b)


def test_small_gradients_of_float16_are_not_lost():
    """dS is rounded before it is scaled by 1 / sum: of gradients of 1e-4 nothing would be left."""
    q, k, v, grad = heads(SHAPES["text, 64"], 12, F16)
    grad = grad * 1e-3
    dq = kernels(q, k, v, grad, needs=IMAGE, saved=False)[1]
    right = exact(q, k, v, grad)[1]
    assert (dq.double() - right).norm() <= 2e-3 * right.norm()


@pytest.mark.parametrize(
    ("shape", "keys"),
    [
        ((1, 1, 5, 140, 16), slice(0, 64)),
        ((1, 1, 5, 140, 16), slice(None)),
        ((1, 1, 5, 20, 16), slice(None)),
        ((1, 1, 3, 40, 300), slice(0, 32)),
    ],
    ids=["a tile", "all tiles", "the only tile", "a tile of wide heads"],
)
def test_scores_that_overflow_count_as_masked(shape, keys):
    q, k, v, grad = heads(shape, 13, BF16)
    q, k = q.abs() * 1e30, k * 1e-30
    k[:, :, keys] = -1e30
    bias = torch.zeros(1, 1, 1, shape[3])
    bias[..., keys] = -INF
    got = [*kernels(q, k, v, grad), kernels(q, k, v, grad, needs=IMAGE, saved=False)[1]]
    right = exact(q, k.masked_fill((k < -1e20), 0.0), v, grad, bias)
    for a, b in zip(got, [*right, right[1]], strict=True):
        assert (a.double() - b).abs().max() <= 2e-2 * b.abs().max()


def test_addresses_of_rows_that_are_2_to_the_31_apart():
    """Of a piece that the head dim does not fill: nothing is loaded from there."""
    base, found = torch.zeros(1, dtype=F16, device=DEVICE), torch.empty(2, 16, dtype=torch.int64)
    found = found.to(DEVICE)
    piece_kernel[(1,)](base, 2**28, found, ROWS=2, PIECE=16, D=17, UNIT=8)
    expected = torch.tensor([[0], [2**31]]) + 16 + torch.arange(16)
    assert torch.equal((found.cpu() - base.data_ptr()) // 2, expected)


@pytest.mark.parametrize("scale", [1e9, 3.7e9, 1e12])
def test_scores_too_large_for_their_differences(scale):
    """The largest has a weight of no more than 1, however far its product with the scale is from a float:
    on a GPU, where that is not rounded."""
    q, k, v, grad = heads((1, 1, 5, 77, 16), 14, BF16)
    assert kernels(q, k, v, grad, scale=scale, needs=IMAGE, saved=False)[1].isfinite().all()
