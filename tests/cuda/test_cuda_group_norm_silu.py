"""group_norm_silu in CUDA, emulated, against the definition in float64: schedules of equal bits."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import BF16, F16, F32, F64, same_bits
from emulated_module import EmulatedModule
from group_norm_cases import (
    Call,
    assert_close,
    call,
    exact_backward,
    exact_forward,
    slope_at_the_wrong_place,
)
from torch import Tensor

from udp_fast.backends.cpu import BACKEND as CPU
from udp_fast.backends.cuda import BACKEND as CUDA

pytestmark = pytest.mark.usefixtures("emulated")

LAYOUTS = ("contiguous", "channels_last")

#: Ways through the kernels: several channels a warp, tails, channels of no whole vectors, one
#: channel, one pixel, groups within and across a thread's channels, several pieces.
SHAPES = (
    ((2, 32, 4, 8), 8),
    ((1, 64, 6, 6), 32),
    ((3, 12, 5, 7), 3),
    ((2, 40, 3, 3), 4),
    ((1, 1, 9, 9), 1),
    ((2, 24), 4),
    ((1, 6, 2, 3, 4), 2),
    ((1, 2, 1, 1), 2),
    ((1, 16, 40, 40), 2),
)


def run(c: Call, needs: tuple[bool, ...] = (True, True, True)) -> tuple[Tensor, ...]:
    """(y, mean, rstd, dx, dweight, dbias)"""
    y, mean, rstd = CUDA.ops["group_norm_silu"](*c.forward)
    return y, mean, rstd, *CUDA.ops["group_norm_silu_backward"](*c.backward(mean, rstd, needs))


def check(c: Call) -> None:
    y, mean, rstd, dx, dweight, dbias = run(c)
    assert y.stride() == torch.empty_like(c.x).stride()
    assert dx.stride() == torch.empty_like(c.x).stride()
    exact_y, exact_mean, exact_rstd = exact_forward(c)
    assert_close(y, exact_y)
    assert_close(mean, exact_mean, 3e-7)
    torch.testing.assert_close(rstd.to(F64), exact_rstd, rtol=3e-7, atol=0)
    exact_dx, exact_dweight, exact_dbias = exact_backward(c)
    assert_close(dx, exact_dx)
    if c.weight is not None:
        assert_close(dweight, exact_dweight)
        assert_close(dbias, exact_dbias)


@pytest.mark.parametrize("act", ["silu", None])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
def test_every_dtype_and_layout(dtype: torch.dtype, layout: str, act: str | None) -> None:
    for shape, groups in SHAPES:
        check(call(shape, groups, dtype, layout, act=act))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weights", [None, F16, BF16, F32], ids=str)
def test_weights_of_any_dtype(weights: torch.dtype | None, layout: str) -> None:
    for x in (F32, BF16):
        c = call((2, 16, 4, 5), 4, x, layout, weights)
        check(c)
        check(c._replace(weight=None))
        check(c._replace(bias=None))


@pytest.mark.parametrize("strange", ["strided", "reversed_dims"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_are_copied(layout: str, strange: str) -> None:
    c = call((2, 8, 4, 6), 2, BF16, layout)
    other = call((2, 8, 4, 6), 2, BF16, strange)
    check(c._replace(grad=other.grad))
    check(other._replace(grad=c.grad))
    expanded = torch.ones((), dtype=BF16).expand(c.x.shape)
    check(c._replace(grad=expanded))


def test_a_gradient_of_another_dtype_loses_nothing() -> None:
    for grad, x in ((F32, BF16), (BF16, F32), (F16, BF16)):
        c = call((2, 8, 4, 6), 2, x)
        check(c._replace(grad=c.grad.to(grad)))


@pytest.mark.every_schedule
@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_what_is_needed_is_computed(emulated: EmulatedModule, layout: str) -> None:
    c = call((2, 16, 4, 8), 4, layout=layout)
    everything = run(c)[3:]
    _, mean, rstd = run(c)[:3]
    for needs in itertools.product((False, True), repeat=3):
        emulated.launches.clear()
        found = CUDA.ops["group_norm_silu_backward"](*c.backward(mean, rstd, needs))
        assert len(emulated.launches) == 2 * any(needs) + needs[0]
        for needed, got, expected in zip(needs, found, everything, strict=True):
            assert same_bits(got, expected) if needed else got.numel() == 0


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_alignment_gives_the_same_bits(layout: str, dtype: torch.dtype) -> None:
    for shape in ((2, 16, 8, 8), (1, 8, 5, 5)):
        c = call(shape, 4, dtype, layout)
        expected = run(c)
        for offsets in ((1, 1), (0, 3), (8, 0)):
            moved = []
            for offset, values in zip(offsets, (c.x, c.grad), strict=True):
                room = values.new_empty(values.numel() + offset)
                moved.append(room[offset:].as_strided(values.shape, values.stride(), offset))
                moved[-1].copy_(values)
            got = run(c._replace(x=moved[0], grad=moved[1]))
            assert all(same_bits(g, e) for g, e in zip(got, expected, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_do_not_depend_on_the_batch(layout: str) -> None:
    whole = call((3, 12, 7, 7), 3, BF16, layout)
    expected = run(whole, (True, False, False))
    for b in range(3):
        one = whole._replace(x=whole.x[b : b + 1], grad=whole.grad[b : b + 1])
        got = run(one, (True, False, False))
        assert all(same_bits(g, e[b : b + 1]) for g, e in zip(got[:4], expected[:4], strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_precision_is_lost_far_from_zero(layout: str) -> None:
    """Where E[x²] - E[x]² would be of nothing but rounding errors."""
    for shape in ((1, 8, 24, 24), (1, 8, 3, 3)):
        c = call(shape, 2, F32, layout, middle=1e4, spread=0.5)
        _, mean, rstd = CUDA.ops["group_norm_silu"](*c.forward)
        _, exact_mean, exact_rstd = exact_forward(c)
        torch.testing.assert_close(mean.to(F64), exact_mean, rtol=6e-8, atol=0)
        torch.testing.assert_close(rstd.to(F64), exact_rstd, rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_first_elements_far_from_the_others_cost_little(layout: str) -> None:
    """The sums are taken about them."""
    c = call((1, 8, 40, 40), 2, F32, layout)
    c.x[:, :, 0, 0] = 1e4
    c.x[:, ::3, :2] = -300.0
    _, _, rstd = CUDA.ops["group_norm_silu"](*c.forward)
    torch.testing.assert_close(rstd.to(F64), exact_forward(c)[2], rtol=1e-6, atol=0)


def test_a_constant_group() -> None:
    for layout in LAYOUTS:
        c = call((1, 8, 4, 4), 2, F32, layout)
        c.x.fill_(0.1)
        y, _, rstd = CUDA.ops["group_norm_silu"](*c.forward)
        assert torch.allclose(rstd, torch.full_like(rstd, 1e-5**-0.5), rtol=1e-6, atol=0)
        assert_close(y, exact_forward(c)[0], 1e-5)  # float32's 0.1 and its mean may differ


def test_one_element_a_group_has_no_gradient() -> None:
    for layout in LAYOUTS:
        assert not run(call((2, 6, 1, 1), 6, F32, layout))[3].any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_group(value: float, layout: str) -> None:
    for place in (0, 17):
        c = call((2, 16, 5, 5), 4, F32, layout)
        expected = run(c)[0].reshape(2, 4, -1)
        c.x[1, 6, place // 5, place % 5] = value  # of the second group
        y = run(c)[0].reshape(2, 4, -1)
        assert y[1, 1].isnan().all()
        rest = torch.ones(2, 4, dtype=torch.bool)
        rest[1, 1] = False
        assert same_bits(y[rest], expected[rest])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_activation_of_the_largest_numbers(layout: str) -> None:
    """Of infinity it is that, and of what is near it the number itself."""
    c = call((1, 4, 3, 3), 2, F32, layout)
    c.bias[:] = torch.tensor([float("inf"), 1.0, 3e38, 0.0])
    y, _, _, dx, *_ = run(c)
    assert y[0, 0].isposinf().all()
    assert torch.equal(y[0, 2], torch.full((3, 3), 3e38))
    assert dx[0, 2:].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)], ids=str)
def test_nothing(shape: tuple[int, ...]) -> None:
    c = call(shape, 2)
    y, mean, rstd, dx, dweight, dbias = run(c)
    assert y.shape == dx.shape == shape
    assert mean.shape == rstd.shape == (shape[0], 2)
    assert torch.equal(mean, torch.zeros_like(mean))
    torch.testing.assert_close(rstd.to(F64), exact_forward(c)[2], rtol=1e-6, atol=0)
    assert not dweight.any()
    assert not dbias.any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_activation_is_good_to_a_few_units_in_the_last_place(layout: str) -> None:
    """Of its own argument, which a norm without it leaves: far below zero, too, where an error of
    the power counts for more."""
    c = call((1, 4, 24, 24), 1, F32, layout, spread=1.0)
    c = c._replace(weight=torch.full((4,), 9.0), bias=torch.tensor([0.0, -15.0, -40.0, 15.0]))
    y = run(c)[0]
    u = run(c._replace(act=None))[0].to(F64)
    assert u.min() < -60
    torch.testing.assert_close(y.to(F64), u * torch.sigmoid(u), rtol=5e-7, atol=0)


@pytest.mark.every_schedule
@pytest.mark.parametrize("layout", LAYOUTS)
def test_agrees_with_the_cpu_kernels(layout: str) -> None:
    c = call((2, 32, 9, 8), 8, F32, layout)
    expected = CPU.ops["group_norm_silu"](*c.forward)
    _, mean, rstd = expected
    expected += CPU.ops["group_norm_silu_backward"](*c.backward(mean, rstd))
    for got, want in zip(run(c), expected, strict=True):
        assert_close(got, want.to(F64), 1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_slope_at_the_wrong_place_is_rejected(layout: str) -> None:
    c = call((2, 16, 8, 8), 4, F32, layout)
    dx, exact = run(c)[3], exact_backward(c)[0]
    wrong = slope_at_the_wrong_place(c)
    assert (wrong - exact).norm() > 0.1 * exact.norm()
    assert (wrong.sign() != exact.sign()).double().mean() > 0.02
    assert_close(dx, exact)
    with pytest.raises(AssertionError):
        assert_close(wrong.to(F32), exact)


# --- what is moved --------------------------------------------------------------------------------


@pytest.fixture
def features(emulated: EmulatedModule) -> EmulatedModule:
    """For tensors as they are between layers: one schedule, whose counters are those of all."""
    emulated.seeds = (0,)
    return emulated


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_x_is_read_twice_and_written_once_and_for_dx_all_twice(
    features: EmulatedModule, dtype: torch.dtype, layout: str
) -> None:
    c = call((1, 320, 64, 64), 32, dtype, layout)
    _, mean, rstd = CUDA.ops["group_norm_silu"](*c.forward)
    check_moved(features, c, reads=2)
    features.launches.clear()
    CUDA.ops["group_norm_silu_backward"](*c.backward(mean, rstd, (True, False, False)))
    check_moved(features, c, reads=4)


def check_moved(emulated: EmulatedModule, c: Call, reads: int) -> None:
    """Global memory touched, in sizes of x: a byte counts once a launch, since where sums begin and
    the numbers of channels come from a cache. The pieces' sums are what there is beside x."""
    launches, size = emulated.launches, c.x.numel() * c.x.element_size()
    assert len(launches) == 3
    loads = sum(x.unique_load_bytes for x in launches) / size
    stores = sum(x.unique_store_bytes for x in launches) / size
    wide = sum(x.wide_load_bytes + x.wide_store_bytes for x in launches) / size
    assert reads <= loads <= reads + 0.1
    assert 1 <= stores <= 1.1
    assert wide >= reads + 1
