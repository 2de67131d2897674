"""image_scale in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .floats import narrow, widen
from .launch import launch, number, tunable, width_of
from .rows import inside_of, lanes, per_image, program_row, row_part, turns
from .walk import Operand, finish, operand, placed, walk_of


@tunable("out")
@triton.jit
def image_scale_kernel(
    x,  # *float [B, C, P]
    x_image,
    x_channel,
    x_pixel,
    out,  # *float like x
    out_image,
    out_channel,
    out_pixel,
    scale,  # float32, or *float32 with scale_stride, else None
    scale_stride,
    channels,
    pixels,
    chunks,
    IN_PLACE: tl.constexpr,  # out is x
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    image, channel, chunk = program_row(channels, chunks)
    first, size = row_part(chunk, pixels)
    x += image * x_image + channel * x_channel + first * x_pixel
    out += image * out_image + channel * out_channel + first * out_pixel
    factor = per_image(scale, scale_stride, image)
    if IN_PLACE:  # there may be nothing to do
        size = tl.where(factor == 1.0, 0, size)
    for tail in tl.static_range(2):
        begin, end = turns(size, tail, GROUPS * WIDTH)
        for start in range(begin, end, GROUPS * WIDTH):
            i = start + lanes(GROUPS, WIDTH)
            inside = inside_of(i, size, tail)
            y = widen(tl.load(x + i * x_pixel, mask=inside)) * factor
            tl.store(out + i * out_pixel, narrow(y, out.dtype.element_ty), mask=inside)


def image_scale(x: Tensor, scale: Tensor) -> Tensor:
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    from_x, to_out = operand(x), operand(out)
    _launch(from_x, to_out, scale)
    finish(out, to_out)
    return out


def image_scale_(x: Tensor, scale: Tensor) -> None:
    if x.numel() == 0:
        return
    own = operand(x)
    _launch(own, own, scale)
    finish(x, own)


def _launch(x: Operand, out: Operand, scale: Tensor) -> None:
    way = walk_of(x.tensor.shape, (x, out), False)
    launch(
        image_scale_kernel,
        way.programs,
        width_of(out.tensor),
        *placed(way, x),
        *placed(way, out),
        *number(scale, x.tensor.device),
        way.channels,
        way.pixels,
        way.chunks,
        IN_PLACE=out.tensor is x.tensor,
    )
