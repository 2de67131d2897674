"""group_norm_silu in Triton: sums over pieces of channels, over groups, then the result.

A program's tile is [GROUPS, WIDTH], a row of it one thread's vector. Where a channel's pixels are
neighbours, COLS elements of the tile lie along a channel and the tile has 1024 / COLS channels. Where
a pixel's channels are (LAST), COLS channels of so many pixels make a tile, and a thread keeps to its
channels. Either way what belongs to a channel is loaded before the loop.

Partial results are [N, C, pieces], so that a group's are neighbours. How an image is cut depends on its
shape alone; threads are folded by an explicit tree, in an order that no layout of the compiler's
changes. Forward is three launches; backward is three, or two where dx is not wanted.
"""

# ruff: noqa: RET505, SIM102 - Triton compiles what follows an early return of a constant branch, and
# both conditions where one is constant
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..channel_order import dense, laid_like, shape_of, strides
from ..outputs import gradients
from . import sums
from .floats import exp2, fma, narrow, product, reciprocal, widen
from .launch import DEFAULT, float32, launch, launch_sums
from .rows import zero_outside

TILE = tl.constexpr(DEFAULT[0])
#: Partial results at a time of the second stages. Not a parameter: torch.compile takes a kernel that
#: is started without one of its parameters to write all of its operands.
BLOCK = tl.constexpr(256)


# --- one element ----------------------------------------------------------------------------------


@triton.jit
def sigmoid(u, EXACT: tl.constexpr):
    """(1 / (1 + e^-u), the rest to 1); see csrc/cuda/group_norm_silu.cu."""
    v = tl.maximum(u, -87.0)
    if EXACT:
        v = tl.minimum(v, 128.0)  # of infinity, whose e is 0 as well, `rest` would be none
    e = exp2(v * -1.44269502162933349609375)
    if EXACT:
        power = v * 1.44269502162933349609375
        rest = fma(v, -1.925963033500011e-08, fma(v, -1.44269502162933349609375, power))
        e = fma(e * 0.693147182464599609375, rest, e)
    s = reciprocal(1.0 + e)
    return s, e * s


@triton.jit
def _activated(u, SILU: tl.constexpr, EXACT: tl.constexpr):
    if SILU:
        s, _ = sigmoid(u, EXACT)
        return u * s
    else:
        return u


@triton.jit
def _through(grad, u, SILU: tl.constexpr, EXACT: tl.constexpr):
    """The gradient before the activation."""
    if SILU:
        s, rest = sigmoid(u, EXACT)
        return product(grad, s * fma(u, rest, 1.0))
    else:
        return grad


# --- who serves what ------------------------------------------------------------------------------


