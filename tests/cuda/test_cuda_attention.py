"""attention's CUDA kernels, emulated, against the definition in float64 and torch's own error."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from emulated_module import EmulatedModule
from emulation import FEW_SEEDS
from torch import Tensor

from udp_fast.backends.cuda.attention import (
    DIMS,
    attention,
    attention_backward,
    not_supported_reasons,
)
from udp_fast.backends.dtypes import not_served
from udp_fast.backends.reference import BACKEND as REFERENCE

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
#: Of the kernels on tensor cores that keep whole rows in registers.
NARROW = DIMS[:-1]
#: Below that, of the largest number of a result, a sign says nothing.
ROUNDING = {BF16: 2**-7, F16: 2**-10, F32: 2**-20}
definition = REFERENCE.ops["attention_backward"]
forward_definition = REFERENCE.ops["attention"]
DQ = (True, False, False)


def heads(shape: tuple[int, ...], dtype: torch.dtype, layout: str = "bnhd") -> Tensor:
    """[B, H, N, D], lying in memory as the layout says."""
    b, h, n, d = shape
    if layout == "bhnd":
        return torch.randn(shape).to(dtype)
    if layout == "fused":  # a third of [B, N, 3, H, D]
        return torch.randn(b, n, 3, h, d).to(dtype)[:, :, 1].transpose(1, 2)
    assert layout == "bnhd"
    return torch.randn(b, n, h, d).to(dtype).transpose(1, 2)


def operands(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, layout: str = "bnhd"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """grad_out, q, k, v of (images, heads, queries, keys, head dim)."""
    torch.manual_seed(0)
    b, h, n, m, d = shape
    return tuple(heads((b, h, count, d), dtype, layout) for count in (n, n, m, m))  # type: ignore[return-value]


def torchs(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> list[Tensor]:
    """torch's output, dq, dk and dv in the operands' own dtype."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    mask = None if bias is None else bias.to(q.dtype)
    out = torch.nn.functional.scaled_dot_product_attention(*leaves, mask, scale=scale)
    out.backward(grad_out)
    return [out.detach(), *(x.grad for x in leaves if x.grad is not None)]


def check(found: Tensor, exact: Tensor, other: Tensor) -> None:
    """No more than twice torch's error, and the sign wherever that says anything."""
    largest = exact.abs().max()
    error, theirs = ((x.double() - exact).norm() / exact.norm() for x in (found, other))
    assert error <= 2 * theirs
    says = exact.abs() > ROUNDING[found.dtype] * largest
    assert torch.equal(found.double().sign()[says], exact.sign()[says])


def check_dq(
    emulated: EmulatedModule,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    bias: Tensor | None = None,
    scale: float | None = None,
) -> None:
    grad_out, q, k, v = tensors
    scale = scale or q.shape[3] ** -0.5
    args: tuple[Any, ...] = (grad_out, q, k, v, bias, None, None, scale, DQ)
    assert not_supported_reasons("attention_backward", args) == []
    dq, dk, dv = attention_backward(*args)
    assert dk.numel() == dv.numel() == 0
    assert dq.stride() == torch.empty_like(q).stride()
    double = [x.double() for x in tensors]
    exact, _, _ = definition(*double, bias, None, None, scale, DQ)
    check(dq, exact, torchs(*tensors, bias, scale)[1])
    (launch,) = emulated.launches
    assert launch.ldmatrix > 0
    assert launch.ldmatrix_conflicts == 0
    # dq is written once and nothing beside it; 16 bytes at a time but for the odd 8 columns of 40.
    assert launch.store_bytes == launch.unique_store_bytes == dq.nbytes
    assert launch.wide_store_bytes >= {40: 0.79, 80: 0.79}.get(q.shape[3], 1) * dq.nbytes
    assert launch.unique_load_bytes == sum(x.nbytes for x in tensors) + (
        0 if bias is None else 4 * bias.numel()
    )


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize("dim", NARROW)
@pytest.mark.parametrize("keys", [77, 128])
def test_dq_of_few_keys(emulated: EmulatedModule, dim: int, keys: int, dtype: torch.dtype) -> None:
    check_dq(emulated, operands((1, 2, 150, keys, dim), dtype))


