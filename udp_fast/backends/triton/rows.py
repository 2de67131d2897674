"""The way of a program through its part of a `walk.Walk`."""

# ruff: noqa: RET505 - Triton compiles what follows an early return of a constant branch
import triton
import triton.language as tl

from .walk import CHUNK as _CHUNK
from .walk import GROUP_CHUNK as _GROUP_CHUNK

CHUNK = tl.constexpr(_CHUNK)
GROUP_CHUNK = tl.constexpr(_GROUP_CHUNK)


@triton.jit
def program_row(channels, chunks):
    """(image, channel, chunk) of this program, when it walks by rows."""
    program = tl.program_id(0)
    row = program // chunks
    image = row // channels
    return image.to(tl.int64), (row - image * channels).to(tl.int64), program - row * chunks


@triton.jit
def row_part(chunk, pixels):
    """(first, size): the elements of a row that a chunk covers."""
    first = chunk.to(tl.int64) * CHUNK
    return first, tl.minimum(pixels - first, CHUNK).to(tl.int32)


@triton.jit
def lanes(GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """[GROUPS, WIDTH] offsets 0, 1, 2 ...: a row of it is one thread's vector access."""
    return tl.arange(0, GROUPS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def program_groups(pixels, quads, chunks):
    """(image, first group, groups) of this program, when it walks an interleaved image."""
    program = tl.program_id(0)
    image = program // chunks
    first = (program - image * chunks) * GROUP_CHUNK
    size = tl.minimum((pixels // 4 * quads).to(tl.int32) - first, GROUP_CHUNK)
    return image.to(tl.int64), first, size


@triton.jit
def program_place(channels, pixels, chunks, quads, INTERLEAVED: tl.constexpr):
    """(image, channel, first, size) of this program, whose elements, or groups, begin at the first."""
    if INTERLEAVED == 0:
        image, channel, chunk = program_row(channels, chunks)
        first, size = row_part(chunk, pixels)
        return image, channel, first, size
    else:
        image, first, size = program_groups(pixels, quads, chunks)
        return image, 0, first, size


@triton.jit
def turns(size, TAIL: tl.constexpr, TILE: tl.constexpr):
    """(begin, end) of the loop over whole tiles, which needs no masks; then of what remains."""
    whole = size // TILE * TILE
    if TAIL:
        return whole, size
    else:
        return 0, whole


@triton.jit
def inside_of(i, size, TAIL: tl.constexpr):
    """The mask of offsets ``i``: None in the loop over whole tiles."""
    if TAIL:
        return i < size
    else:
        return None


@triton.jit
def zero_outside(value, inside):
    if inside is None:
        return value
    else:
        return tl.where(inside, value, 0.0)


@triton.jit
def group_place(
    group,  # int32 [G]
    quads,  # how many groups of CHANNELS channels a pixel has
    pixels,
    CHANNELS: tl.constexpr,
):
    """(offset, stride, block, plane) of groups of four pixels.

    A group's elements lie at offset + k * stride + 0 .. 3, k < CHANNELS. Its noise is that of block,
    block + plane and so on, one for each channel.
    """
    plane = (pixels // 4).to(tl.uint32)
    if CHANNELS == 3:
        return group * 12, 4, group.to(tl.uint32), plane
    else:
        pixel = group // quads
        quad = group - pixel * quads
        block = pixel.to(tl.uint32) + quad.to(tl.uint32) * 4 * plane
        return pixel * 16 * quads + quad * 4, quads * 4, block, plane


@triton.jit
def at(base, offset):
    """Addresses, or None of an operand that is absent."""
    if base is None:
        return None
    else:
        return base + offset


@triton.jit
def per_image(value, stride, image):
    """A number that came with the launch, if stride is None; else one from memory."""
    if stride is None:
        return tl.cast(value, tl.float32)
    else:
        return tl.load(value + image * stride)
