"""The kernels, interpreted or on a GPU, against the CPU backend: bit for bit, but for sums.

On a GPU drawn normals may be 1e-6 off: its square root is not correctly rounded. Where the CPU
kernels are not built the reference is the twin, and bits become tolerances.
"""

from __future__ import annotations

import itertools
import math
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import BF16, F16, F32, F64, FLOATS, LAYOUTS, floats, images, same_bits
from group_norm_cases import (
    assert_close,
    call,
    exact_backward,
    exact_forward,
    slope_at_the_wrong_place,
)
from torch import Tensor
from triton.runtime.autotuner import Autotuner

from udp_fast import explain
from udp_fast.backends.registry import backend
from udp_fast.backends.triton import BACKEND, INTERPRETS, launch
from udp_fast.backends.triton.pgd_step import count_kernel
from udp_fast.ops import noise_key

TWIN = backend("reference" if backend("cpu").missing else "cpu")
DEVICE = "cpu" if INTERPRETS else "cuda"
NORMALS = 0.0 if INTERPRETS else 1e-6  # how far a drawn one may be off
TABLE = torch.linspace(0.999, 0.0, 50)
RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))

#: Ways through the kernels: rows and tails, three and four channels last, many channels, two
#: images of odd size, no channels, five dimensions.
SHAPES = [
    (2, 3, 4, 8),
    (2, 4, 6, 6),
    (1, 8, 2, 6),
    (2, 3, 5, 7),
    (2, 5, 4, 4),
    (2, 37),
    (1, 2, 3, 5, 4),
]


def rotate(*choices):
    """Endless combinations of the choices, each list at its own pace."""
    pools = [itertools.cycle(c) for c in choices]
    steps = [1, 2, 3, 5, 7, 11, 13]
    while True:
        yield tuple(
            next(itertools.islice(pool, step - 1, None))
            for pool, step in zip(pools, steps, strict=False)
        )


def on(device: str, value):
    """Tensors [B, ...] on a device; one number for all images stays where it is."""
    return value.to(device) if isinstance(value, Tensor) and value.dim() else value


def both(op: str, *args, copied: int | None = None):
    """(Triton's, twin's) results; argument ``copied`` is updated in place and comes first."""
    results = []
    for ops, device in ((BACKEND.ops, DEVICE), (TWIN.ops, "cpu")):
        mine = [on(device, a.clone() if i == copied else a) for i, a in enumerate(args)]
        out = ops[op](*mine)
        out = () if out is None else out if isinstance(out, tuple) else (out,)
        results.append([on("cpu", o) for o in (out if copied is None else (mine[copied], *out))])
    return results


