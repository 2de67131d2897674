"""Every CUDA kernel, emulated, against the CPU backend: dtypes, layouts, options, odd sizes.

The emulator evaluates csrc/math as the CPU does, so updates, noise and bytes must agree bit for bit;
sums over an image are formed in another order. On a GPU the square root in the normals is off by at
most a unit in the last place: there the contract tests in tests/ops have the last word.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from cases import BF16, F16, F32, floats, images, in_layout, same_bits
from emulated_module import EmulatedModule, alphas_cumprod
from torch import Tensor

from udp_fast.backends.cpu import BACKEND as CPU
from udp_fast.backends.cuda import BACKEND as CUDA
from udp_fast.ops import noise_key

pytestmark = pytest.mark.usefixtures("emulated")

U8 = torch.uint8
FLOATS = (F32, F16, BF16)

#: Every way an operand can lie, as its layout and that of the others.
LAYOUTS = (
    ("contiguous", "contiguous"),
    ("channels_last", "channels_last"),
    ("contiguous", "channels_last"),
    ("channels_last", "contiguous"),
    ("strided", "strided"),
    ("reversed_dims", "contiguous"),
)
SHAPES = (
    (2, 3, 16, 20),
    (2, 4, 8, 8),
    (3, 3, 5, 7),  # images begin off every alignment
    (1, 5, 3, 3),
    (2, 1, 1, 1),
    (2, 2500),
    (1, 2, 3, 5, 4),
)


def keys(batch: int) -> Tensor:
    return noise_key(7, range(batch), draw=3, step=5, stream=2)


def off_by(elements: int, values: Tensor) -> Tensor:
    """The same values, `elements` later in memory than a fresh tensor begins."""
    room = values.new_empty(values.numel() + elements)
    shifted = room[elements:].view(values.shape)
    return shifted.copy_(values)


def both(op: str, *arguments: Any) -> tuple[Any, Any]:
    """(CUDA's results, CPU's), each on operands of its own; an in-place delta comes first."""
    results = []
    for backend in (CUDA, CPU):
        own = [a.clone() if isinstance(a, Tensor) and op == "pgd_step_" else a for a in arguments]
        if op == "pgd_step_":  # clone() keeps dense layouts, and the others it must not lose
            own[0] = arguments[0].clone(memory_format=torch.preserve_format)
            own[1:] = arguments[1:]
        out = backend.ops[op](*own)
        out = out if isinstance(out, tuple) else (out,)
        results.append((own[0], *out) if op == "pgd_step_" else out)
    return results[0], results[1]


def assert_same(got: Any, expected: Any) -> None:
    for g, e in zip(got, expected, strict=True):
        assert g.stride() == e.stride()
        assert same_bits(g, e)


# --- pgd_step_ -------------------------------------------------------------------------------------

# delta, grad, x, out: those with a kernel of their own, then two for the kernel of any types.
PGD_TYPES = (
    (F32, F32, F32, F32),
    (F32, BF16, F32, BF16),
    (F32, F16, F32, F16),
    (F32, F32, U8, F32),
    (F32, BF16, U8, BF16),
    (F32, F16, U8, F16),
    (F16, F32, U8, F32),
    (F16, BF16, U8, BF16),
    (F16, F16, U8, F16),
    (F16, F16, F16, F16),
    (BF16, BF16, BF16, BF16),
    (BF16, F32, U8, F16),
    (F32, F16, BF16, F32),
)


def pgd_arguments(
    shape: tuple[int, ...],
    types: tuple[torch.dtype, ...] = PGD_TYPES[7],
    layouts: tuple[str, str] = LAYOUTS[0],
    step: str = "sign",
    norm: str = "linf",
    mask: Tensor | None = None,
    maximize: bool = True,
    bounds: tuple[float, ...] = (0.0, 1.0, -1.0, 1.0),
    per_image: bool = True,
) -> list[Any]:
    delta_type, grad_type, x_type, out_type = types
    own, rest = layouts
    batch = shape[0]
    alpha = torch.linspace(0.01, 0.03, batch) if per_image else torch.tensor(2 / 255)
    eps = torch.linspace(0.02, 0.06, batch) if per_image else torch.tensor(8 / 255)
    return [
        floats(shape, 1, delta_type, own, scale=0.03),
        floats(shape, 2, grad_type, rest, extremes=step != "l2"),
        images(shape, 3, x_type, rest, *bounds[:2]),
        alpha,
        eps,
        mask,
        step,
        norm,
        maximize,
        *bounds,
        out_type,
    ]


@pytest.mark.every_schedule
@pytest.mark.parametrize("types", PGD_TYPES, ids=str)
def test_pgd_step_takes_every_combination_of_types(types: tuple[torch.dtype, ...]) -> None:
    for shape in ((2, 3, 16, 20), (3, 3, 5, 7)):
        assert_same(*both("pgd_step_", *pgd_arguments(shape, types)))


@pytest.mark.parametrize("x_type", FLOATS, ids=str)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_step_takes_originals_of_any_value(norm: str, x_type: torch.dtype) -> None:
    shape = (2, 3, 16, 20)
    arguments = pgd_arguments(shape, (F32, F16, x_type, F32), norm=norm)
    arguments[2] = floats(shape, 3, x_type, extremes=True)
    assert_same(*both("pgd_step_", *arguments))


@pytest.mark.parametrize("layouts", LAYOUTS, ids="-".join)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pgd_step_takes_every_layout(shape: tuple[int, ...], layouts: tuple[str, str]) -> None:
    assert_same(*both("pgd_step_", *pgd_arguments(shape, layouts=layouts)))


@pytest.mark.every_schedule
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("step", ["sign", "l2", "raw"])
@pytest.mark.parametrize("maximize", [True, False])
def test_pgd_step_takes_every_option(step: str, norm: str, maximize: bool) -> None:
    for shape, layouts in (
        ((2, 3, 16, 20), LAYOUTS[0]),
        ((3, 3, 5, 7), LAYOUTS[1]),
        ((2, 3, 6, 6), LAYOUTS[2]),
    ):
        for bounds in ((0.0, 1.0, 0.0, 1.0), (-1.0, 1.0, 0.0, 255.0)):
            arguments = pgd_arguments(
                shape,
                PGD_TYPES[0],
                layouts,
                step,
                norm,
                maximize=maximize,
                bounds=bounds,
                per_image=False,
            )
            assert_same(*both("pgd_step_", *arguments))


@pytest.mark.parametrize("layouts", LAYOUTS[:4], ids="-".join)
@pytest.mark.parametrize("dtype", [torch.bool, U8, F32], ids=str)
def test_pgd_step_takes_every_mask(dtype: torch.dtype, layouts: tuple[str, str]) -> None:
    g = torch.Generator().manual_seed(4)
    for b, c, h, w in (
        (1, 1, 10, 12),
        (2, 1, 10, 12),
        (1, 3, 10, 12),
        (2, 3, 10, 12),
        (2, 1, 1, 1),
    ):
        mask = (torch.rand((b, c, h, w), generator=g) * 1.5).to(dtype)
        for layout, step, norm in itertools.product(
            ("contiguous", "channels_last"), ("sign", "raw"), ("linf", "l2")
        ):
            laid = in_layout(mask, layout)
            arguments = pgd_arguments((2, 3, 10, 12), PGD_TYPES[4], layouts, step, norm, laid)
            assert_same(*both("pgd_step_", *arguments))


def test_pgd_step_takes_any_alignment() -> None:
    for offsets in ((0, 0, 0), (1, 1, 1), (3, 3, 3), (0, 1, 0), (4, 4, 4)):
        arguments = pgd_arguments((2, 3, 8, 9), PGD_TYPES[4])
        expected = both("pgd_step_", *arguments)[1]
        for i, offset in enumerate(offsets):
            arguments[i] = off_by(offset, arguments[i])
        out = CUDA.ops["pgd_step_"](*arguments)
        assert_same((arguments[0], *out), expected)


def test_pgd_step_counts_what_it_skips() -> None:
    arguments = pgd_arguments((3, 3, 64, 48), PGD_TYPES[0])
    arguments[1][1] = float("nan")
    arguments[1][2, 0, 0, :7] = float("inf")
    got, expected = both("pgd_step_", *arguments)
    assert got[2].tolist() == (~arguments[1].isfinite()).flatten(1).sum(1).tolist()
    assert_same(got, expected)


@pytest.mark.every_schedule
@pytest.mark.parametrize("types", [*PGD_TYPES[:2], PGD_TYPES[3], *PGD_TYPES[7:9]], ids=str)
@pytest.mark.parametrize("step", ["sign", "raw"])
def test_pgd_step_multi_does_each_image_as_pgd_step_does(
    emulated: EmulatedModule, types: tuple[torch.dtype, ...], step: str
) -> None:
    shapes = [(3, 5, 7), (3, 64, 65), (1, 1), (3, 0), (4, 8, 8), *[(2, i) for i in range(1, 70)]]
    columns = [pgd_arguments((1, *shape), types, step=step) for shape in shapes]
    alpha, eps = torch.linspace(0.01, 0.03, len(shapes)), torch.linspace(0.02, 0.06, len(shapes))
    deltas = [c[0].clone() for c in columns]
    advs = [torch.empty_like(d, dtype=types[3]) for d in deltas]
    skipped = CUDA.ops["pgd_step_multi_"](
        deltas,
        advs,
        [c[1] for c in columns],
        [c[2] for c in columns],
        alpha,
        eps,
        step,
        True,
        *columns[0][9:13],
    )
    assert len(emulated.launches) == 2  # of 64 images and of the rest
    for i, arguments in enumerate(columns):
        arguments[3:5] = alpha[i], eps[i]
        adv, count = CPU.ops["pgd_step_"](*arguments)
        assert same_bits(deltas[i], arguments[0])
        assert same_bits(advs[i], adv)
        assert skipped[i] == count[0]


@pytest.mark.parametrize("layouts", LAYOUTS, ids="-".join)
def test_pgd_step_multi_takes_every_layout(layouts: tuple[str, str]) -> None:
    shapes = ((2, 3, 16, 20), (1, 3, 5, 7), (2, 1, 1, 9))
    columns = [pgd_arguments(shape, layouts=layouts, per_image=False) for shape in shapes]
    operands = [[c[i] for c in columns] for i in range(3)]
    rest = (*columns[0][3:5], "sign", *columns[0][8:13])
    results = []
    for backend in (CUDA, CPU):
        deltas = [in_layout(d.clone(), layouts[0]) for d in operands[0]]
        advs = [torch.empty_like(x, dtype=BF16) for x in operands[2]]  # laid out like the others
        skipped = backend.ops["pgd_step_multi_"](deltas, advs, *operands[1:], *rest)
        results.append((*deltas, *advs, skipped))
    assert_same(*results)


# --- q_sample --------------------------------------------------------------------------------------


@pytest.mark.every_schedule
@pytest.mark.parametrize("return_noise", [False, True])
@pytest.mark.parametrize("drawn", [False, True], ids=["given", "drawn"])
@pytest.mark.parametrize(
    "types", [*zip(FLOATS, FLOATS, strict=True), (F32, BF16), (BF16, F32)], ids=str
)
def test_q_sample_takes_every_combination_of_types(
    types: tuple[torch.dtype, torch.dtype], drawn: bool, return_noise: bool
) -> None:
    for shape, layout in itertools.product(
        ((2, 3, 16, 20), (2, 4, 8, 9), (3, 3, 5, 7)), ("contiguous", "channels_last")
    ):
        x = floats(shape, 1, types[0], layout)
        noise = None if drawn else floats(shape, 2, types[0], layout)
        t = torch.arange(shape[0]) * 400 + 10
        key = keys(shape[0]) if drawn else None
        arguments = (x, t, alphas_cumprod(), noise, key, "diffusion", return_noise, types[1])
        assert_same(*both("q_sample", *arguments))


@pytest.mark.parametrize("layouts", LAYOUTS, ids="-".join)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("path", ["diffusion", "flow"])
def test_q_sample_takes_every_layout(
    shape: tuple[int, ...], layouts: tuple[str, str], path: str
) -> None:
    x, noise = floats(shape, 1, BF16, layouts[0]), floats(shape, 2, BF16, layouts[1])
    t = torch.arange(shape[0]) * 300
    for given, key in ((noise, None), (None, keys(shape[0]))):
        arguments = (x, t, alphas_cumprod(), given, key, path, True, BF16)
        assert_same(*both("q_sample", *arguments))


def test_q_sample_takes_any_alignment() -> None:
    x = floats((2, 3, 8, 9), 1, BF16)
    rest = (torch.tensor([1, 900]), alphas_cumprod(), None, keys(2), "diffusion", False, BF16)
    expected = CPU.ops["q_sample"](x, *rest)
    for offset in (0, 1, 4, 8):
        assert_same(CUDA.ops["q_sample"](off_by(offset, x), *rest), expected)


# --- denoising_loss --------------------------------------------------------------------------------

TARGETS = ("given", "epsilon", "v_prediction", "sample", "flow")


def loss_arguments(
    shape: tuple[int, ...],
    target: str,
    types: tuple[torch.dtype, torch.dtype],
    layouts: tuple[str, str],
    drawn: bool,
    weighted: bool,
    with_grad: bool,
) -> list[Any]:
    batch = shape[0]
    noisy = target in ("epsilon", "v_prediction", "flow")
    mixes = target in ("v_prediction", "flow")
    return [
        floats(shape, 1, types[0], layouts[0]),
        floats(shape, 2, types[1], layouts[1]) if target == "given" else None,
        floats(shape, 3, types[1], layouts[1]) if mixes or target == "sample" else None,
        torch.arange(batch) * 300 if target == "v_prediction" else None,
        alphas_cumprod() if target == "v_prediction" else None,
        floats(shape, 4, types[1], layouts[1]) if noisy and not drawn else None,
        keys(batch) if noisy and drawn else None,
        torch.linspace(0.5, 2, batch) if weighted else None,
        "epsilon" if target == "given" else target,
        with_grad,
        0.25,
    ]


def assert_same_loss(arguments: list[Any]) -> None:
    (loss, grad), (cpu_loss, cpu_grad) = both("denoising_loss", *arguments)
    torch.testing.assert_close(loss, cpu_loss, rtol=1e-6, atol=0)
    assert grad.stride() == cpu_grad.stride()
    if arguments[7] is None:
        assert same_bits(grad, cpu_grad)
    else:  # the weight enters in another order
        tolerance = {F32: 2e-7, F16: 2**-10, BF16: 2**-7}[grad.dtype]
        torch.testing.assert_close(grad, cpu_grad, rtol=tolerance, atol=0)


@pytest.mark.every_schedule
@pytest.mark.parametrize("drawn", [False, True], ids=["given", "drawn"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "types", [*zip(FLOATS, FLOATS, strict=True), (F32, BF16), (F16, F32)], ids=str
)
def test_denoising_loss_takes_every_target_and_type(
    types: tuple[torch.dtype, torch.dtype], target: str, drawn: bool
) -> None:
    for shape, layouts in itertools.product(
        ((2, 3, 16, 20), (2, 4, 8, 8), (3, 3, 5, 7)), LAYOUTS[:2]
    ):
        for weighted in (False, True):
            arguments = loss_arguments(shape, target, types, layouts, drawn, weighted, True)
            assert_same_loss(arguments)


@pytest.mark.parametrize("layouts", LAYOUTS, ids="-".join)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_denoising_loss_takes_every_layout(
    shape: tuple[int, ...], layouts: tuple[str, str]
) -> None:
    for target, drawn in itertools.product(TARGETS, (False, True)):
        assert_same_loss(loss_arguments(shape, target, (BF16, BF16), layouts, drawn, False, True))


@pytest.mark.parametrize("drawn", [False, True], ids=["given", "drawn"])
def test_denoising_loss_is_the_same_without_its_gradient(drawn: bool) -> None:
    for target, layouts in itertools.product(TARGETS, LAYOUTS[:3]):
        losses = []
        for with_grad in (True, False):
            operands = ((2, 3, 16, 20), target, (BF16, BF16), layouts, drawn, True, with_grad)
            loss, grad = CUDA.ops["denoising_loss"](*loss_arguments(*operands))
            assert grad.numel() == (2 * 3 * 16 * 20 if with_grad else 0)
            losses.append(loss)
        assert same_bits(*losses)


def test_denoising_loss_does_not_depend_on_the_batch() -> None:
    whole = loss_arguments((3, 3, 96, 96), "epsilon", (BF16, BF16), LAYOUTS[0], True, True, True)
    loss, grad = CUDA.ops["denoising_loss"](*whole)
    for b in range(3):
        one = [a[b : b + 1] if isinstance(a, Tensor) else a for a in whole]
        assert_same(CUDA.ops["denoising_loss"](*one), (loss[b : b + 1], grad[b : b + 1]))


def test_denoising_loss_of_values_that_are_not_finite() -> None:
    arguments = loss_arguments((3, 500), "given", (F32, F32), LAYOUTS[0], False, False, True)
    arguments[0][0, 3] = float("nan")
    arguments[0][1, 4] = float("inf")
    loss, _ = CUDA.ops["denoising_loss"](*arguments)
    assert loss[0].isnan()
    assert loss[1] == float("inf")
    assert loss[2].isfinite()


# --- quantize, image_scale -------------------------------------------------------------------------


@pytest.mark.every_schedule
@pytest.mark.parametrize("layouts", LAYOUTS, ids="-".join)
@pytest.mark.parametrize("stochastic", [False, True], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("kind", ["delta", "image"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_quantize_takes_every_option(
    dtype: torch.dtype, kind: str, stochastic: bool, layouts: tuple[str, str]
) -> None:
    for shape in SHAPES:
        original = images(shape, 1, U8, layouts[0])
        value = floats(shape, 2, dtype, layouts[1], scale=0.05, extremes=True)
        if kind == "image":
            value = value + original * (2 / 255) - 1
        eps = torch.linspace(4, 16, shape[0]) / 255
        key = keys(shape[0]) if stochastic else None
        value = value.to(dtype)
        assert_same(*both("quantize", value, original, eps, key, kind, -1.0, 1.0))


def test_quantize_rounds_halves_to_even() -> None:
    halves = torch.arange(-7.5, 8).reshape(1, 1, 4, 4)
    original, eps = torch.full(halves.shape, 128, dtype=U8), torch.tensor(8 / 255)
    assert_same(*both("quantize", halves, original, eps, None, "delta", 0.0, 255.0))


@pytest.mark.every_schedule
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "reversed_dims"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_image_scale(dtype: torch.dtype, layout: str) -> None:
    for shape in SHAPES:
        x = floats(shape, 1, dtype, layout, extremes=True)
        for scale in (torch.linspace(0.3, 3, shape[0]), torch.tensor(0.7)):
            assert_same(*both("image_scale", x, scale))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_image_scale_in_place_is_image_scale(dtype: torch.dtype, layout: str) -> None:
    for shape in SHAPES:
        x, scale = floats(shape, 1, dtype, layout), torch.linspace(1.0, 2.0, shape[0])
        expected = CUDA.ops["image_scale"](x, scale)
        CUDA.ops["image_scale_"](x, scale)
        assert same_bits(x, expected)


def test_an_image_whose_factor_is_one_is_left_alone(emulated: EmulatedModule) -> None:
    emulated.seeds = (0,)
    x = floats((2, 3, 64, 64), 1, BF16)
    image = x[0].numel() * 2
    for scale, moved in (([1.0, 1.0], 0), ([1.0, 3.0], 1), ([0.5, 3.0], 2)):
        emulated.launches.clear()
        CUDA.ops["image_scale_"](x, torch.tensor(scale))
        (launch,) = emulated.launches
        assert launch.unique_store_bytes == moved * image
        assert launch.unique_load_bytes == moved * image + 2 * 4


# --- images that take many chunks -----------------------------------------------------------------

#: The first: just short of longer chunks for groups of four pixels of three channels, and beyond it
#: for others, so that the orders differ most in how many partial sums they write.
LARGE = ((1, 3, 180, 180), (1, 3, 256, 260))


@pytest.mark.parametrize("layouts", LAYOUTS[:3], ids="-".join)
@pytest.mark.parametrize(
    "shape", [pytest.param(LARGE[0], marks=pytest.mark.every_schedule), *LARGE[1:]], ids=str
)
def test_large_images(shape: tuple[int, ...], layouts: tuple[str, str]) -> None:
    assert_same(*both("pgd_step_", *pgd_arguments(shape, PGD_TYPES[0], layouts, "l2", "l2")))
    x, t = floats(shape, 1, BF16, layouts[0]), torch.arange(shape[0]) * 300
    rest = (alphas_cumprod(), None, keys(shape[0]), "diffusion", False, BF16)
    assert_same(*both("q_sample", x, t, *rest))
    for target in ("epsilon", "v_prediction"):
        assert_same_loss(loss_arguments(shape, target, (BF16, BF16), layouts, True, False, True))


# --- what is moved ---------------------------------------------------------------------------------


def bytes_per_element(emulated: EmulatedModule, elements: int) -> float:
    """Of global memory that is touched, all launches of an op together; each byte counts once a
    launch, since what the threads of a launch share (keys, tables) comes from a cache."""
    moved = sum(x.unique_load_bytes + x.unique_store_bytes for x in emulated.launches)
    return moved / elements


def test_pgd_step_moves_nine_bytes_an_element(emulated: EmulatedModule) -> None:
    for layout in LAYOUTS[:2]:
        emulated.launches.clear()
        CUDA.ops["pgd_step_"](*pgd_arguments((2, 3, 64, 64), (F16, BF16, U8, BF16), layout))
        assert len(emulated.launches) == 1
        assert bytes_per_element(emulated, 2 * 3 * 64 * 64) <= 9.1
        assert all_wide(emulated, 9 * 2 * 3 * 64 * 64, narrow=1)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_q_sample_moves_four_bytes_an_element(emulated: EmulatedModule, layout: str) -> None:
    x = floats((2, 4, 64, 64), 1, BF16, layout)
    t = torch.tensor([3, 900])
    CUDA.ops["q_sample"](x, t, alphas_cumprod(), None, keys(2), "diffusion", False, BF16)
    assert len(emulated.launches) == 1
    assert bytes_per_element(emulated, x.numel()) <= 4.1
    assert all_wide(emulated, 4 * x.numel())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_denoising_loss_moves_four_bytes_an_element(emulated: EmulatedModule, layout: str) -> None:
    shape, layouts = (2, 4, 64, 64), (layout, layout)
    arguments = loss_arguments(shape, "epsilon", (BF16, BF16), layouts, True, False, True)
    CUDA.ops["denoising_loss"](*arguments)
    elements = arguments[0].numel()
    assert len(emulated.launches) == 2
    assert bytes_per_element(emulated, elements) <= 4.1
    assert all_wide(emulated, 4 * elements)


def test_quantize_moves_each_byte_once(emulated: EmulatedModule) -> None:
    value, original = floats((2, 3, 64, 64), 1, BF16), images((2, 3, 64, 64), 2, U8)
    CUDA.ops["quantize"](value, original, torch.tensor(8 / 255), None, "delta", 0.0, 1.0)
    assert bytes_per_element(emulated, value.numel()) <= 4.1
    assert all_wide(emulated, 4 * value.numel())


def all_wide(emulated: EmulatedModule, expected: int, narrow: int = 0) -> bool:
    """Whether 16-byte accesses moved all that the op must move, but ``narrow`` of nine parts."""
    launch = emulated.launches[0]
    return launch.wide_load_bytes + launch.wide_store_bytes >= expected * (9 - narrow) // 9
