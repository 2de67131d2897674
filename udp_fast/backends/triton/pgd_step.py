"""pgd_step_ in Triton: one pass over memory, three where norms are needed."""

# ruff: noqa: RET505 - Triton compiles what follows an early return of a constant branch
import torch
import triton
import triton.language as tl
from torch import Tensor

from . import sums
from .floats import at_most, narrow, product, widen
from .launch import float32, launch, launch_sums, number, tunable, width_of
from .pgd import (
    LARGEST,
    adversarial,
    bound_in,
    finite_or_zero,
    from_byte,
    from_float,
    is_finite,
    nothing_or_nan,
    project,
    stepped,
    within,
)
from .rows import at, inside_of, lanes, per_image, program_row, row_part, turns, zero_outside
from .walk import Operand, Walk, finish, image_shape, operand, placed, walk_of


@triton.jit
def gradient_square_kernel(
    grad,  # *float [B, C, P]
    grad_image,
    grad_channel,
    grad_pixel,
    partials,  # *float64 [programs]
    channels,
    pixels,
    chunks,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    image, channel, chunk = program_row(channels, chunks)
    first, size = row_part(chunk, pixels)
    grad += image * grad_image + channel * grad_channel + first * grad_pixel
    total = tl.zeros([GROUPS, WIDTH], tl.float64)
    for tail in tl.static_range(2):
        begin, end = turns(size, tail, GROUPS * WIDTH)
        for start in range(begin, end, GROUPS * WIDTH):
            i = start + lanes(GROUPS, WIDTH)
            inside = inside_of(i, size, tail)
            g = finite_or_zero(widen(tl.load(grad + i * grad_pixel, mask=inside)))
            g = zero_outside(g, inside)
            total += g.to(tl.float64) * g.to(tl.float64)
    tl.store(partials + tl.program_id(0), sums.of_block(sums.of_rows(total)))


@triton.jit
def size_of_step(alpha, alpha_stride, image, MAXIMIZE: tl.constexpr):
    size = per_image(alpha, alpha_stride, image)
    if MAXIMIZE:
        return size
    else:
        return size * -1.0


@triton.jit
def step_size_kernel(
    partials,  # *float64 [B, count], of the gradient's squares
    count,
    alpha,
    alpha_stride,
    sizes,  # *float32 [B] alpha over the gradient's norm
    MAXIMIZE: tl.constexpr,
):
    image = tl.program_id(0)
    length = tl.sqrt(sums.of_image(partials, image, count))
    size = size_of_step(alpha, alpha_stride, image, MAXIMIZE)
    # Below the smallest normal float32 there is no direction to speak of.
    moves = length >= 1.1754943508222875e-38
    size = (size.to(tl.float64) / tl.where(moves, length, 1.0)).to(tl.float32)
    tl.store(sizes + image, tl.where(moves, size, 0.0))


@triton.jit
def _stepped_tile(delta, g, mask, inside, size, SIGN: tl.constexpr):
    """delta after the step and before any projection."""
    if mask is not None:
        size = size * tl.load(mask, mask=inside).to(tl.float32)
    return stepped(widen(tl.load(delta, mask=inside)), g, size, SIGN)


@triton.jit
def stepped_square_kernel(
    delta,  # *float [B, C, P]
    delta_image,
    delta_channel,
    delta_pixel,
    grad,  # *float [B, C, P]
    grad_image,
    grad_channel,
    grad_pixel,
    mask,  # *uint8 or *float32 [B, C, P], or None
    mask_image,
    mask_channel,
    mask_pixel,
    alpha,
    alpha_stride,
    partials,  # *float64 [programs]
    channels,
    pixels,
    chunks,
    SIGN: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    MASK_EVERY: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    image, channel, chunk = program_row(channels, chunks)
    first, size = row_part(chunk, pixels)
    delta += image * delta_image + channel * delta_channel + first * delta_pixel
    grad += image * grad_image + channel * grad_channel + first * grad_pixel
    mask = at(mask, image * mask_image + channel * mask_channel)
    move = size_of_step(alpha, alpha_stride, image, MAXIMIZE)
    total = tl.zeros([GROUPS, WIDTH], tl.float64)
    for tail in tl.static_range(2):
        begin, end = turns(size, tail, GROUPS * WIDTH)
        for start in range(begin, end, GROUPS * WIDTH):
            i = start + lanes(GROUPS, WIDTH)
            inside = inside_of(i, size, tail)
            g = widen(tl.load(grad + i * grad_pixel, mask=inside))
            masks = at(mask, mask_offset(first, i, mask_pixel, MASK_EVERY))
            d = _stepped_tile(delta + i * delta_pixel, g, masks, inside, move, SIGN)
            d = zero_outside(at_most(tl.abs(d), LARGEST), inside).to(tl.float64)
            total += d * d
    tl.store(partials + tl.program_id(0), sums.of_block(sums.of_rows(total)))


@triton.jit
def ball_scale_kernel(
    partials,  # *float64 [B, count], of delta's squares
    count,
    eps,
    eps_stride,
    scales,  # *float32 [B] min(1, eps / norm)
):
    image = tl.program_id(0)
    length = tl.sqrt(sums.of_image(partials, image, count))
    limit = per_image(eps, eps_stride, image).to(tl.float64)
    outside = length > limit
    scale = (limit / tl.where(outside, length, 1.0)).to(tl.float32)
    tl.store(scales + image, tl.where(outside, scale, 1.0))


@triton.jit
def mask_offset(first, i, mask_pixel, MASK_EVERY: tl.constexpr):
    """Where the mask of elements first + i lies: one value for every MASK_EVERY of them."""
    if MASK_EVERY == 1:
        return first * mask_pixel + i * mask_pixel
    else:  # a division in 64 bits once, in 32 bits for each element
        rest = (first % MASK_EVERY).to(tl.int32)
        return (first // MASK_EVERY) * mask_pixel + (rest + i) // MASK_EVERY * mask_pixel


@triton.jit
def step_tile(
    delta,  # pointers [G, W], as all of these
    grad,
    x,
    mask,
    adv,
    inside,
    move,
    bound,  # of the linf ball; for the l2 ball the largest float
    shrink,  # into the l2 ball; for the linf ball 1
    lo,
    hi,
    width,
    out_lo,
    out_hi,
    out_scale,
    out_shift,
    SIGN: tl.constexpr,
    MAPS: tl.constexpr,
):
    """Steps a tile; returns its gradient elements that are not finite, int32 [G, W] of 0 and 1."""
    g = zero_outside(widen(tl.load(grad, mask=inside)), inside)
    d = product(within(_stepped_tile(delta, g, mask, inside, move, SIGN), bound), shrink)
    original = tl.load(x, mask=inside)
    if x.dtype.element_ty == tl.uint8:
        original = from_byte(original.to(tl.float32), lo, width)
        nothing = 0.0
    else:
        original = from_float(widen(original))
        nothing = nothing_or_nan(original)
    d = project(d, original, nothing, lo, hi)
    stored = narrow(d, delta.dtype.element_ty)
    tl.store(delta, stored, mask=inside)
    y = adversarial(original, widen(stored), out_scale, out_shift, out_lo, out_hi, MAPS)
    tl.store(adv, narrow(y, adv.dtype.element_ty), mask=inside)
    return tl.where(is_finite(g), 0, 1)


@tunable("delta")
@triton.jit
def pgd_step_kernel(
    delta,  # *float [B, C, P], updated
    delta_image,
    delta_channel,
    delta_pixel,
    grad,  # *float [B, C, P]
    grad_image,
    grad_channel,
    grad_pixel,
    x,  # *float or *uint8 [B, C, P]
    x_image,
    x_channel,
    x_pixel,
    mask,  # *uint8 or *float32 [B, C, P], or None
    mask_image,
    mask_channel,
    mask_pixel,
    adv,  # *float [B, C, P]
    adv_image,
    adv_channel,
    adv_pixel,
    alpha,  # float32, or *float32 with alpha_stride, else None
    alpha_stride,
    eps,  # the same; of the linf ball
    eps_stride,
    scale,  # *float32 [B] into the l2 ball, or None
    lo,
    hi,
    width,  # hi - lo
    out_lo,
    out_hi,
    out_scale,  # out = out_scale * value + out_shift
    out_shift,
    partials,  # *int32 [programs]: gradient elements that are not finite
    channels,
    pixels,
    chunks,
    SIGN: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    MAPS: tl.constexpr,  # adv's range differs from x's
    MASK_EVERY: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    image, channel, chunk = program_row(channels, chunks)
    first, size = row_part(chunk, pixels)
    delta += image * delta_image + channel * delta_channel + first * delta_pixel
    grad += image * grad_image + channel * grad_channel + first * grad_pixel
    x += image * x_image + channel * x_channel + first * x_pixel
    mask = at(mask, image * mask_image + channel * mask_channel)
    adv += image * adv_image + channel * adv_channel + first * adv_pixel
    move = size_of_step(alpha, alpha_stride, image, MAXIMIZE)
    if scale is None:
        bound, shrink = bound_in(per_image(eps, eps_stride, image), delta.dtype.element_ty), 1.0
    else:
        bound, shrink = LARGEST, tl.load(scale + image)
    skipped = tl.zeros([GROUPS, WIDTH], tl.int32)
    for tail in tl.static_range(2):
        begin, end = turns(size, tail, GROUPS * WIDTH)
        for start in range(begin, end, GROUPS * WIDTH):
            i = start + lanes(GROUPS, WIDTH)
            inside = inside_of(i, size, tail)
            skipped += step_tile(
                delta + i * delta_pixel,
                grad + i * grad_pixel,
                x + i * x_pixel,
                at(mask, mask_offset(first, i, mask_pixel, MASK_EVERY)),
                adv + i * adv_pixel,
                inside,
                move,
                bound,
                shrink,
                lo,
                hi,
                width,
                out_lo,
                out_hi,
                out_scale,
                out_shift,
                SIGN,
                MAPS,
            )
    tl.store(partials + tl.program_id(0), tl.sum(skipped))  # integers: in any order


@triton.jit
def count_kernel(
    partials,  # *int32 [B, count]
    count,
    skipped,  # *int64 [B]
):
    image = tl.program_id(0)
    tl.store(skipped + image, sums.of_image(partials, image, count))


def ranges(lo: float, hi: float, out_lo: float, out_hi: float) -> tuple[float, ...]:
    """What kernels take for them: lo, hi, width, out_lo, out_hi, out_scale, out_shift.

    The shift has csrc/math/pgd.h's roundings.
    """
    scale = (out_hi - out_lo) / (hi - lo)
    shift = float32(float32(out_lo) - float32(float32(lo) * float32(scale)))
    return lo, hi, hi - lo, out_lo, out_hi, scale, shift


def _masked(
    shape: torch.Size, operands: list[Operand], mask: Tensor | None
) -> tuple[Walk, Operand | None, int]:
    """(walk, mask's operand, how many elements in a row of memory share a mask value)."""
    way = walk_of(shape, operands, False)
    if mask is None:
        return way, None, 1
    if mask.dtype == torch.bool:
        mask = mask.view(torch.uint8)
    of_mask = operand(mask.expand(shape))
    sizes = image_shape(shape)
    interleaved = way.whole and operands[0].strides[2] == sizes.channels > 1
    if interleaved and of_mask.strides[1:] == (0, 1):
        return way, of_mask, sizes.channels
    return walk_of(shape, [*operands, of_mask], False), of_mask, 1


def pgd_step_(
    delta: Tensor,
    grad: Tensor,
    x: Tensor,
    alpha: Tensor,
    eps: Tensor,
    mask: Tensor | None,
    step: str,
    norm: str,
    maximize: bool,
    lo: float,
    hi: float,
    out_lo: float,
    out_hi: float,
    out_dtype: torch.dtype,
    adv: Tensor | None = None,  # where to put it
) -> tuple[Tensor, Tensor]:
    adv = torch.empty_like(delta, dtype=out_dtype) if adv is None else adv
    images = delta.shape[0]
    if delta.numel() == 0:
        return adv, delta.new_zeros((images,), dtype=torch.int64)
    updated, from_grad, from_x, to_adv = (operand(v) for v in (delta, grad, x, adv))
    way, from_mask, every = _masked(delta.shape, [updated, from_grad, from_x, to_adv], mask)
    size, size_stride = number(alpha, delta.device)
    limit, limit_stride = number(eps, delta.device)
    rows = (way.channels, way.pixels, way.chunks)
    scale = None

    if step == "l2":
        squares = delta.new_empty((way.programs,), dtype=torch.float64)
        of_grad = placed(way, from_grad)
        launch(gradient_square_kernel, way.programs, width_of(grad), *of_grad, squares, *rows)
        sizes = delta.new_empty((images,), dtype=torch.float32)
        launch_sums(
            step_size_kernel, images, squares, way.partials, size, size_stride, sizes, maximize
        )
        size, size_stride, maximize = sizes, 1, True
    if norm == "l2":
        squares = delta.new_empty((way.programs,), dtype=torch.float64)
        launch(
            stepped_square_kernel,
            way.programs,
            width_of(delta, grad),
            *placed(way, updated),
            *placed(way, from_grad),
            *placed(way, from_mask),
            size,
            size_stride,
            squares,
            *rows,
            SIGN=step == "sign",
            MAXIMIZE=maximize,
            MASK_EVERY=every,
        )
        scale = delta.new_empty((images,), dtype=torch.float32)
        launch_sums(ball_scale_kernel, images, squares, way.partials, limit, limit_stride, scale)

    counts = delta.new_empty((way.programs,), dtype=torch.int32)
    launch(
        pgd_step_kernel,
        way.programs,
        width_of(delta, adv),
        *placed(way, updated),
        *placed(way, from_grad),
        *placed(way, from_x),
        *placed(way, from_mask),
        *placed(way, to_adv),
        size,
        size_stride,
        limit,
        limit_stride,
        scale,
        *ranges(lo, hi, out_lo, out_hi),
        counts,
        *rows,
        SIGN=step == "sign",
        MAXIMIZE=maximize,
        MAPS=lo != out_lo or hi != out_hi,
        MASK_EVERY=every,
    )
    skipped = delta.new_empty((images,), dtype=torch.int64)
    launch_sums(count_kernel, images, counts, way.partials, skipped)
    finish(delta, updated)
    finish(adv, to_adv)
    return adv, skipped