def agree(got: Tensor, want: Tensor, tolerance: float = 0.0) -> None:
    """Equal bits; or within a tolerance, of which 16-bit dtypes get one rounding more."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    # A tensor that shares memory with itself does not do so on another device.
    assert got.stride() == want.stride() or not got.numel() or not INTERPRETS
    if TWIN.name == "reference" and tolerance == 0:
        tolerance = 1e-6
    if tolerance == 0:
        assert same_bits(got, want), (got.double() - want.double()).abs().max()
        return
    rounding = torch.finfo(want.dtype).eps if want.is_floating_point() else 0.0
    torch.testing.assert_close(
        got.double(), want.double(), rtol=rounding + tolerance, atol=tolerance, equal_nan=True
    )


def pgd_arguments(shape, seed, dtypes, layouts, step, norm, mask, range, out_range, per_image):
    lo, hi = range
    layout = "contiguous" if layouts[0] == "expanded" else layouts[0]
    delta = floats(shape, seed, dtypes[0], layout, scale=0.02 * (hi - lo))
    grad = floats(shape, seed + 1, dtypes[1], layouts[1], 1e-3, extremes=True)
    x = images(shape, seed + 2, dtypes[2], layouts[2], lo, hi)
    alpha, eps = torch.tensor(0.01 * (hi - lo)), torch.tensor(8 / 255 * (hi - lo))
    if per_image:
        alpha, eps = alpha * torch.linspace(1, 2, shape[0]), eps / torch.linspace(1, 2, shape[0])
    if mask is not None:
        plane = tuple(1 if i == 1 and len(shape) > 2 else n for i, n in enumerate(shape))
        mask = (floats(plane, seed + 3) > 0).to(mask)
        mask = mask * 0.5 if mask.dtype == F32 else mask
    bounds = (lo, hi, *out_range)
    return (delta, grad, x, alpha, eps, mask, step, norm, seed % 2 == 0, *bounds, dtypes[3])


def check_pgd(arguments):
    got, want = both("pgd_step_", *arguments, copied=0)
    for a, b in zip(got, want, strict=True):
        agree(a, b)


pgd_options = rotate(
    SHAPES,
    ["sign", "l2", "raw"],
    ["linf", "linf", "l2"],
    [None, torch.bool, torch.uint8, F32],
    RANGES,
    RANGES,
    [False, True],
)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("x_dtype", [*FLOATS, torch.uint8])
@pytest.mark.parametrize("delta_dtype", FLOATS)
def test_pgd_step(delta_dtype, x_dtype, layout):
    shape, step, norm, mask, lo_hi, out_range, per_image = next(pgd_options)
    seed = zlib.crc32(f"{delta_dtype} {x_dtype} {layout}".encode()) % 1000
    dtypes = (delta_dtype, FLOATS[seed % 3], x_dtype, FLOATS[seed % 7 % 3])
    layouts = (layout, LAYOUTS[seed % 5], layout)
    check_pgd(
        pgd_arguments(shape, seed, dtypes, layouts, step, norm, mask, lo_hi, out_range, per_image)
    )


@pytest.mark.parametrize("mask", [None, torch.bool, torch.uint8, F32], ids=str)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("step", ["sign", "l2", "raw"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_pgd_step_options(step, norm, mask, layout):
    dtypes, layouts = (F16, BF16, torch.uint8, BF16), (layout,) * 3
    options = (step, norm, mask, (0.0, 1.0), (-1.0, 1.0), False)
    check_pgd(pgd_arguments((2, 3, 4, 8), 5, dtypes, layouts, *options))


@pytest.mark.parametrize("x_dtype", [F32, torch.uint8], ids=str)
@pytest.mark.parametrize("out_range", [*RANGES, (-1.27, 1.14)], ids=str)
@pytest.mark.parametrize("lo_hi", RANGES, ids=str)
def test_pgd_step_ranges(lo_hi, out_range, x_dtype):
    options = ("sign", "linf", None, lo_hi, out_range, False)
    arguments = pgd_arguments((2, 350), 8, (F32, F32, x_dtype, F32), ("contiguous",) * 3, *options)
    check_pgd(arguments)
    if lo_hi == out_range:
        delta, grad, *rest = arguments
        zeros = torch.zeros_like(delta)
        check_pgd((zeros, -zeros, *rest))  # the signs of zeros
        check_pgd((-zeros, zeros, *rest))


def test_pgd_step_over_several_chunks():
    options = ("l2", "l2", torch.bool, (0.0, 1.0), (0.0, 1.0), True)
    layouts = ("contiguous", "channels_last", "contiguous")
    check_pgd(pgd_arguments((2, 3, 60, 70), 6, (F32,) * 4, layouts, *options))


MULTI = [(3, 5, 7), (3, 64, 65), (1, 1), (3, 0), (4, 8, 8), (2, 4099), (3, 40, 72), (8192,)]


def multi_arguments(dtypes, step, layouts=("contiguous",) * 3, shapes=MULTI, offset=0, **options):
    """As the op takes them: four lists and what is common."""
    rows = []
    for i, shape in enumerate(shapes):
        lo_hi = options.get("range", (0.0, 1.0))
        choices = (step, "linf", None, lo_hi, options.get("out_range", (0.0, 1.0)), False)
        rows.append(pgd_arguments((1, *shape), i, dtypes, layouts, *choices))
    columns = []
    for k in (0, None, 1, 2):
        dtype = dtypes[3] if k is None else dtypes[k]
        tensors = [torch.empty_like(r[0], dtype=dtype) if k is None else r[k] for r in rows]
        columns.append([shifted(t[0], offset) for t in tensors])
    alpha, eps = rows[0][3:5]
    if options.get("per_image"):
        alpha = alpha * torch.linspace(1, 2, len(shapes))
        eps = eps / torch.linspace(1, 2, len(shapes))
    return [*columns, alpha, eps, step, options.get("maximize", True), *rows[0][9:13]]


def shifted(values: Tensor, elements: int) -> Tensor:
    """The same values, so many elements further on than a fresh tensor begins."""
    if not elements:
        return values
    room = values.new_empty(values.numel() + elements)
    return room[elements:].view(values.shape).copy_(values)


def check_multi(arguments) -> None:
    results = []
    for ops, device in ((BACKEND.ops, DEVICE), (TWIN.ops, "cpu")):
        lists = [[moved(t, device) for t in column] for column in arguments[:4]]
        rest = [on(device, a) for a in arguments[4:]]
        skipped = ops["pgd_step_multi_"](*lists, *rest)
        results.append([t.cpu() for t in (*lists[0], *lists[1], skipped)])
    for got, want in zip(*results, strict=True):
        agree(got, want)


def moved(tensor: Tensor, device: str) -> Tensor:
    """A copy there, as far from alignment as the tensor is."""
    if tensor.is_contiguous():
        return shifted(tensor.to(device, copy=True), tensor.storage_offset())
    return tensor.clone().to(device)


@pytest.mark.parametrize("step", ["sign", "raw"])
@pytest.mark.parametrize(
    "dtypes",
    [(F32,) * 4, (F32, BF16, F32, BF16), (F32, F32, torch.uint8, F32), (F16, BF16, torch.uint8, BF16),
     (BF16, F16, F16, F32)],
    ids=str,
)  # fmt: skip
def test_pgd_step_multi(dtypes, step):
    check_multi(multi_arguments(dtypes, step))


@pytest.mark.parametrize("per_image", [False, True], ids=["one budget", "budgets"])
@pytest.mark.parametrize("lo_hi", RANGES, ids=str)
@pytest.mark.parametrize("maximize", [True, False], ids=["ascent", "descent"])
def test_pgd_step_multi_options(maximize, lo_hi, per_image):
    options = {"range": lo_hi, "out_range": (-1.0, 1.0), "maximize": maximize}
    dtypes = (F16, BF16, torch.uint8, BF16)
    check_multi(multi_arguments(dtypes, "sign", per_image=per_image, shapes=MULTI[:3], **options))


@pytest.mark.parametrize("offset", [1, 3, 16])
def test_pgd_step_multi_of_images_that_begin_anywhere(offset):
    check_multi(multi_arguments((F32, F32, torch.uint8, F32), "sign", offset=offset))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pgd_step_multi_layouts(layout):
    own = "contiguous" if layout == "expanded" else layout
    for layouts in ((own, layout, layout), ("contiguous", layout, layout)):
        dtypes, shapes = (F32, BF16, torch.uint8, BF16), [(3, 5, 7), (2, 6, 5), (1, 9)]
        check_multi(multi_arguments(dtypes, "sign", layouts, shapes))


def test_pgd_step_multi_is_one_launch():
    for shapes in (MULTI, MULTI * 20, [(3, 0)]):
        arguments = multi_arguments((F32,) * 4, "sign", shapes=shapes)
        with launch.recorded() as launches:
            BACKEND.ops["pgd_step_multi_"](*arguments)
        assert len(launches) == any(0 not in shape for shape in shapes)


quantize_options = rotate(SHAPES, RANGES, [False, True])


@pytest.mark.parametrize("drawn", [False, True], ids=["nearest", "random"])
@pytest.mark.parametrize("kind", ["delta", "image"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_quantize(dtype, layout, kind, drawn):
    shape, (lo, hi), per_image = next(quantize_options)
    original = images(shape, 1, torch.uint8, layout)
    value = floats(shape, 2, dtype, layout, 0.05 * (hi - lo), extremes=True)
    if kind == "image":
        value = (value.float() + original / 255 * (hi - lo) + lo).to(dtype)
    eps = torch.linspace(4 / 255, 9 / 255, shape[0]) if per_image else torch.tensor(8 / 255)
    key = noise_key(3, range(shape[0])) if drawn else None
    (got,), (want,) = both("quantize", value, original, eps, key, kind, lo, hi)
    if TWIN.name == "reference":
        assert ((got.int() - want.int()).abs() <= 1).all()
    else:
        agree(got, want)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_image_scale(dtype, layout):
    x = floats((2, 3, 5, 7), 1, dtype, layout, extremes=True)
    for scale in (torch.tensor([0.3, 2.0]), torch.tensor(0.7)):
        (got,), (want,) = both("image_scale", x.nan_to_num(), scale)
        agree(got, want)


sample_options = rotate(SHAPES, FLOATS, ["diffusion", "flow"], [True, False])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_image_scale_in_place(dtype, layout):
    layout = "contiguous" if layout == "expanded" else layout
    for shape in (*SHAPES, (3, 3, 60, 70)):
        x, scale = floats(shape, 3, dtype, layout), torch.linspace(1.0, 2.0, shape[0])
        got, want = both("image_scale_", x, scale, copied=0)
        agree(got[0], want[0])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "shape", [(6, 32), (3, 5, 48), (3, 2560), (5, 74), (7, 6), (1, 2), (2, 2 * 9000)]
)
def test_geglu(shape, dtype):
    """The exponential and the quotient are the GPU's own, so not bit for bit."""
    x = 2.0 * floats(shape, 21, F32)
    x, grad = x.to(dtype), floats((*shape[:-1], shape[-1] // 2), 22, dtype)
    definition = backend("reference").ops
    for op, args in (("geglu", (x,)), ("geglu_backward", (grad, x))):
        got = on("cpu", BACKEND.ops[op](*(on(DEVICE, a) for a in args)))
        exact = definition[op](*(a.double() for a in args))
        assert got.dtype == dtype
        rounding = 2e-6 if dtype == F32 else torch.finfo(dtype).eps
        torch.testing.assert_close(got.double(), exact, rtol=rounding, atol=2e-6)
        clear = exact.abs() > 1e-5
        assert torch.equal(got.sign()[clear].double(), exact.sign()[clear])


def test_geglu_takes_any_strides_and_a_gradient_of_another_dtype():
    x, grad = floats((6, 5, 32), 23, BF16), floats((6, 5, 16), 24, F32)
    turned = on(DEVICE, x.transpose(0, 1))
    assert same_bits(BACKEND.ops["geglu"](turned), BACKEND.ops["geglu"](turned.contiguous()))
    grad, x = on(DEVICE, grad), on(DEVICE, x)
    got = BACKEND.ops["geglu_backward"](grad, x)
    assert same_bits(got, BACKEND.ops["geglu_backward"](grad, x.float()).to(BF16))


def test_geglu_keeps_poison_where_it_is():
    x = floats((4, 48), 25, F32)
    clean = BACKEND.ops["geglu"](on(DEVICE, x))
    x[1, 3], x[2, 30], x[3, 40], x[3, 16] = math.nan, math.nan, math.inf, 3.0
    y = BACKEND.ops["geglu"](on(DEVICE, x))
    broken = torch.zeros(y.shape, dtype=torch.bool, device=DEVICE)
    broken[1, 3] = broken[2, 6] = broken[3, 16] = True
    assert y[1, 3].isnan()
    assert y[2, 6].isnan()
    assert y[3, 16] == math.inf
    assert same_bits(y[~broken], clean[~broken])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "given"])
