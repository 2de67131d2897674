"""geglu in CUDA, emulated, against the definition in float64: schedules of equal bits."""

from __future__ import annotations

import pytest
import torch
from cases import BF16, F16, F32, F64, same_bits
from emulated_module import EmulatedModule
from torch import Tensor

from udp_fast.backends.cpu import BACKEND as CPU
from udp_fast.backends.cuda import BACKEND as CUDA
from udp_fast.backends.reference import BACKEND as REFERENCE

pytestmark = pytest.mark.usefixtures("emulated")

#: Rows of whole groups, fewer and more than a block has threads, and rows that no group divides.
SHAPES = ((6, 32), (3, 5, 48), (2, 2 * 1280), (5, 74), (7, 6), (1, 2), (300, 16), (1, 2 * 4100))


def drawn(shape: tuple[int, ...], dtype: torch.dtype, offset: int = 0) -> tuple[Tensor, Tensor]:
    """(grad, x), both so many elements further on than a fresh tensor begins."""
    generator = torch.Generator().manual_seed(sum(shape))
    found = []
    for size in (shape[-1] // 2, shape[-1]):
        values = 2.0 * torch.randn((*shape[:-1], size), generator=generator)
        room = torch.empty(values.numel() + offset, dtype=dtype)
        found.append(room[offset:].view(values.shape).copy_(values))
    return found[0], found[1]


def close(got: Tensor, exact: Tensor) -> None:
    """Within a rounding, and with the sign of what is clear of one."""
    rounding = torch.finfo(got.dtype).eps if got.dtype != F32 else 2e-6
    torch.testing.assert_close(got.to(F64), exact, rtol=rounding, atol=2e-6)
    clear = exact.abs() > 1e-5
    assert torch.equal(got.sign()[clear].to(F64), exact.sign()[clear])


@pytest.mark.every_schedule
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_width_and_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    grad, x = drawn(shape, dtype)
    y, dx = CUDA.ops["geglu"](x), CUDA.ops["geglu_backward"](grad, x)
    assert y.shape == grad.shape
    assert y.dtype == dx.dtype == dtype
    close(y, REFERENCE.ops["geglu"](x.to(F64)))
    close(dx, REFERENCE.ops["geglu_backward"](grad.to(F64), x.to(F64)))


def test_has_the_bits_of_the_cpu_kernels() -> None:
    for shape in SHAPES:
        grad, x = drawn(shape, F32)
        assert same_bits(CUDA.ops["geglu"](x), CPU.ops["geglu"](x))
        for_both = (grad, x)
        assert same_bits(*(b.ops["geglu_backward"](*for_both) for b in (CUDA, CPU)))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_any_alignment_gives_the_same_bits(dtype: torch.dtype) -> None:
    grad, x = drawn((5, 48), dtype)
    expected = CUDA.ops["geglu"](x), CUDA.ops["geglu_backward"](grad, x)
    for offset in (1, 8):
        moved = drawn((5, 48), dtype, offset)
        assert same_bits(CUDA.ops["geglu"](moved[1]), expected[0])
        for g, v in ((grad, moved[1]), (moved[0], x)):
            assert same_bits(CUDA.ops["geglu_backward"](g, v), expected[1])


def test_strided_operands_and_a_gradient_of_another_dtype() -> None:
    grad, x = drawn((6, 5, 32), BF16)
    expected = CUDA.ops["geglu_backward"](grad.float(), x.float())
    got = CUDA.ops["geglu_backward"](grad.float(), x)
    assert got.dtype == BF16
    assert same_bits(got, expected.to(BF16))
    turned = x.transpose(0, 1)
    assert same_bits(CUDA.ops["geglu"](turned), CUDA.ops["geglu"](turned.contiguous()))
    ones = torch.ones((), dtype=BF16).expand(grad.shape)
    got, expected = (CUDA.ops["geglu_backward"](g, x) for g in (ones, ones.contiguous()))
    assert same_bits(got, expected)


def test_what_is_not_finite_stays_where_it_is() -> None:
    grad, x = drawn((4, 48), F32)
    clean = CUDA.ops["geglu"](x)
    x[1, 3], x[2, 30], x[3, 40] = torch.nan, torch.nan, torch.inf
    x[3, 16] = 3.0
    y = CUDA.ops["geglu"](x)
    broken = torch.zeros(y.shape, dtype=torch.bool)
    broken[1, 3] = broken[2, 6] = broken[3, 16] = True
    assert torch.equal(y.isnan(), broken & ~y.isinf())
    assert y[3, 16] == torch.inf
    assert same_bits(y[~broken], clean[~broken])


@pytest.mark.parametrize("shape", [(0, 8), (3, 0)], ids=str)
def test_nothing(shape: tuple[int, ...]) -> None:
    grad, x = drawn(shape, BF16)
    assert CUDA.ops["geglu"](x).shape == grad.shape
    assert CUDA.ops["geglu_backward"](grad, x).shape == shape


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_each_byte_is_moved_once_and_sixteen_at_a_time(
    emulated: EmulatedModule, dtype: torch.dtype
) -> None:
    emulated.seeds = (0,)
    grad, x = drawn((64, 2560), dtype)
    CUDA.ops["geglu"](x)
    CUDA.ops["geglu_backward"](grad, x)
    forward, backward = emulated.launches
    size = grad.numel() * grad.element_size()
    for launch, reads, writes in ((forward, 2, 1), (backward, 3, 2)):
        assert launch.load_bytes == launch.unique_load_bytes == reads * size
        assert launch.store_bytes == launch.unique_store_bytes == writes * size
        assert launch.wide_load_bytes + launch.wide_store_bytes == (reads + writes) * size
