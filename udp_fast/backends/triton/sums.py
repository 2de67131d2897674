"""Sums of an image in a fixed order, so that they have the same bits whatever the launch.

tl.sum adds in an order that depends on how the compiler lays a block out over threads, and so on
alignment. A thread's elements are therefore added by an explicit tree and the threads' sums in fixed
point; each program stores one number, and a second kernel adds those.
"""

import triton
import triton.language as tl

from .floats import fma


@triton.jit
def halves(x):
    """[G, W] to two [G, W / 2]: even columns, odd columns."""
    return tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))


@triton.jit
def of_rows(x):
    """[G, 4] or [G, 8] to [G]: neighbours first."""
    a, b = halves(x)
    x = a + b
    if x.shape[1] == 4:
        a, b = halves(x)
        x = a + b
    a, b = halves(x)
    return tl.reshape(a + b, [x.shape[0]])


@triton.jit
def squares_of_rows(x):
    """float32 [G, 4] or [G, 8] to [G]: the sum of squares, neighbours first."""
    return products_of_rows(x, x)


@triton.jit
def products_of_rows(x, y):
    """float32 [G, 4] or [G, 8] twice to [G]: the sum of x * y, neighbours first."""
    a, b = halves(x)
    c, d = halves(y)
    x = fma(b, d, a * c)
    if x.shape[1] == 4:
        a, b = halves(x)
        x = a + b
    a, b = halves(x)
    return tl.reshape(a + b, [x.shape[0]])


@triton.jit
def of_block(x):
    """float64 [N], none negative, N <= 1024, to a scalar: exact to N * 2^-52 of the largest.

    In fixed point, where the order of additions makes no difference. A tree in float64 would be
    calculated by every thread, and consumer GPUs have one float64 unit for 64 float32 ones.
    """
    # Of the bits: NaN above infinity above numbers. A NaN, and nothing else, may have a sign.
    largest = tl.max(x.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF)
    exponent = tl.maximum(largest >> 52, 64)  # biased; float32 squares are far above 2^-959
    scale = ((2046 + 52 - exponent) << 52).to(tl.float64, bitcast=True)  # x * scale < 2^53
    total = tl.sum((x * scale).to(tl.int64)).to(tl.float64)
    total = total * ((exponent - 52) << 52).to(tl.float64, bitcast=True)
    return tl.where(largest < 0x7FF0000000000000, total, largest.to(tl.float64, bitcast=True))


@triton.jit
def of_image(
    partials,  # *float64 or *int32 [B, count], one number a program; the sum of these is int64
    image,
    count,
    BLOCK: tl.constexpr = 1024,
):
    """The second stage: the sum of one image's partials. The buffer is ours, so its alignment, and
    with it the order within tl.sum, depends on ``count`` alone."""
    partials += image.to(tl.int64) * count
    i = tl.arange(0, BLOCK)
    WIDE: tl.constexpr = tl.float64 if partials.dtype.element_ty == tl.float64 else tl.int64
    total = tl.zeros([BLOCK], WIDE)
    for start in range(0, count, BLOCK):
        total += tl.load(partials + start + i, mask=start + i < count, other=0).to(WIDE)
    return tl.sum(total)