def test_q_sample(drawn, dtype, layout):
    for _ in range(2):
        shape, out_dtype, path, copy = next(sample_options)
        x = floats(shape, 1, dtype, layout)
        t = torch.arange(shape[0]) * 17 + 3
        noise = None if drawn else floats(shape, 2, out_dtype, "contiguous")
        key = noise_key(1 << 70, range(shape[0]), draw=2, step=2**32 - 1) if drawn else None
        got, want = both("q_sample", x, t, TABLE, noise, key, path, copy, out_dtype)
        for a, b in zip(got, want, strict=True):
            agree(a, b, NORMALS if drawn else 0.0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(1, 3, 56, 64), (1, 4, 48, 56), (1, 3, 51, 61)], ids=str)
def test_normals_over_several_chunks(shape, layout):
    x, t = floats(shape, 1, F32, layout), torch.tensor([4])
    arguments = (x, t, TABLE, None, noise_key(9, [1]), "diffusion", True, F32)
    (_, got), (_, want) = both("q_sample", *arguments)
    exact = backend("reference").ops["q_sample"](x.double(), *arguments[1:-1], torch.float64)[1]
    assert (got.double() - exact).abs().max() <= 1e-6
    agree(got, want, NORMALS)


loss_options = rotate(SHAPES, FLOATS, [True, False], [True, False], [True, False])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("target", ["explicit", "epsilon", "v_prediction", "sample", "flow"])
def test_denoising_loss(target, dtype, layout):
    shape, other_dtype, drawn, weighted, with_grad = next(loss_options)
    other = floats(shape, 2, other_dtype, layout)
    noise = key = None
    if target not in ("explicit", "sample"):
        noise = None if drawn else floats(shape, 3, other_dtype, "contiguous")
        key = noise_key(7, range(shape[0]), step=3) if drawn else None
    t = torch.arange(shape[0]) * 17 + 3 if target == "v_prediction" else None
    (loss, grad), (expected, expected_grad) = both(
        "denoising_loss",
        floats(shape, 1, dtype, layout),
        other if target == "explicit" else None,
        other if target in ("v_prediction", "sample", "flow") else None,
        t,
        None if t is None else TABLE,
        noise,
        key,
        torch.linspace(0.5, 1.5, shape[0]) if weighted else None,
        "epsilon" if target == "explicit" else target,
        with_grad,
        0.3,
    )
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    agree(grad, expected_grad, 0.0 if key is None else NORMALS)