@pytest.mark.every_schedule
@pytest.mark.parametrize(
    ("queries", "keys"),
    [(1, 77), (15, 80), (16, 81), (33, 2), (130, 16), (200, 100), (64, 127)],
)
def test_sizes_that_fill_no_tile(emulated: EmulatedModule, queries: int, keys: int) -> None:
    check_dq(emulated, operands((2, 1, queries, keys, 64), BF16))


@pytest.mark.parametrize("layout", ["bhnd", "fused"])
def test_layouts(emulated: EmulatedModule, layout: str) -> None:
    check_dq(emulated, operands((2, 3, 40, 77, 40), BF16, layout))


def test_operands_that_are_not_aligned_are_copied(emulated: EmulatedModule) -> None:
    tensors = operands((1, 2, 20, 77, 64), BF16)
    shifted = []
    for x in tensors:
        room = torch.empty(x.numel() + 1, dtype=x.dtype)
        shifted.append(room[1:].view(x.shape).copy_(x))
    args = (None, None, None, 0.125, DQ)
    first, _, _ = attention_backward(*tensors, *args)
    second, _, _ = attention_backward(*shifted, *args)
    assert torch.equal(first, second)


@pytest.mark.parametrize("shape", [(1, 1, 1, 77), (2, 1, 1, 77), (2, 2, 1, 77), (2, 2, 1, 1)])
@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
def test_bias(emulated: EmulatedModule, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    bias = (3 * torch.randn(shape)).to(dtype).float()
    check_dq(emulated, operands((2, 2, 40, 77, 64), dtype), bias)


@pytest.mark.every_schedule
@pytest.mark.parametrize("dim", NARROW)
def test_bias_by_query_of_few_keys(emulated: EmulatedModule, dim: int) -> None:
    torch.manual_seed(1)
    bias = (3 * torch.randn(2, 1, 40, 77)).to(BF16).float()
    bias[..., 10:20, 50:] = -math.inf
    check_dq(emulated, operands((2, 2, 40, 77, dim), BF16), bias)


def test_padded_keys_count_for_nothing(emulated: EmulatedModule) -> None:
    tensors = operands((1, 2, 40, 77, 64), F16)
    bias = torch.zeros(1, 1, 1, 77)
    bias[..., 20:] = -math.inf
    check_dq(emulated, tensors, bias)
    grad_out, q, k, v = tensors
    without, _, _ = attention_backward(
        grad_out, q, k[:, :, :20], v[:, :, :20], None, None, None, 0.125, DQ
    )
    with_padding, _, _ = attention_backward(*tensors, bias, None, None, 0.125, DQ)
    assert torch.equal(without, with_padding)


@pytest.mark.usefixtures("emulated")
def test_a_row_without_keys_has_no_gradient() -> None:
    tensors = operands((2, 1, 20, 5, 64), BF16)
    bias = torch.zeros(2, 1, 1, 5)
    bias[1] = -math.inf
    dq, _, _ = attention_backward(*tensors, bias, None, None, 0.125, DQ)
    assert dq[0].count_nonzero() > 0
    assert dq[1].count_nonzero() == 0


@pytest.mark.usefixtures("emulated")
def test_the_lowest_bias_is_no_mask() -> None:
    """Of keys that all have it, each counts as if none had."""
    tensors = operands((1, 1, 20, 12, 64), BF16)
    bias = torch.full((1, 1, 1, 12), torch.finfo(torch.float32).min)
    dq, _, _ = attention_backward(*tensors, bias, None, None, 0.125, DQ)
    grad_out, q, k, v = (x.double() for x in tensors)
    p = (0.125 * q @ k.transpose(-1, -2)).softmax(-1)
    dp = grad_out @ v.transpose(-1, -2)
    exact = 0.125 * (p * (dp - (p * dp).sum(-1, keepdim=True))) @ k
    assert (dq.double() - exact).norm() <= 2**-8 * exact.norm()


@pytest.mark.parametrize("size", [1e-3, 30.0], ids=["flat", "peaked"])
@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
def test_scores_of_any_size(emulated: EmulatedModule, size: float, dtype: torch.dtype) -> None:
    grad_out, q, k, v = operands((1, 1, 40, 77, 80), dtype)
    check_dq(emulated, (grad_out, (size * q.float()).to(dtype), k, v))


@pytest.mark.parametrize("scale", [1.0, 0.03, 2.5])
def test_scales(emulated: EmulatedModule, scale: float) -> None:
    check_dq(emulated, operands((1, 1, 40, 77, 40), F16), scale=scale)


def test_small_gradients_in_float16(emulated: EmulatedModule) -> None:
    """1e-3 of one: dS without its scale is a normal number still."""
    grad_out, q, k, v = operands((1, 1, 40, 77, 64), F16)
    check_dq(emulated, ((1e-3 * grad_out.float()).to(F16), q, k, v))


@pytest.mark.usefixtures("emulated")
def test_a_nan_stays_in_its_row() -> None:
    grad_out, q, k, v = operands((1, 1, 40, 77, 64), BF16)
    q[0, 0, 3, 5] = math.nan
    dq, _, _ = attention_backward(grad_out, q, k, v, None, None, None, 0.125, DQ)
    rows = dq[0, 0].isnan().any(-1)
    assert rows.nonzero().flatten().tolist() == [3]


@pytest.mark.usefixtures("emulated")
def test_nothing_to_do() -> None:
    grad_out, q, k, v = operands((1, 1, 4, 77, 64), BF16)
    dq, _, _ = attention_backward(
        grad_out, q, k[:, :, :0], v[:, :, :0], None, None, None, 0.125, DQ
    )
    assert dq.count_nonzero() == 0
    empty, _, _ = attention_backward(
        grad_out[:, :, :0], q[:, :, :0], k, v, None, None, None, 0.125, DQ
    )
    assert empty.shape == (1, 1, 0, 64)


def reasons(op: str, args: tuple[Any, ...]) -> list[str]:
    """As the backend asks: for dtypes first."""
    found = not_served(op, args)
    return [found] if found else not_supported_reasons(op, args)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "torch.float64 is not served"),
        ({"dim": 96}, "head dim 96 is not served"),
        ({"scale": -1.0}, "scale -1.0 is not served"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_is_not_served_is_said(change: dict[str, Any], reason: str) -> None:
    call = {"dtype": BF16, "dim": 64, "keys": 77, "needs": DQ, "scale": 0.1, "bias": None} | change
    tensors = operands((1, 1, 4, call["keys"], call["dim"]), call["dtype"])
    args = (*tensors, call["bias"], None, None, call["scale"], call["needs"])
    (found,) = reasons("attention_backward", args)
    assert reason in found


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool], ids=str)
def test_bytes_are_not_served(dtype: torch.dtype) -> None:
    q = torch.zeros(1, 1, 4, 64, dtype=dtype)
    (found,) = reasons("attention", (q, q, q, None, 0.1, False))
    assert f"{dtype} is not served" in found