@triton.jit
def _place(
    channels,
    pixels,
    chunk,
    chunks,
    units,
    LAST: tl.constexpr,
    COLS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Where this program's tiles lie.

    image, piece of it
    base     the tile's first channel
    start    the piece's first element, in the whole tensor
    offset   [GROUPS, WIDTH] elements from there
    channel  of the image: [GROUPS, 1], if LAST [GROUPS, WIDTH]
    pixel    of the piece: [GROUPS, WIDTH], if LAST [GROUPS, 1]
    size     pixels of the piece
    whole    so many of them are served without masks: none if the tile has channels too many
    """
    program = tl.program_id(0)
    image = program // units
    unit = program - image * units
    block = unit // chunks
    piece = unit - block * chunks
    first = piece.to(tl.int64) * chunk
    size = tl.minimum(pixels - first, chunk).to(tl.int32)
    thread = tl.arange(0, GROUPS)[:, None]
    row = thread // (COLS // WIDTH)
    col = thread % (COLS // WIDTH) * WIDTH + tl.arange(0, WIDTH)[None, :]
    image = image.to(tl.int64)
    if LAST:
        base = block * COLS
        start = (image * pixels + first) * channels + base
        whole = tl.where(base + COLS <= channels, size, 0)
        return image, piece, base, start, row * channels + col, base + col, row, size, whole
    else:
        base = block * (TILE // COLS)
        start = (image * channels + base) * pixels + first
        whole = tl.where(base + TILE // COLS <= channels, size, 0)
        return image, piece, base, start, row * pixels + col, base + row, col, size, whole


@triton.jit
def _turns(size, whole, TAIL: tl.constexpr, STEP: tl.constexpr):
    """(begin, end) of the loop over whole tiles, then of what remains."""
    whole = whole // STEP * STEP
    if TAIL:
        return whole, size
    else:
        return 0, whole


@triton.jit
def _inside(channel, channels, pixel, size, TAIL: tl.constexpr):
    if TAIL:
        return (channel < channels) & (pixel < size)
    else:
        return None


@triton.jit
def _of_channels(values, channel, channels, absent: tl.constexpr):
    """One number for each, or a constant."""
    if values is None:
        return absent
    else:
        return widen(tl.load(values + tl.minimum(channel, channels - 1)))


@triton.jit
def _numbers(mean, rstd, weight, bias, image, channel, channels, group):
    """(index of the group, mean, scale, shift): u = (x - mean) * scale + shift."""
    index = image * (channels // group) + tl.minimum(channel, channels - 1) // group
    scale = tl.load(rstd + index) * _of_channels(weight, channel, channels, 1.0)
    shift = _of_channels(bias, channel, channels, 0.0)
    return index, tl.load(mean + index), scale, shift


# --- folding a tile's sums ------------------------------------------------------------------------


@triton.jit
def _none_yet(LAST: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """A thread's sums: one, or if LAST one for each of its channels."""
    if LAST:
        return tl.zeros([GROUPS, WIDTH], tl.float32)
    else:
        return tl.zeros([GROUPS], tl.float32)


@triton.jit
def _pairs(x, FAR: tl.constexpr):
    """[M] to two [M / 2]: neighbours, or elements M / 2 apart."""
    if FAR:
        return tl.split(tl.permute(tl.reshape(x, [2, x.shape[0] // 2]), (1, 0)))
    else:
        return tl.split(tl.reshape(x, [x.shape[0] // 2, 2]))


@triton.jit
def _folded_sum(x, LAST: tl.constexpr, COLS: tl.constexpr):
    """The threads' sums to those of each channel, [TILE / COLS], or if LAST [COLS]."""
    if LAST:
        x = tl.reshape(x, [x.shape[0] * x.shape[1]])
        count: tl.constexpr = COLS
    else:
        count: tl.constexpr = TILE // COLS
    for _ in tl.static_range(10):
        if x.shape[0] > count:
            a, b = _pairs(x, LAST)
            x = a + b
    return x


@triton.jit
def _folded_moments(n, mean, square, LAST: tl.constexpr, COLS: tl.constexpr):
    """(mean, squares about it) of [M] parts of n elements, folded to one for each channel.

    A part of no elements has the mean 0, so that its distance is one that the others have.
    """
    if LAST:
        count: tl.constexpr = COLS
    else:
        count: tl.constexpr = TILE // COLS
    for _ in tl.static_range(10):
        if mean.shape[0] > count:
            n, more = _pairs(n, LAST)
            mean, other = _pairs(mean, LAST)
            square, others = _pairs(square, LAST)
            apart = other - mean
            share = more / tl.maximum(n + more, 1.0)
            square += fma(n * share * apart, apart, others)
            mean = fma(apart, share, mean)
            n += more
    return mean, square


@triton.jit
def _store(
    partials,
    values,
    image,
    piece,
    base,
    channels,
    chunks,
    LAST: tl.constexpr,
    COLS: tl.constexpr,
):
    """One number for each channel of the tile."""
    if LAST:
        c = base + tl.arange(0, COLS)
    else:
        c = base + tl.arange(0, TILE // COLS)
    tl.store(partials + (image * channels + c) * chunks + piece, values, mask=c < channels)


@triton.jit
def _first_of(firsts, channel, channels, group, stride):
    """The first element of each channel's group."""
    channel = tl.minimum(channel, channels - 1)
    return widen(tl.load(firsts + (channel - channel % group).to(tl.int64) * stride))


# --- kernels --------------------------------------------------------------------------------------


@triton.jit
def channel_moments_kernel(
    x,  # *float [N, C, P], or if LAST [N, P, C]
    partials,  # *float32 [2, N, C, chunks]: means, and sums of squares about them
    count,  # N * C * chunks
    group,  # channels of one
    channels,
    pixels,
    chunk,  # pixels of a piece
    chunks,
    units,  # programs of an image
    LAST: tl.constexpr,
    COLS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """A thread measures from the mean of its first elements, or if LAST from the first of each channel.

    So what may cancel is bounded by its turns, whatever the data; and means are told as distances from
    the group's first element. See csrc/cuda/group_norm_silu.cu.
    """
    image, piece, base, start, offset, channel, pixel, size, whole = _place(
        channels, pixels, chunk, chunks, units, LAST, COLS, GROUPS, WIDTH
    )
    firsts = x + image * channels * pixels
    x += start
    STEP: tl.constexpr = TILE // COLS if LAST else COLS
    stride = channels if LAST else 1
    here = (channel < channels) & (pixel < size)
    origin = widen(tl.load(x + offset, mask=here, other=0.0))
    if not LAST:
        seen = sums.of_rows(here.to(tl.float32))
        origin = (sums.of_rows(zero_outside(origin, here)) / tl.maximum(seen, 1.0))[:, None]
    total, square = _none_yet(LAST, GROUPS, WIDTH), _none_yet(LAST, GROUPS, WIDTH)
    for tail in tl.static_range(2):
        begin, end = _turns(size, whole, tail, STEP)
        for done in range(begin, end, STEP):
            inside = _inside(channel, channels, done + pixel, size, tail)
            value = widen(tl.load(x + (offset + done * stride), mask=inside))
            d = zero_outside(value - origin, inside)
            if LAST:
                total += d
                square = fma(d, d, square)
            else:
                total += sums.of_rows(d)
                square += sums.squares_of_rows(d)
    if LAST:
        n = tl.broadcast_to(((size - pixel + STEP - 1) // STEP).to(tl.float32), [GROUPS, WIDTH])
        n = tl.reshape(n, [GROUPS * WIDTH])
        total = tl.reshape(total, [GROUPS * WIDTH])
        square = tl.reshape(square, [GROUPS * WIDTH])
        first = tl.broadcast_to(_first_of(firsts, channel, channels, group, 1), [GROUPS, WIDTH])
        origin = tl.reshape(origin - first, [GROUPS * WIDTH])
    else:
        # Of a whole tile a thread has WIDTH elements, of the last one what is left for it.
        full = size // STEP
        left = tl.minimum(tl.maximum(size - full * STEP - tl.min(pixel, 1), 0), WIDTH)
        n = (full * WIDTH + left).to(tl.float32)
        first = _first_of(firsts, channel, channels, group, pixels)
        origin = tl.reshape(origin - first, [GROUPS])
    n = tl.maximum(n, 0.0)
    mean = total / tl.maximum(n, 1.0)
    square = fma(0.0 - total, mean, square)
    square = tl.where(square < 0.0, 0.0, square)  # NaN stays
    mean = tl.where(n > 0.0, origin + mean, 0.0)
    mean, square = _folded_moments(n, mean, square, LAST, COLS)
    _store(partials, mean, image, piece, base, channels, chunks, LAST, COLS)
    _store(partials + count, square, image, piece, base, channels, chunks, LAST, COLS)


@triton.jit
def normalise_kernel(
    x,  # *float [N, C, P], or if LAST [N, P, C]
    y,  # *float like x
    mean,  # *float32 [N, channels / group]
    rstd,
    weight,  # *float [C] or None
    bias,
    group,  # channels of one
    channels,
    pixels,
    chunk,
    chunks,
    units,
    SILU: tl.constexpr,
    LAST: tl.constexpr,
    COLS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    EXACT: tl.constexpr = x.dtype.element_ty == tl.float32
    image, _, _, start, offset, channel, pixel, size, whole = _place(
        channels, pixels, chunk, chunks, units, LAST, COLS, GROUPS, WIDTH
    )
    x += start
    y += start
    STEP: tl.constexpr = TILE // COLS if LAST else COLS
    stride = channels if LAST else 1
    _, middle, scale, shift = _numbers(mean, rstd, weight, bias, image, channel, channels, group)
    for tail in tl.static_range(2):
        begin, end = _turns(size, whole, tail, STEP)
        for done in range(begin, end, STEP):
            i = offset + done * stride
            inside = _inside(channel, channels, done + pixel, size, tail)
            u = fma(widen(tl.load(x + i, mask=inside)) - middle, scale, shift)
            out = narrow(_activated(u, SILU, EXACT), y.dtype.element_ty)
            tl.store(y + i, out, mask=inside)


@triton.jit
def gradient_sums_kernel(
    grad,  # *float like x
    x,  # *float [N, C, P], or if LAST [N, P, C]
    mean,  # *float32 [N, channels / group]
    rstd,
    weight,  # *float [C] or None
    bias,
    partials,  # *float32 [2, N, C, chunks]: sums of h, and of h * (x - mean)
    count,
    group,
    channels,
    pixels,
    chunk,
    chunks,
    units,
    SILU: tl.constexpr,
    LAST: tl.constexpr,
    COLS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """h is the gradient before the activation."""
    EXACT: tl.constexpr = x.dtype.element_ty == tl.float32
    image, piece, base, start, offset, channel, pixel, size, whole = _place(
        channels, pixels, chunk, chunks, units, LAST, COLS, GROUPS, WIDTH
    )
    grad += start
    x += start
    STEP: tl.constexpr = TILE // COLS if LAST else COLS
    stride = channels if LAST else 1
    _, middle, scale, shift = _numbers(mean, rstd, weight, bias, image, channel, channels, group)
    total, along = _none_yet(LAST, GROUPS, WIDTH), _none_yet(LAST, GROUPS, WIDTH)
    for tail in tl.static_range(2):
        begin, end = _turns(size, whole, tail, STEP)
        for done in range(begin, end, STEP):
            i = offset + done * stride
            inside = _inside(channel, channels, done + pixel, size, tail)
            d = widen(tl.load(x + i, mask=inside)) - middle
            u = fma(d, scale, shift)
            h = _through(widen(tl.load(grad + i, mask=inside)), u, SILU, EXACT)
            h = zero_outside(h, inside)
            d = zero_outside(d, inside)
            if LAST:
                total += h
                along = fma(h, d, along)
            else:
                total += sums.of_rows(h)
                along += sums.products_of_rows(h, d)
    total = _folded_sum(total, LAST, COLS)
    along = _folded_sum(along, LAST, COLS)
    _store(partials, total, image, piece, base, channels, chunks, LAST, COLS)
    _store(partials + count, along, image, piece, base, channels, chunks, LAST, COLS)


@triton.jit
def input_gradient_kernel(
    grad,  # *float like x
    x,  # *float [N, C, P], or if LAST [N, P, C]
    dx,  # *float like x
    mean,  # *float32 [N, channels / group]
    rstd,
    weight,  # *float [C] or None
    bias,
    terms,  # *float32 [2, N, channels / group]: pull and tilt
    groups,  # N * channels / group
    group,
    channels,
    pixels,
    chunk,
    chunks,
    units,
    SILU: tl.constexpr,
    LAST: tl.constexpr,
    COLS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """From h and what its sums over the group are."""
    EXACT: tl.constexpr = x.dtype.element_ty == tl.float32
    image, _, _, start, offset, channel, pixel, size, whole = _place(
        channels, pixels, chunk, chunks, units, LAST, COLS, GROUPS, WIDTH
    )
    grad += start
    x += start
    dx += start
    STEP: tl.constexpr = TILE // COLS if LAST else COLS
    stride = channels if LAST else 1
    index, middle, scale, shift = _numbers(
        mean, rstd, weight, bias, image, channel, channels, group
    )
    pull, tilt = tl.load(terms + index), tl.load(terms + groups + index)
    for tail in tl.static_range(2):
        begin, end = _turns(size, whole, tail, STEP)
        for done in range(begin, end, STEP):
            i = offset + done * stride
            inside = _inside(channel, channels, done + pixel, size, tail)
            d = widen(tl.load(x + i, mask=inside)) - middle
            u = fma(d, scale, shift)
            h = _through(widen(tl.load(grad + i, mask=inside)), u, SILU, EXACT)
            out = fma(d, 0.0 - tilt, product(h, scale) - pull)
            tl.store(dx + i, narrow(out, dx.dtype.element_ty), mask=inside)


# Second stages, a program a group or a channel. Partial results are in a buffer of ours, so that the
# order within tl.sum depends on the shape alone.


@triton.jit
def _pixels_of(piece, pixels, chunk):
    return tl.minimum(pixels - piece.to(tl.int64) * chunk, chunk).to(tl.float64)


@triton.jit
def group_moments_kernel(
    x,  # *float, of which groups begin `between` elements apart
    between,
    partials,  # *float32 [2, N, C, chunks]
    count,
    mean,  # *float32 [N, channels / group]
    rstd,
    eps,  # (float32 eps + float32 eps_rest) * float32 eps_unit^2
    eps_rest,
    eps_unit,
    entries,  # of a group: group * chunks
    elements,
    groups,  # of an image
    image_size,
    pixels,
    chunk,
    chunks,
):
    program = tl.program_id(0)
    partials += program.to(tl.int64) * entries
    e = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, entries, BLOCK):
        i = first + e
        n = _pixels_of(i % chunks, pixels, chunk)
        middles = tl.load(partials + i, mask=i < entries, other=0.0).to(tl.float64)
        total += n * middles  # exact
    elements = tl.cast(elements, tl.float64)
    middle = tl.sum(total) / elements
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, entries, BLOCK):
        i = first + e
        n = tl.where(i < entries, _pixels_of(i % chunks, pixels, chunk), 0.0)
        apart = tl.load(partials + i, mask=i < entries, other=0.0).to(tl.float64) - middle
        squares = tl.load(partials + count + i, mask=i < entries, other=0.0).to(tl.float64)
        total = tl.fma(n * apart, apart, total) + squares
    variance = tl.sum(total) / elements
    exact = tl.cast(eps, tl.float32).to(tl.float64) + tl.cast(eps_rest, tl.float32).to(tl.float64)
    unit = tl.cast(eps_unit, tl.float32).to(tl.float64)
    exact *= unit * unit
    image = program // groups
    first = x + image.to(tl.int64) * image_size + (program - image * groups).to(tl.int64) * between
    tl.store(mean + program, (widen(tl.load(first)).to(tl.float64) + middle).to(tl.float32))
    tl.store(rstd + program, (1.0 / tl.sqrt(variance + exact)).to(tl.float32))


@triton.jit
def _terms_of_group(
    g,
    partials,
    count,
    rstd,
    weight,
    terms,
    of_groups,
    groups,
    group,
    elements,
    channels,
    chunks,
):
    """Weighted as a single element is, so that one alone in its group has no gradient at all."""
    entries = group * chunks
    partials += g.to(tl.int64) * entries
    channel = g % groups * group
    e = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    along = tl.zeros([BLOCK], tl.float64)
    r = tl.load(rstd + g)
    for first in range(0, entries, BLOCK):
        i = first + e
        scale = (r * _of_channels(weight, channel + i // chunks, channels, 1.0)).to(tl.float64)
        h = tl.load(partials + i, mask=i < entries, other=0.0).to(tl.float64)
        hd = tl.load(partials + count + i, mask=i < entries, other=0.0).to(tl.float64)
        total += scale * h  # exact: both were float32
        along += scale * hd
    elements = tl.cast(elements, tl.float64)
    r = r.to(tl.float64)
    tl.store(terms + g, (tl.sum(total) / elements).to(tl.float32))
    tl.store(terms + of_groups + g, (r * r * tl.sum(along) / elements).to(tl.float32))


@triton.jit
def _gradients_of_channel(
    channel,
    partials,
    count,
    rstd,
    dweight,
    dbias,
    images,
    group,
    channels,
    chunks,
):
    e = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    along = tl.zeros([BLOCK], tl.float64)
    for first in range(0, images * chunks, BLOCK):
        i = first + e
        there = i < images * chunks
        image = (i // chunks).to(tl.int64)
        place = (image * channels + channel) * chunks + i % chunks
        r = tl.load(rstd + image * (channels // group) + channel // group, mask=there, other=0.0)
        hd = tl.load(partials + count + place, mask=there, other=0.0)
        total += tl.load(partials + place, mask=there, other=0.0).to(tl.float64)
        along += r.to(tl.float64) * hd.to(tl.float64)  # exact: both were float32
    if dweight is not None:
        of_weight = tl.sum(along).to(tl.float32)
        tl.store(dweight + channel, narrow(of_weight, dweight.dtype.element_ty))
    if dbias is not None:
        of_bias = tl.sum(total).to(tl.float32)
        tl.store(dbias + channel, narrow(of_bias, dbias.dtype.element_ty))


@triton.jit
def gradient_terms_kernel(
    partials,  # *float32 [2, N, C, chunks]
    count,
    rstd,  # *float32 [N, groups]
    weight,  # *float [C] or None
    terms,  # *float32 [2, N, groups], or None
    dweight,  # *float [C] or None
    dbias,
    images,
    of_groups,  # programs for a group each, the first; then for a channel each
    groups,  # of an image
    group,
    elements,
    channels,
    chunks,
):
    program = tl.program_id(0)
    if terms is not None:
        if program < of_groups:
            _terms_of_group(
                program,
                partials,
                count,
                rstd,
                weight,
                terms,
                of_groups,
                groups,
                group,
                elements,
                channels,
                chunks,
            )
    if dweight is not None or dbias is not None:
        if program >= of_groups:
            _gradients_of_channel(
                program - of_groups,
                partials,
                count,
                rstd,
                dweight,
                dbias,
                images,
                group,
                channels,
                chunks,
            )


# --- starting them --------------------------------------------------------------------------------


class Cut(NamedTuple):
    """How an image is cut: COLS of a tile, pixels of a piece, pieces of a channel, programs."""

    last: bool
    cols: int
    chunk: int
    chunks: int
    units: int


#: So many turns a thread makes at most; a GPU has work enough with so many programs of one image.
TURNS, ENOUGH = 32, 256


def cut(channels: int, pixels: int, last: bool, width: int) -> Cut:
    tile, cols = DEFAULT[0], width
    if last:
        across = -(-channels // width)
        while cols < 8 * width and across % (2 * cols // width) == 0:
            cols *= 2
        step, blocks = tile // cols, -(-channels // cols)
    else:
        while cols < tile and cols < pixels:
            cols *= 2
        step, blocks = cols, -(-channels // (tile // cols))
    chunk = step
    while (
        chunk < TURNS * step
        and chunk < pixels
        and blocks * -(-pixels // (2 * chunk)) >= ENOUGH
        and 2 * chunk * channels < 2**31  # offsets within a piece are 32-bit
    ):
        chunk *= 2
    chunks = -(-pixels // chunk)
    return Cut(last, cols, chunk, chunks, blocks * chunks)


def _cut_of(x: Tensor) -> Cut:
    found = strides(x)
    assert found is not None
    _, channels, pixels = shape_of(x)
    return cut(channels, pixels, found.channel == 1 and channels > 1, 16 // x.element_size())


def _contiguous(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.contiguous()


def parts_of(eps: float) -> tuple[float, float, float]:
    """(high, rest, unit), float32 numbers: eps = (high + rest) * unit^2, beyond their range, too."""
    eps = min(eps, 1e95)  # from there on 1 / sqrt(eps) is zero
    unit = 2.0 ** max(-126, min(127, math.frexp(eps)[1] // 2))
    high = float32(eps / unit**2)
    return high, eps / unit**2 - high, unit


def group_norm_silu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    act: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.empty_like(x)
    mean = x.new_empty((x.shape[0], num_groups), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    if x.numel() == 0:  # the mean and the variance of no elements are 0
        return y, mean.zero_(), rstd.fill_(eps).rsqrt_()
    read = dense(x)
    written = y if read is x else torch.empty_like(read)
    weight, bias = _contiguous(weight), _contiguous(bias)
    images, channels, pixels = shape_of(x)
    group, way, width = channels // num_groups, _cut_of(read), 16 // x.element_size()
    where = (channels, pixels, way.chunk, way.chunks, way.units)
    form = {"LAST": way.last, "COLS": way.cols}
    count = images * channels * way.chunks
    partials = x.new_empty((2 * count,), dtype=torch.float32)
    programs = images * way.units
    launch(channel_moments_kernel, programs, width, read, partials, count, group, *where, **form)
    launch_sums(
        group_moments_kernel,
        images * num_groups,
        read,
        group if way.last else group * pixels,
        partials,
        count,
        mean,
        rstd,
        *parts_of(eps),
        group * way.chunks,
        group * pixels,
        num_groups,
        channels * pixels,
        pixels,
        way.chunk,
        way.chunks,
    )
    launch(
        normalise_kernel,
        programs,
        width,
        read,
        written,
        mean,
        rstd,
        weight,
        bias,
        group,
        *where,
        SILU=act is not None,
        **form,
    )
    if written is not y:
        y.copy_(written)
    return y, mean, rstd


def group_norm_silu_backward(
    grad_y: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    act: str | None,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    found = gradients(needs, (x, weight, bias))  # of a vector it is contiguous
    if x.numel() == 0:
        for g in found:
            g.zero_()
        return found
    dx, dweight, dbias = (g if g.numel() else None for g in found)
    if any(g.numel() for g in found):
        _differentiate(grad_y, x, mean, rstd, weight, bias, num_groups, act, dx, dweight, dbias)
    return found


def _differentiate(
    grad_y: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    act: str | None,
    dx: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
) -> None:
    # A gradient of another dtype than x's: both in float32, which loses nothing of either.
    read = dense(x if grad_y.dtype == x.dtype else x.float())
    grad = laid_like(read, grad_y)
    weight, bias = _contiguous(weight), _contiguous(bias)
    mean, rstd = mean.contiguous(), rstd.contiguous()
    images, channels, pixels = shape_of(x)
    group, way, width = channels // num_groups, _cut_of(read), 16 // read.element_size()
    where = (channels, pixels, way.chunk, way.chunks, way.units)
    form = {"LAST": way.last, "COLS": way.cols}
    count, groups = images * channels * way.chunks, images * num_groups
    partials = x.new_empty((2 * count,), dtype=torch.float32)
    programs, silu = images * way.units, act is not None
    numbers = (mean, rstd, weight, bias)
    launch(
        gradient_sums_kernel,
        programs,
        width,
        grad,
        read,
        *numbers,
        partials,
        count,
        group,
        *where,
        SILU=silu,
        **form,
    )
    of_groups = groups if dx is not None else 0
    terms = None if dx is None else x.new_empty((2 * groups,), dtype=torch.float32)
    launch_sums(
        gradient_terms_kernel,
        of_groups + (0 if dweight is None and dbias is None else channels),
        partials,
        count,
        rstd,
        weight,
        terms,
        dweight,
        dbias,
        images,
        of_groups,
        num_groups,
        group,
        group * pixels,
        channels,
        way.chunks,
    )
    if dx is None:
        return
    written = dx if read is x else torch.empty_like(read)
    launch(
        input_gradient_kernel,
        programs,
        width,
        grad,
        read,
        written,
        *numbers,
        terms,
        groups,
        group,
        *where,
        SILU=silu,
        **form,
    )
    if written is not dx:
        dx.copy_(written)
