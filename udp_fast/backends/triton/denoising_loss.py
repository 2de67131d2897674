"""denoising_loss in Triton: loss and gradient in one pass, noise and target never in memory.

Squares are added in float32 by fours and eights, all of one sign and so to 3e-7 of their sum, and in
float64 from there on: consumer GPUs have one float64 unit for 64 float32 ones.
"""

# ruff: noqa: RET505 - Triton compiles what follows an early return of a constant branch
import torch
import triton
import triton.language as tl
from torch import Tensor

from . import sums
from .floats import fma, narrow, widen
from .launch import float32, launch, launch_sums, width_of
from .noise import NORMAL, draw_groups, draw_row, key_of, of_groups
from .q_sample import levels
from .rows import at, inside_of, lanes, program_place, turns, zero_outside
from .walk import draw_of, finish, operand, placed, walk_of

EXPLICIT = tl.constexpr(0)
EPSILON = tl.constexpr(1)
VELOCITY = tl.constexpr(2)
SAMPLE = tl.constexpr(3)
FLOW = tl.constexpr(4)
TARGETS = {"epsilon": 1, "v_prediction": 2, "sample": 3, "flow": 4}


@triton.jit
def _target(given, x, inside, n, signal, level, TARGET: tl.constexpr):
    """What the prediction is compared with; ``n`` the drawn noise, or None."""
    if TARGET == EXPLICIT or TARGET == EPSILON:
        if n is None:
            n = widen(tl.load(given, mask=inside))
        return n
    else:
        clean = widen(tl.load(x, mask=inside))
        if TARGET == SAMPLE:
            return clean
        else:
            if n is None:
                n = widen(tl.load(given, mask=inside))
            if TARGET == FLOW:
                return n - clean
            else:
                return fma(n, signal, 0.0 - level * clean)


@triton.jit
def _tile(pred, given, x, grad, inside, n, signal, level, factor, TARGET: tl.constexpr):
    """Writes the gradient of a tile [G, W]; returns its sums of squares, float64 [G]."""
    target = _target(given, x, inside, n, signal, level, TARGET)
    difference = widen(tl.load(pred, mask=inside)) - target
    if grad is not None:
        tl.store(grad, narrow(factor * difference, grad.dtype.element_ty), mask=inside)
    return sums.squares_of_rows(zero_outside(difference, inside)).to(tl.float64)