@pytest.mark.parametrize("other", ["k", "v", "out"])
@pytest.mark.parametrize("dtypes", [(BF16, F32), (F32, F16), (F16, BF16)], ids=str)
def test_operands_of_two_dtypes_are_not_served(
    other: str, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """A kernel would take the one's bits for the other's, or read past the end."""
    named = dict.fromkeys(("k", "v", "out"), torch.zeros(1, 1, 4, 64, dtype=dtypes[0]))
    q = named["k"]
    k, v, out = (named | {other: q.to(dtypes[1])}).values()
    args = (q, q, k, v, None, out, torch.zeros(1, 1, 4), 0.1, (True, True, True))
    (found,) = not_supported_reasons("attention_backward", args)
    assert found == f"{other} is {dtypes[1]} and q {dtypes[0]}: only one dtype is served"
    if other != "out":
        assert not_supported_reasons("attention", (q, k, v, None, 0.1, False)) == [found]


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("layout", ["bnhd", "fused"])
@pytest.mark.parametrize("needs", [DQ, (True, True, True)], ids=["dq", "all"])
@pytest.mark.parametrize("dtypes", [(F32, BF16), (F16, F32), (BF16, F16)], ids=str)
def test_a_gradient_of_another_dtype(
    dtypes: tuple[torch.dtype, torch.dtype], needs: tuple[bool, bool, bool], layout: str
) -> None:
    """Everything is in float32 then, as if it had been given so."""
    grad_out, q, k, v = operands((1, 2, 20, 30, 40), dtypes[1], layout)
    grad_out = grad_out.to(dtypes[0])
    out, lse = attention(q, k, v, None, 0.1, True)
    wide = [x.float() for x in (grad_out, q, k, v)]
    expected = attention_backward(*wide, None, out.float(), lse, 0.1, needs)
    found = attention_backward(grad_out, q, k, v, None, out, lse, 0.1, needs)
    for x, ours, right in zip((q, k, v), found, expected, strict=True):
        assert ours.dtype == q.dtype
        assert torch.equal(ours, right.to(q.dtype))
        assert not ours.numel() or ours.stride() == torch.empty_like(x).stride()


# --- any number of keys ---------------------------------------------------------------------------


def check_all(
    emulated: EmulatedModule,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    bias: Tensor | None = None,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> None:
    """The output, lse and the gradients that are needed."""
    grad_out, q, k, v = tensors
    scale = q.shape[3] ** -0.5
    assert not_supported_reasons("attention", (q, k, v, bias, scale, True)) == []
    out, lse = attention(q, k, v, bias, scale, True)
    double = [x.double() for x in tensors]
    exact_out, exact_lse = forward_definition(*double[1:], bias, scale, True)
    theirs = torchs(*tensors, bias, scale)
    check(out, exact_out, theirs[0])
    assert torch.allclose(lse.double(), exact_lse, rtol=1e-5, atol=1e-4)
    args = (*tensors, bias, out, lse, scale, needs)
    assert not_supported_reasons("attention_backward", args) == []
    found = attention_backward(*args)
    exact = definition(*double, bias, exact_out, exact_lse, scale, needs)
    for ours, right, other, needed in zip(found, exact, theirs[1:], needs, strict=True):
        if needed:
            check(ours, right, other)
        else:
            assert ours.numel() == 0
    assert all(launch.ldmatrix_conflicts == 0 for launch in emulated.launches)
    assert all(launch.atomics == 0 for launch in emulated.launches)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize("dim", NARROW)
def test_many_keys(emulated: EmulatedModule, dim: int, dtype: torch.dtype) -> None:
    check_all(emulated, operands((1, 2 if dim <= 64 else 1, 140, 150, dim), dtype))


@pytest.mark.every_schedule
@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 1), (16, 64), (63, 65), (128, 200), (64, 128), (65, 7)]
)
def test_many_keys_that_fill_no_tile(emulated: EmulatedModule, queries: int, keys: int) -> None:
    tensors = operands((2, 1, queries, keys, 40), BF16)
    # Of a single key dS is 0, but for rounding.
    needs = (keys > 1, keys > 1, True)
    check_all(emulated, tensors, needs=needs)