def normed(c, needs=(True, True, True)):
    """Triton's (y, mean, rstd, dx, dweight, dbias) of a call."""

    def there(values):
        return [v.to(DEVICE) if isinstance(v, Tensor) else v for v in values]

    y, mean, rstd = BACKEND.ops["group_norm_silu"](*there(c.forward))
    grads = BACKEND.ops["group_norm_silu_backward"](*there(c.backward(mean, rstd, needs)))
    return [v.cpu() for v in (y, mean, rstd, *grads)]


def check_normed(c):
    y, mean, rstd, dx, dweight, dbias = normed(c)
    if INTERPRETS:
        assert y.stride() == dx.stride() == torch.empty_like(c.x).stride()
    exact_y, exact_mean, exact_rstd = exact_forward(c)
    assert_close(y, exact_y)
    assert_close(mean, exact_mean, 3e-7)
    torch.testing.assert_close(rstd.to(F64), exact_rstd, rtol=3e-7, atol=0)
    exact_dx, exact_dweight, exact_dbias = exact_backward(c)
    assert_close(dx, exact_dx)
    if c.weight is not None:
        assert_close(dweight, exact_dweight)
    if c.bias is not None:
        assert_close(dbias, exact_dbias)


#: Several channels a tile, tails, channels that fill no tile or no vector, one channel, one pixel,
#: several pieces.
NORMED_SHAPES = (
    ((2, 32, 4, 8), 8),
    ((3, 12, 5, 7), 3),
    ((2, 24), 4),
    ((1, 1, 9, 9), 1),
    ((1, 6, 2, 3, 4), 2),
    ((1, 2, 1, 1), 2),
    ((1, 2, 50, 50), 2),
    ((1, 64, 6, 6), 32),
)


