"""q_sample in Triton: the noise is drawn in registers, two normals for each logarithm."""

# ruff: noqa: RET505 - Triton compiles what follows an early return of a constant branch
import torch
import triton
import triton.language as tl
from torch import Tensor

from .floats import fma, narrow, widen
from .launch import launch, tunable, width_of
from .noise import NORMAL, draw_groups, draw_row, key_of, of_groups
from .rows import at, inside_of, lanes, program_place, turns
from .walk import draw_of, finish, operand, placed, walk_of


@triton.jit
def levels(t, table, image, FLOW: tl.constexpr):
    """What multiplies the image and what multiplies the noise, correctly rounded."""
    entry = tl.load(table + tl.load(t + image))
    if FLOW:
        return 1.0 - entry, entry
    else:
        return tl.sqrt_rn(entry), tl.sqrt_rn(1.0 - entry)


@triton.jit
def _tile(x, noise, out, noise_out, inside, n, signal, level):
    """Addresses of one tile; ``n`` its noise, or None where that is to be loaded."""
    if n is None:
        n = widen(tl.load(noise, mask=inside))
    y = fma(widen(tl.load(x, mask=inside)), signal, n * level)
    tl.store(out, narrow(y, out.dtype.element_ty), mask=inside)
    if noise_out is not None:
        tl.store(noise_out, narrow(n, noise_out.dtype.element_ty), mask=inside)


@tunable()
@triton.jit
def q_sample_kernel(
    x,  # *float [B, C, P]
    x_image,
    x_channel,
    x_pixel,
    noise,  # *float [B, C, P] or None
    noise_image,
    noise_channel,
    noise_pixel,
    out,  # *float [B, C, P]
    out_image,
    out_channel,
    out_pixel,
    noise_out,  # *float like out, or None
    t,  # *int64 [B]
    table,  # *float32 [T]
    key,  # *int64 [B, 3] or None
    channels,
    pixels,
    chunks,
    quads,
    FLOW: tl.constexpr,
    DRAW: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    image, channel, first, size = program_place(channels, pixels, chunks, quads, INTERLEAVED)
    signal, level = levels(t, table, image, FLOW)
    key0, key1, draw, step, stream = key_of(key, image, DRAW, INTERLEAVED)
    x += image * x_image
    noise = at(noise, image * noise_image)
    out += image * out_image
    noise_out = at(noise_out, image * out_image)
    if INTERLEAVED == 0:
        x += channel * x_channel + first * x_pixel
        noise = at(noise, channel * noise_channel + first * noise_pixel)
        out += channel * out_channel + first * out_pixel
        noise_out = at(noise_out, channel * out_channel + first * out_pixel)
        index = channel * pixels + first
        for tail in tl.static_range(2):
            begin, end = turns(size, tail, GROUPS * WIDTH)
            for start in range(begin, end, GROUPS * WIDTH):
                i = start + lanes(GROUPS, WIDTH)
                n = draw_row(
                    index, start, key0, key1, draw, step, stream, NORMAL, DRAW, GROUPS, WIDTH
                )
                _tile(
                    x + i * x_pixel,
                    at(noise, i * noise_pixel),
                    out + i * out_pixel,
                    at(noise_out, i * out_pixel),
                    inside_of(i, size, tail),
                    n,
                    signal,
                    level,
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
                    _tile(x + i, None, out + i, at(noise_out, i), inside, n[k], signal, level)


def q_sample(
    x: Tensor,
    t: Tensor,
    table: Tensor,
    noise: Tensor | None,
    key: Tensor | None,
    path: str,
    return_noise: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    x_t = torch.empty_like(x, dtype=out_dtype)
    noise_out = torch.empty_like(x_t) if return_noise else x_t.new_empty((0,))
    if x.numel() == 0:
        return x_t, noise_out
    from_x, from_noise = operand(x), None if noise is None else operand(noise)
    to_out = operand(x_t)
    to_noise = operand(noise_out) if return_noise else None
    way = walk_of(x.shape, (from_x, from_noise, to_out), noise is None)
    launch(
        q_sample_kernel,
        way.programs,
        8 if way.interleaved else width_of(x_t),
        *placed(way, from_x),
        *placed(way, from_noise),
        *placed(way, to_out),
        None if to_noise is None else to_noise.tensor,
        t.contiguous(),
        table.contiguous(),
        None if key is None else key.contiguous(),
        way.channels,
        way.pixels,
        way.chunks,
        way.quads,
        FLOW=path == "flow",
        DRAW=draw_of(way, noise is None),
        INTERLEAVED=way.interleaved,
    )
    finish(x_t, to_out)
    if to_noise is not None:
        finish(noise_out, to_noise)
    return x_t, noise_out
