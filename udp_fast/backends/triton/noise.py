"""The noise of a tile, drawn where it is used.

An element's index is its logical one, channel * pixels + pixel, whatever the memory order, and one
call of Philox serves four indices in a row. So a thread draws for four elements at once, and gets
them into the order of its vector accesses by joins that stay within its registers.
"""

# ruff: noqa: RET505 - Triton compiles what follows an early return of a constant branch
import triton
import triton.language as tl

from .normal import normal_pair, uniform
from .philox import noise_key, philox4x32_10
from .rows import group_place, lanes

NORMAL = tl.constexpr(0)
UNIFORM = tl.constexpr(1)

#: Where a row's noise comes from: nowhere or a tensor, runs of four indices, or single indices.
GIVEN = tl.constexpr(0)
RUNS = tl.constexpr(1)
SCATTERED = tl.constexpr(2)


@triton.jit
def key_of(key, image, DRAW: tl.constexpr, INTERLEAVED: tl.constexpr):
    """(key0, key1, draw, step, stream) of an image; of zeros where nothing is drawn."""
    if DRAW == GIVEN and INTERLEAVED == 0:
        return 0, 0, 0, 0, 0
    else:
        return noise_key(key, image)


@triton.jit
def draw4(block, key0, key1, draw, step, stream, KIND: tl.constexpr):
    """The four numbers of each uint32 block index."""
    a, b, c, d = philox4x32_10(block, draw, step, stream, key0, key1)
    if KIND == NORMAL:
        n0, n1 = normal_pair(a, b)
        n2, n3 = normal_pair(c, d)
        return n0, n1, n2, n3
    else:
        return uniform(a), uniform(b), uniform(c), uniform(d)


@triton.jit
def interleave4(a, b, c, d):
    """[G] each to [G, 4]."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [a.shape[0], 4])


@triton.jit
def draw_run(
    block,  # uint32: the tile's first, i.e. the logical index of its first element over four
    key0,
    key1,
    draw,
    step,
    stream,
    KIND: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,  # elements of a thread's vector access: 4 or 8
):
    """[GROUPS, WIDTH] numbers for consecutive logical indices."""
    tl.static_assert(WIDTH == 4 or WIDTH == 8)
    block += tl.arange(0, GROUPS).to(tl.uint32) * (WIDTH // 4)
    a, b, c, d = draw4(block, key0, key1, draw, step, stream, KIND)
    if WIDTH == 4:
        return interleave4(a, b, c, d)
    else:
        e, f, g, h = draw4(block + 1, key0, key1, draw, step, stream, KIND)
        even = tl.join(tl.join(a, e), tl.join(c, g))
        odd = tl.join(tl.join(b, f), tl.join(d, h))
        return tl.reshape(tl.join(even, odd), [GROUPS, 8])


@triton.jit
def draw_interleaved(
    block,  # uint32 [G]: that of four pixels' first channel; the next channel's is `plane` further
    plane,
    key0,
    key1,
    draw,
    step,
    stream,
    KIND: tl.constexpr,
    CHANNELS: tl.constexpr,  # 3 or 4
):
    """CHANNELS times [G, 4], in memory order: channel fastest, then pixel. The rest repeats."""
    a0, a1, a2, a3 = draw4(block, key0, key1, draw, step, stream, KIND)
    b0, b1, b2, b3 = draw4(block + plane, key0, key1, draw, step, stream, KIND)
    c0, c1, c2, c3 = draw4(block + plane * 2, key0, key1, draw, step, stream, KIND)
    if CHANNELS == 3:
        first = interleave4(a0, b0, c0, a1)
        return first, interleave4(b1, c1, a2, b2), interleave4(c2, a3, b3, c3), first
    else:
        d0, d1, d2, d3 = draw4(block + plane * 3, key0, key1, draw, step, stream, KIND)
        return (
            interleave4(a0, b0, c0, d0),
            interleave4(a1, b1, c1, d1),
            interleave4(a2, b2, c2, d2),
            interleave4(a3, b3, c3, d3),
        )


@triton.jit
def draw_groups(
    first,  # group of the program
    start,  # the tile's first, from there
    quads,
    pixels,
    key0,
    key1,
    draw,
    step,
    stream,
    KIND: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """(offset, stride, numbers) of a tile of groups of an interleaved image."""
    group = first + start + tl.arange(0, GROUPS)
    offset, stride, block, plane = group_place(group, quads, pixels, CHANNELS)
    numbers = draw_interleaved(block, plane, key0, key1, draw, step, stream, KIND, CHANNELS)
    return offset, stride, numbers


@triton.jit
def of_groups(offset, stride, k: tl.constexpr):
    """[G, 4] offsets of what the k-th of `draw_groups`' numbers are for."""
    return (offset + k * stride)[:, None] + tl.arange(0, 4)[None, :]


@triton.jit
def draw_scattered(
    index,  # int64 block of logical indices, in any order
    key0,
    key1,
    draw,
    step,
    stream,
    KIND: tl.constexpr,
):
    """One number an index at four times the price, where indices do not come in fours."""
    word = (index & 3).to(tl.int32)
    block = (index >> 2).to(tl.uint32)
    a, b, c, d = philox4x32_10(block, draw, step, stream, key0, key1)
    if KIND == NORMAL:
        first, second = normal_pair(tl.where(word < 2, a, c), tl.where(word < 2, b, d))
        return tl.where(word % 2 == 0, first, second)
    else:
        half = tl.where(word < 2, tl.where(word == 0, a, b), tl.where(word == 2, c, d))
        return uniform(half)


@triton.jit
def draw_row(
    first,  # int64: logical index of the first element of the chunk
    start,  # int32: the tile's first, from there
    key0,
    key1,
    draw,
    step,
    stream,
    KIND: tl.constexpr,
    DRAW: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The numbers of a tile of a row, or None where noise is given."""
    if DRAW == RUNS:
        block = (first // 4).to(tl.uint32) + (start // 4)
        return draw_run(block, key0, key1, draw, step, stream, KIND, GROUPS, WIDTH)
    elif DRAW == SCATTERED:
        index = first + start + lanes(GROUPS, WIDTH)
        return draw_scattered(index, key0, key1, draw, step, stream, KIND)
    else:
        return None