@pytest.mark.parametrize(("dtype", "act"), [*((d, "silu") for d in FLOATS), (F32, None)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_group_norm_silu(dtype, layout, act):
    for shape, groups in NORMED_SHAPES:
        check_normed(call(shape, groups, dtype, layout, act=act))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_group_norm_silu_takes_any_layout_and_weights(layout):
    for weights, other in ((None, "contiguous"), (BF16, "channels_last"), (F16, layout)):
        c = call((2, 8, 4, 6), 2, BF16, layout, weights)
        check_normed(c._replace(grad=call((2, 8, 4, 6), 2, BF16, other).grad))
    check_normed(call((2, 8, 4, 6), 2, F32, layout)._replace(weight=None))
    check_normed(call((2, 8, 4, 6), 2, F32, layout)._replace(bias=None, grad=c.grad))


def test_group_norm_silu_computes_what_is_needed():
    c = call((2, 16, 4, 8), 4)
    everything = normed(c)[3:]
    for needs in itertools.product((False, True), repeat=3):
        for needed, got, expected in zip(needs, normed(c, needs)[3:], everything, strict=True):
            assert same_bits(got, expected) if needed else got.numel() == 0


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_group_norm_silu_is_exact_far_from_zero(layout):
    """And whatever the first elements, about which sums are taken."""
    c = call((1, 4, 24, 24), 2, F32, layout, middle=1e4, spread=0.5)
    torch.testing.assert_close(normed(c)[2].to(F64), exact_forward(c)[2], rtol=1e-6, atol=0)
    c = call((1, 4, 40, 40), 2, F32, layout)
    c.x[:, :, 0, 0] = 1e4
    torch.testing.assert_close(normed(c)[2].to(F64), exact_forward(c)[2], rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_group_norm_silu_of_numbers_whose_squares_overflow(layout):
    for shape, dtype in itertools.product(((1, 2, 1, 1), (1, 4, 5, 5)), (F32, BF16)):
        c = call(shape, 2, dtype, layout)
        c.x.fill_(1e20)
        for a, b in zip(*both("group_norm_silu", *c.forward), strict=True):
            agree(a, b, 1e-6)


def test_group_norm_silu_beyond_every_float32():
    c = call((1, 4, 3, 3), 2)
    c.bias[:] = torch.tensor([math.inf, 1.0, 3e38, 0.0])
    forward = both("group_norm_silu", *c.forward)
    for got, want in zip(*forward, strict=True):
        agree(got, want, 2e-6)
    assert forward[0][0][0, 0].isposinf().all()
    mean, rstd = forward[1][1:]
    got, want = both("group_norm_silu_backward", *c.backward(mean, rstd))
    agree(got[0], want[0], 1e-5)
    assert got[0][0, 2:].isfinite().all()


@pytest.mark.parametrize("eps", [1e300, 1e39, 1e-5, 1e-70])
def test_group_norm_silu_of_any_eps(eps):
    c = call((1, 4, 3, 3), 2)._replace(eps=eps)
    c.x[:, 2:] = 1.0
    got, want = both("group_norm_silu", *c.forward)
    torch.testing.assert_close(got[2], want[2], rtol=1e-6, atol=0)
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_group_norm_silu_keeps_poison_in_its_group(layout):
    c = call((1, 16, 5, 5), 4, F32, layout)
    expected = normed(c)[0].reshape(4, -1)
    for value in (math.nan, math.inf, -math.inf):
        c.x[0, 6, 1, 2] = value
        y = normed(c)[0].reshape(4, -1)
        assert y[1].isnan().all()
        assert same_bits(y[[0, 2, 3]], expected[[0, 2, 3]])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_slope_at_the_wrong_place_is_rejected(layout):
    c = call((2, 16, 8, 8), 4, F32, layout)
    exact = exact_backward(c)[0]
    wrong = slope_at_the_wrong_place(c).to(F32)
    assert_close(normed(c)[3], exact)
    with pytest.raises(AssertionError):
        assert_close(wrong, exact)


def test_one_element_a_group_has_no_gradient():
    c = call((2, 6), 6)
    assert not normed(c)[3].any()


def test_one_image_has_work_for_a_gpu():
    from udp_fast.backends.triton.group_norm_silu import ENOUGH, cut

    for last, width, (channels, pixels) in itertools.product(
        (False, True), (4, 8), ((320, 64 * 64), (640, 32 * 32), (128, 512 * 512), (512, 64 * 64))
    ):
        assert cut(channels, pixels, last, width).units >= ENOUGH


def test_sums_of_extremes_and_poison():
    pred = torch.tensor([[1e-30, 0.0], [3e18, 1.0], [math.inf, 0.0], [math.nan, 1.0]])
    pred = torch.cat([pred, -pred[2:]])  # of a NaN, too, the sign may be set
    assert pred[5, 0].view(torch.int32) < 0
    pred = torch.cat([pred, pred.new_zeros(6, 20)], 1)
    arguments = (pred, torch.zeros_like(pred), *[None] * 6, "epsilon", False, 1.0)
    (loss, _), (expected, _) = both("denoising_loss", *arguments)
    torch.testing.assert_close(loss[1:], expected[1:], rtol=1e-6, atol=0, equal_nan=True)
    assert loss[0] == 0
    assert loss[[3, 5]].isnan().all()


def test_a_count_may_exceed_32_bits():
    counts, total = torch.full((3,), 2**30, dtype=torch.int32), torch.empty(1, dtype=torch.int64)
    counts, total = counts.to(DEVICE), total.to(DEVICE)
    launch.launch_sums(count_kernel, 1, counts, 3, total)
    assert total.item() == 3 * 2**30


def test_rows_do_not_depend_on_the_batch():
    pred, key = floats((3, 3, 5, 7), 1).to(DEVICE), noise_key(1, range(3)).to(DEVICE)

    def run(rows):
        return BACKEND.ops["denoising_loss"](
            pred[rows], *[None] * 5, key[rows], None, "epsilon", True, 1.0
        )

    loss, grad = run(slice(None))
    for b in range(3):
        alone, alone_grad = run(slice(b, b + 1))
        assert same_bits(alone, loss[b : b + 1])
        assert same_bits(alone_grad, grad[b : b + 1])


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (1, 1)], ids=str)
def test_empty_and_single(shape):
    x, t = floats(shape, 1), torch.zeros(shape[0], dtype=torch.int64)
    key = noise_key(0, range(shape[0]))
    got, want = both("q_sample", x, t, TABLE, None, key, "flow", True, F32)
    agree(got[0], want[0], NORMALS)
    check_pgd(
        pgd_arguments(
            shape, 2, (F32,) * 4, ("contiguous",) * 3, "sign", "l2", None, *RANGES[:2], False
        )
    )
    (loss, _), (expected, _) = both(
        "denoising_loss", x, None, *[None] * 4, key, None, "epsilon", True, 1.0
    )
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_numbers_an_image_may_lie_anywhere():
    """Views of longer tensors, and one number for all images."""
    shape = (3, 3, 4, 6)
    x, original = floats(shape, 1), images(shape, 2, torch.uint8)
    key = noise_key(5, range(6))[::2]
    every_other = torch.linspace(0.01, 0.06, 6)[::2]
    table = torch.linspace(0.9, 0.1, 100)[::2]
    for t in (torch.arange(0, 36, 6)[::2], torch.tensor([7]).expand(3)):
        for path in ("diffusion", "flow"):
            (got, _), (want, _) = both("q_sample", x, t, table, None, key, path, False, F32)
            agree(got, want, NORMALS)
        rest = (t, table, None, key, every_other, "v_prediction", True, 1.0)
        (loss, grad), (expected, expected_grad) = both("denoising_loss", x, None, x, *rest)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        agree(grad, expected_grad, NORMALS)
    bounds = (0.0, 1.0, -1.0, 1.0)
    for budget in (every_other, torch.tensor(0.05).expand(3)):
        rest = (budget, budget, None, "l2", "linf", True, *bounds, F32)
        check_pgd((x.clone(), floats(shape, 3), original, *rest))
        (written,), (wanted,) = both("quantize", x, original, budget, key, "delta", 0.0, 1.0)
        agree(written, wanted)
        (scaled,), (wanted,) = both("image_scale", x, budget)
        agree(scaled, wanted)


def test_what_autotuning_picks_makes_no_difference(monkeypatch):
    """To the tuned kernels; nor do the trial runs, which update delta again and again."""
    tried = []

    def bench(trial, quantiles):
        trial()
        tried.append(launch.CONFIGS[len(tried)])
        return [0.0 if tried[-1] == best else 1.0] * len(quantiles)

    x, original = floats((1, 3, 29, 31), 1), images((1, 3, 29, 31), 2, torch.uint8)
    step = (torch.tensor(0.01), torch.tensor(0.05), None, "sign", "linf", True, 0.0, 1.0, -1.0, 1.0)
    monkeypatch.setattr(launch, "_tuned", {})
    monkeypatch.setattr(Autotuner, "do_bench", property(lambda self: bench))
    key, t = noise_key(5, [1]), torch.tensor([3])
    tuned = set()
    for op, *args in (
        ("q_sample", x, t, TABLE, None, key, "diffusion", True, BF16),
        ("quantize", x, original, torch.tensor(0.05), key, "delta", 0.0, 1.0),
        ("image_scale", x, torch.tensor(0.7)),
        ("pgd_step_", x, -x, original, *step, F32),
        ("geglu", floats((3, 74), 3)),
        ("geglu_backward", floats((3, 37), 3), floats((3, 74), 4)),
    ):

        def run(op=op, args=args):
            mine = [on(DEVICE, a.clone() if isinstance(a, Tensor) else a) for a in args]
            out = BACKEND.ops[op](*mine)
            return [*(out if isinstance(out, tuple) else (out,)), mine[0]]

        monkeypatch.setattr(launch, "AUTOTUNE", False)
        expected = run()
        monkeypatch.setattr(launch, "AUTOTUNE", True)
        for best in launch.CONFIGS:
            tried.clear()
            assert all(map(same_bits, run(), expected))
            (tuner,) = launch._tuned.values()
            assert tuner.best_config.num_warps == best[1]
            tuned.add(tuner.fn)
            launch._tuned.clear()
    assert tuned == set(launch._tunable)


def test_a_thread_that_notes_its_launches_does_not_keep_others_from_running():
    arguments = (torch.ones(1, 8, device=DEVICE), torch.tensor(3.0))
    with launch.recorded() as launches, launch.traced(), ThreadPoolExecutor(1) as other:
        result = other.submit(BACKEND.ops["image_scale"], *arguments).result()
    assert launches == []
    assert (result == 3.0).all()


@pytest.mark.skipif(not INTERPRETS, reason="kernels are compiled, not interpreted")
def test_only_who_asks_gets_interpreted_kernels(monkeypatch):
    x = floats((1, 3, 4, 4), 1)
    monkeypatch.delenv("UDP_FAST_BACKEND", raising=False)
    said = explain("image_scale", x, torch.ones(1))
    assert said.chosen == TWIN.name
    assert "only UDP_FAST_BACKEND=triton asks for that" in str(said)
    monkeypatch.setenv("UDP_FAST_BACKEND", "triton")
    assert explain("image_scale", x, torch.ones(1)).chosen == "triton"
