"""quantize in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .floats import fma, product, saturated_product, widen
from .launch import launch, number, tunable, width_of
from .noise import UNIFORM, draw_groups, draw_row, key_of, of_groups
from .rows import inside_of, lanes, per_image, program_place, turns
from .walk import draw_of, finish, operand, placed, walk_of


@triton.jit
def bounded_byte(original, change, levels):
    """As in csrc/math/quantize.h, 0 to 255.5: to be truncated. ``change`` is a whole number, or infinite:
    no NaN, so that a minimum is one instruction."""
    q = tl.maximum(tl.minimum(change, levels), 0.0 - levels)
    return fma(saturated_product(original + q, 1.0 / 255.0), 255.0, 0.5)


@triton.jit
def round_half_even(a):
    """For |a| < 2^22, by an addition that leaves no bits behind the point; else a itself."""
    magic = 12582912.0  # 1.5 * 2^23
    return tl.where(tl.abs(a) < 4194304.0, (a + magic) - magic, a)


@triton.jit
def _tile(value, original, out, inside, u, levels, lo, to_levels, IS_IMAGE: tl.constexpr):
    """Addresses of one tile; ``u`` its uniforms, or None to round to nearest."""
    byte = tl.load(original, mask=inside).to(tl.float32)
    change = widen(tl.load(value, mask=inside))
    if IS_IMAGE:
        change = product(change - lo, to_levels) - byte
    else:
        change = change * to_levels
    change = tl.where(change == change, change, 0.0)  # a NaN changes nothing
    if u is None:
        change = round_half_even(change)
    else:
        change = tl.floor(change + u)
    tl.store(out, bounded_byte(byte, change, levels).to(tl.int32).to(tl.uint8), mask=inside)


@tunable()
@triton.jit
def quantize_kernel(
    value,  # *float [B, C, P]
    value_image,
    value_channel,
    value_pixel,
    original,  # *uint8 [B, C, P]
    original_image,
    original_channel,
    original_pixel,
    out,  # *uint8 [B, C, P]
    out_image,
    out_channel,
    out_pixel,
    eps,  # float32, or *float32 with eps_stride, else None
    eps_stride,
    key,  # *int64 [B, 3] or None
    lo,
    to_levels,  # 255 / (hi - lo)
    channels,
    pixels,
    chunks,
    quads,
    IS_IMAGE: tl.constexpr,
    DRAW: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    image, channel, first, size = program_place(channels, pixels, chunks, quads, INTERLEAVED)
    # The 2^-10 makes 8/255, which float32 rounds down, eight levels.
    budget = per_image(eps, eps_stride, image).to(tl.float64)
    levels = tl.floor(budget * 255.0 + 0.0009765625).to(tl.float32)
    key0, key1, draw, step, stream = key_of(key, image, DRAW, INTERLEAVED)
    value += image * value_image
    original += image * original_image
    out += image * out_image
    if INTERLEAVED == 0:
        value += channel * value_channel + first * value_pixel
        original += channel * original_channel + first * original_pixel
        out += channel * out_channel + first * out_pixel
        index = channel * pixels + first
        for tail in tl.static_range(2):
            begin, end = turns(size, tail, GROUPS * WIDTH)
            for start in range(begin, end, GROUPS * WIDTH):
                i = start + lanes(GROUPS, WIDTH)
                u = draw_row(
                    index, start, key0, key1, draw, step, stream, UNIFORM, DRAW, GROUPS, WIDTH
                )
                _tile(
                    value + i * value_pixel,
                    original + i * original_pixel,
                    out + i * out_pixel,
                    inside_of(i, size, tail),
                    u,
                    levels,
                    lo,
                    to_levels,
                    IS_IMAGE,
                )
    else:
        for tail in tl.static_range(2):
            begin, end = turns(size, tail, GROUPS)
            for start in range(begin, end, GROUPS):
                offset, stride, u = draw_groups(
                    first, start, quads, pixels, key0, key1, draw, step, stream,
                    UNIFORM, INTERLEAVED, GROUPS,
                )  # fmt: skip
                inside = inside_of((start + tl.arange(0, GROUPS))[:, None], size, tail)
                for k in tl.static_range(INTERLEAVED):
                    i = of_groups(offset, stride, k)
                    _tile(
                        value + i,
                        original + i,
                        out + i,
                        inside,
                        u[k],
                        levels,
                        lo,
                        to_levels,
                        IS_IMAGE,
                    )


def quantize(
    value: Tensor,
    original: Tensor,
    eps: Tensor,
    key: Tensor | None,
    kind: str,
    lo: float,
    hi: float,
) -> Tensor:
    out = torch.empty_like(original)
    if value.numel() == 0:
        return out
    read = [operand(v) for v in (value, original, out)]
    way = walk_of(value.shape, read, key is not None)
    launch(
        quantize_kernel,
        way.programs,
        8 if way.interleaved else width_of(out),
        *(v for o in read for v in placed(way, o)),
        *number(eps, value.device),
        None if key is None else key.contiguous(),
        lo if kind == "image" else 0.0,
        255 / (hi - lo),
        way.channels,
        way.pixels,
        way.chunks,
        way.quads,
        IS_IMAGE=kind == "image",
        DRAW=draw_of(way, key is not None),
        INTERLEAVED=way.interleaved,
    )
    finish(out, read[2])
    return out