@triton.jit
def denoising_loss_kernel(
    pred,  # *float [B, C, P]
    pred_image,
    pred_channel,
    pred_pixel,
    given,  # *float [B, C, P], an explicit target or the noise, or None
    given_image,
    given_channel,
    given_pixel,
    x,  # *float [B, C, P] or None
    x_image,
    x_channel,
    x_pixel,
    grad,  # *float like pred, or None
    grad_image,
    grad_channel,
    grad_pixel,
    t,  # *int64 [B] or None
    table,  # *float32 [T] or None
    key,  # *int64 [B, 3] or None
    weight,  # *float32 [B] or None
    scale,  # float32: dloss/dpred = (scale + scale_rest) / elements * weight * (pred - target)
    scale_rest,
    elements,  # of an image; divided by here, since torch.compile does not see through float32(...)
    partials,  # *float64 [programs]
    channels,
    pixels,
    chunks,
    quads,
    TARGET: tl.constexpr,
    DRAW: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    image, channel, first, size = program_place(channels, pixels, chunks, quads, INTERLEAVED)
    if TARGET == VELOCITY:
        signal, level = levels(t, table, image, False)
    else:
        signal, level = 0.0, 0.0
    rest = tl.cast(scale_rest, tl.float32).to(tl.float64)
    factor = (tl.cast(scale, tl.float32).to(tl.float64) + rest) / tl.cast(elements, tl.float64)
    if weight is not None:
        factor *= tl.load(weight + image).to(tl.float64)
    factor = factor.to(tl.float32)
    key0, key1, draw, step, stream = key_of(key, image, DRAW, INTERLEAVED)
    pred += image * pred_image
    given = at(given, image * given_image)
    x = at(x, image * x_image)
    grad = at(grad, image * grad_image)
    total = tl.zeros([GROUPS], tl.float64)
    if INTERLEAVED == 0:
        pred += channel * pred_channel + first * pred_pixel
        given = at(given, channel * given_channel + first * given_pixel)
        x = at(x, channel * x_channel + first * x_pixel)
        grad = at(grad, channel * grad_channel + first * grad_pixel)
        index = channel * pixels + first
        for tail in tl.static_range(2):
            begin, end = turns(size, tail, GROUPS * WIDTH)
            for start in range(begin, end, GROUPS * WIDTH):
                i = start + lanes(GROUPS, WIDTH)
                n = draw_row(
                    index, start, key0, key1, draw, step, stream, NORMAL, DRAW, GROUPS, WIDTH
                )
                total += _tile(
                    pred + i * pred_pixel,
                    at(given, i * given_pixel),
                    at(x, i * x_pixel),
                    at(grad, i * grad_pixel),
                    inside_of(i, size, tail),
                    n,
                    signal,
                    level,
                    factor,
                    TARGET,
                )
    else:
        for tail in tl.static_range(2):
            begin, end = turns(size, tail, GROUPS)
            for start in range(begin, end, GROUPS):
                offset, stride, n = draw_groups(
                    first, start, quads, pixels, key0, key1, draw, step, stream,
                    NORMAL, INTERLEAVED, GROUPS,
                )  # fmt: skip
                inside = inside_of((start + tl.arange(0, GROUPS))[:, None], size, tail)
                for k in tl.static_range(INTERLEAVED):
                    i = of_groups(offset, stride, k)
                    total += _tile(
                        pred + i,
                        None,
                        at(x, i),
                        at(grad, i),
                        inside,
                        n[k],
                        signal,
                        level,
                        factor,
                        TARGET,
                    )
    tl.store(partials + tl.program_id(0), sums.of_block(total))


@triton.jit
def mean_kernel(
    partials,  # *float64 [B, count]
    count,
    weight,  # *float32 [B] or None
    loss,  # *float32 [B]
    elements,  # of an image
):
    image = tl.program_id(0)
    total = sums.of_image(partials, image, count)
    if weight is not None:
        total = tl.load(weight + image).to(tl.float64) * total
    tl.store(loss + image, (total / tl.cast(elements, tl.float64)).to(tl.float32))


def denoising_loss(
    pred: Tensor,
    target: Tensor | None,
    x: Tensor | None,
    t: Tensor | None,
    table: Tensor | None,
    noise: Tensor | None,
    key: Tensor | None,
    weight: Tensor | None,
    prediction_type: str,
    with_grad: bool,
    grad_scale: float,
) -> tuple[Tensor, Tensor]:
    images = pred.shape[0]
    grad = torch.empty_like(pred) if with_grad else pred.new_empty((0,))
    if pred.numel() == 0:
        return pred.new_zeros((images,), dtype=torch.float32), grad
    draws = key is not None
    given = noise if target is None else target
    read = [
        None if v is None else operand(v) for v in (pred, given, x, grad if with_grad else None)
    ]
    way = walk_of(pred.shape, read, draws)
    elements = pred.numel() // images
    scale = grad_scale * 2
    high = float32(scale)
    weight = None if weight is None else weight.contiguous()
    partials = pred.new_empty((way.programs,), dtype=torch.float64)
    loss = pred.new_empty((images,), dtype=torch.float32)
    launch(
        denoising_loss_kernel,
        way.programs,
        8 if way.interleaved else width_of(pred),
        *(v for o in read for v in placed(way, o)),
        None if t is None else t.contiguous(),
        None if table is None else table.contiguous(),
        None if key is None else key.contiguous(),
        weight,
        high,
        scale - high,
        elements,
        partials,
        way.channels,
        way.pixels,
        way.chunks,
        way.quads,
        TARGET=0 if target is not None else TARGETS[prediction_type],
        DRAW=draw_of(way, draws),
        INTERLEAVED=way.interleaved,
    )
    if with_grad:
        assert read[3] is not None
        finish(grad, read[3])
    launch_sums(mean_kernel, images, partials, way.partials, weight, loss, elements)
    return loss, grad