@pytest.mark.parametrize("layout", ["bhnd", "fused"])
def test_many_keys_in_layouts(emulated: EmulatedModule, layout: str) -> None:
    check_all(emulated, operands((2, 2, 40, 140, 40), BF16, layout))


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True)]
)
def test_only_what_is_needed_is_launched(
    emulated: EmulatedModule, needs: tuple[bool, bool, bool]
) -> None:
    check_all(emulated, operands((1, 1, 40, 140, 64), F16), needs=needs)
    kernels = [launch.kernel for launch in emulated.launches]
    assert sum("attention_dq" in name for name in kernels) == needs[0]
    assert sum("attention_dkdv" in name for name in kernels) == (needs[1] or needs[2])


@pytest.mark.every_schedule
@pytest.mark.parametrize("shape", [(1, 1, 1, 140), (2, 2, 1, 140)])
def test_bias_of_many_keys(emulated: EmulatedModule, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    bias = (3 * torch.randn(shape)).to(BF16).float()
    bias[..., 100:] = -math.inf
    check_all(emulated, operands((2, 2, 40, 140, 64), BF16), bias)


#: Of a bias that differs between queries; the last one is of queries alone.
BY_QUERY = [(1, 1, 40, 140), (2, 2, 40, 140), (1, 2, 40, 1)]


@pytest.mark.every_schedule
@pytest.mark.parametrize("shape", BY_QUERY)
def test_bias_by_query(emulated: EmulatedModule, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    bias = (3 * torch.randn(shape)).to(BF16).float()
    if shape[3] > 1:
        bias[..., 10:30, 100:] = -math.inf
    check_all(emulated, operands((2, 2, 40, 140, 64), BF16), bias)


def test_bias_by_query_with_strides_of_its_own(emulated: EmulatedModule) -> None:
    """A transposed bias is read where it lies."""
    torch.manual_seed(1)
    bias = (3 * torch.randn(1, 1, 140, 40)).to(F16).float().transpose(2, 3)
    check_all(emulated, operands((1, 2, 40, 140, 40), F16), bias)


def test_each_query_may_have_its_own_keys(emulated: EmulatedModule) -> None:
    """A causal mask, over whose corner tiles without any key lie; the first row has none at all."""
    bias = torch.zeros(1, 1, 140, 140).masked_fill_(torch.ones(140, 140).triu().bool(), -math.inf)
    tensors = operands((1, 1, 140, 140, 80), BF16)
    # torch gives a row without keys NaN or nothing, by version.
    grad_out, q, k, v = tensors
    out, lse = attention(q, k, v, bias, 0.1, True)
    assert lse[0, 0, 0] == -math.inf
    found = attention_backward(*tensors, bias, out, lse, 0.1, (True, True, True))
    assert all(x[:, :, 0].count_nonzero() == 0 for x in (out, found[0]))
    double = [x[:, :, 1:] if x is grad_out or x is q else x for x in tensors]
    theirs = torchs(*double, bias[:, :, 1:], 0.1)
    exact_out, exact_lse = forward_definition(
        *(x.double() for x in double[1:]), bias[:, :, 1:], 0.1, True
    )
    exact = definition(
        *(x.double() for x in double), bias[:, :, 1:], exact_out, exact_lse, 0.1, (True,) * 3
    )
    ours = (out[:, :, 1:], found[0][:, :, 1:], *found[1:])
    for value, right, other in zip(ours, (exact_out, *exact), theirs, strict=True):
        check(value, right, other)


def test_a_large_bias_and_queries_that_fill_no_tile(emulated: EmulatedModule) -> None:
    """exp of it is no float32 number: where there is no query, nothing may be made of it."""
    bias = torch.zeros(1, 1, 1, 140)
    bias[..., 7] = 200.0
    check_all(emulated, operands((1, 1, 40, 140, 64), BF16), bias, needs=(False, False, True))
    grad_out, q, k, v = operands((1, 1, 40, 140, 64), BF16)
    out, lse = attention(q, k, v, bias, 0.125, True)
    gradients = attention_backward(grad_out, q, k, v, bias, out, lse, 0.125, (True, True, True))
    assert all(x.isfinite().all() for x in gradients)


@pytest.mark.usefixtures("emulated")
def test_rows_without_keys_give_nothing() -> None:
    grad_out, q, k, v = operands((2, 1, 20, 140, 64), BF16)
    bias = torch.zeros(2, 1, 1, 140)
    bias[1] = -math.inf
    out, lse = attention(q, k, v, bias, 0.125, True)
    assert out[1].count_nonzero() == 0
    assert torch.equal(lse[1], torch.full((1, 20), -math.inf))
    for grad in attention_backward(grad_out, q, k, v, bias, out, lse, 0.125, (True, True, True)):
        assert grad[0].count_nonzero() > 0
        assert grad[1].count_nonzero() == 0


def test_low_scores_of_queries_that_fill_no_tile(emulated: EmulatedModule) -> None:
    """exp(-lse) is no float32 number: what stands for absent queries must not make it one."""
    grad_out, q, k, v = operands((1, 1, 40, 140, 64), BF16)
    tensors = (grad_out, (5 + q.float() / 8).to(BF16), (k.float() / 8 - 5).to(BF16), v)
    check_all(emulated, tensors, needs=(False, False, True))
    out, lse = attention(*tensors[1:], None, 0.125, True)
    assert lse.max() < -150
    gradients = attention_backward(*tensors, None, out, lse, 0.125, (True, True, True))
    assert all(x.isfinite().all() for x in gradients)


@pytest.mark.every_schedule
@pytest.mark.parametrize("dim", NARROW)
def test_banks_of_shared_memory(emulated: EmulatedModule, dim: int) -> None:
    check_all(emulated, operands((1, 1, 128, 128, dim), BF16))
    assert all(launch.shared_conflicts == 0 for launch in emulated.launches)


# --- float32, and a head of 512 columns -----------------------------------------------------------

#: What attention_blocks.cuh serves.
BLOCKS = [*((dim, F32) for dim in DIMS), (512, BF16), (512, F16)]
of_blocks = pytest.mark.parametrize(
    ("dim", "dtype"), BLOCKS, ids=[f"{dim}-{str(dtype)[6:]}" for dim, dtype in BLOCKS]
)


@pytest.mark.every_schedule
@of_blocks
def test_blocks(emulated: EmulatedModule, dim: int, dtype: torch.dtype) -> None:
    """Tiles of both sides that are full and that are not; no bank conflict."""
    # One source: the narrowest and the widest show what an order of threads could do, and float16 differs
    # from bfloat16 in its conversions alone.
    if dim not in (DIMS[0], DIMS[-1]) or dtype == F16:
        emulated.seeds = FEW_SEEDS
    check_all(emulated, operands((1, 1, 70, 70 if dim == 512 else 140, dim), dtype))
    assert all(launch.shared_conflicts == 0 for launch in emulated.launches)
    wide = [x for x in emulated.launches if x.kernel.count("_float_") and dim != 40]
    assert all(x.wide_store_bytes >= 0.9 * x.store_bytes for x in wide)


@pytest.mark.parametrize("keys", [pytest.param(77, marks=pytest.mark.every_schedule), 90])
@of_blocks
def test_dq_alone_of_few_keys_in_blocks(
    emulated: EmulatedModule, dim: int, dtype: torch.dtype, keys: int
) -> None:
    """Nothing was saved: one pass, but for float32 with more keys than its tile holds."""
    tensors = operands((1, 1, 40, keys, dim), dtype)
    bias = torch.zeros(1, 1, 40, keys)
    bias[:, :, :5, 60:] = 3.0
    bias[:, :, 20:, 70:] = -math.inf
    args = (*tensors, bias, None, None, dim**-0.5, DQ)
    assert not_supported_reasons("attention_backward", args) == []
    dq, dk, dv = attention_backward(*args)
    exact, _, _ = definition(*(x.double() for x in tensors), *args[4:])
    check(dq, exact, torchs(*tensors, bias, dim**-0.5)[1])
    assert dk.numel() == dv.numel() == 0
    in_one = keys <= 80 or dtype != F32
    assert [x.atomics for x in emulated.launches] == [0] * (1 if in_one else 3)
    assert all(x.shared_conflicts == 0 for x in emulated.launches)


@pytest.mark.parametrize(("dim", "dtype"), [(40, F32), (512, BF16)], ids=str)
@pytest.mark.parametrize("layout", ["bhnd", "fused"])
def test_layouts_of_blocks(
    emulated: EmulatedModule, layout: str, dim: int, dtype: torch.dtype
) -> None:
    check_all(emulated, operands((2, 1 if dim == 512 else 2, 20, 30, dim), dtype, layout))


@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 1), (64, 64), (65, 1), (3, 129)], ids=lambda n: str(n)
)
@pytest.mark.parametrize(("dim", "dtype"), [(64, F32), (512, F16)], ids=str)
def test_blocks_of_any_size(
    emulated: EmulatedModule, queries: int, keys: int, dim: int, dtype: torch.dtype
) -> None:
    needs = (keys > 1, keys > 1, True)
    check_all(emulated, operands((1, 1, queries, keys, dim), dtype), needs=needs)


@pytest.mark.parametrize(
    ("dim", "dtype", "queries", "keys"), [(80, F32, 40, 70), (512, BF16, 20, 40)], ids=str
)
@pytest.mark.parametrize("kind", ["of keys", "of scores", "of queries"])
def test_bias_of_blocks(
    emulated: EmulatedModule, kind: str, dim: int, dtype: torch.dtype, queries: int, keys: int
) -> None:
    torch.manual_seed(1)
    shapes = {
        "of keys": (1, 1, 1, keys),
        "of scores": (2, 1, queries, keys),
        "of queries": (1, 1, queries, 1),
    }
    bias = (3 * torch.randn(shapes[kind])).to(BF16).float()
    if kind != "of queries":
        bias[..., keys - 20 :] = -math.inf
    check_all(emulated, operands((2, 1, queries, keys, dim), dtype), bias)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("dim", "dtype"), [(64, F32), (512, F16)], ids=str)
def test_rows_without_keys_give_nothing_in_blocks(dim: int, dtype: torch.dtype) -> None:
    grad_out, q, k, v = operands((1, 1, 20, 30, dim), dtype)
    bias = torch.zeros(1, 1, 20, 30)
    bias[:, :, 5:] = -math.inf
    out, lse = attention(q, k, v, bias, 0.1, True)
    assert out[:, :, 5:].count_nonzero() == 0
    assert torch.equal(lse[..., 5:], torch.full((1, 1, 15), -math.inf))
    dq, dk, dv = attention_backward(grad_out, q, k, v, bias, out, lse, 0.1, (True, True, True))
    assert dq[:, :, 5:].count_nonzero() == 0
    assert all(x.isfinite().all() and x.count_nonzero() for x in (dq, dk, dv))
    alone, _, _ = attention_backward(grad_out, q, k, v, bias, None, None, 0.1, DQ)
    assert alone[:, :, 5:].count_nonzero() == 0
    assert (alone - dq).norm() <= 2 * ROUNDING[dtype] * dq.norm()


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True)]
)
@pytest.mark.parametrize(("dim", "dtype"), [(40, F32), (512, F32), (512, BF16)], ids=str)
def test_only_what_is_needed_of_blocks_is_launched(
    emulated: EmulatedModule, needs: tuple[bool, bool, bool], dim: int, dtype: torch.dtype
) -> None:
    check_all(emulated, operands((1, 1, 20, 140, dim), dtype), needs=needs)
    assert len(emulated.launches) == 3  # forward, rows, and one
