"""group_norm_silu and its gradients on csrc/cpu: contiguous and channels_last are read in place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import native


class _Way(NamedTuple):
    """How the kernels walk tensors of one shape and strides."""

    shape: tuple[int, int, int]  # images, channels, pixels
    strides: tuple[int, int, int]  # of them, in elements
    fits: tuple[bool, bool]  # whether channel by channel, and pixel by pixel
    interleaved: bool  # the better one


@lru_cache(maxsize=1024)
def _way(shape: torch.Size, stride: tuple[int, ...]) -> _Way | None:
    """None where they cannot; a call costs less than what it spares a small tensor."""
    found = (stride[0], stride[1], 1) if len(shape) == 2 else native.strides(shape, stride)
    if found is None:
        return None
    images, channels, pixels = shape[0], shape[1], shape[2:].numel()
    _, channel, pixel = found
    planar = (pixel == 1 or pixels == 1) and (channel == pixels or channels == 1)
    interleaved = channel == 1 or channels == 1
    if not planar and not interleaved:
        return None
    # One pixel an image: lanes are of more use across the channels.
    better = interleaved and (not planar or pixels == 1)
    return _Way((images, channels, pixels), found, (planar, interleaved), better)


def _walk(x: Tensor) -> tuple[Tensor, _Way]:
    """x, copied only if the kernels cannot walk it, and how they do."""
    way = _way(x.shape, x.stride())
    if way is None:
        x = x.contiguous()
        way = _way(x.shape, x.stride())
        assert way is not None
    return x, way


def _fits(value: Tensor, interleaved: bool) -> _Way | None:
    """How to walk another tensor in the same order; None where that is impossible."""
    way = _way(value.shape, value.stride())
    return way if way is not None and way.fits[interleaved] else None


def _empty(x: Tensor, interleaved: bool) -> tuple[Tensor, _Way]:
    """Like x, densely in the order of the walk."""
    images, channels, *pixels = x.shape
    shape = (images, *pixels, channels) if interleaved else x.shape
    found = native.fresh(torch.empty(shape, dtype=x.dtype, device=x.device))
    if interleaved:
        found = found.movedim(-1, 1)
    way = _fits(found, interleaved)
    assert way is not None
    return found, way


def _read(value: Tensor, like: Tensor, interleaved: bool) -> tuple[Tensor, _Way]:
    """value, copied only if it is not in the order of the walk or not of the dtype of ``like``."""
    way = _fits(value, interleaved)
    if value.dtype == like.dtype and way is not None:
        return value, way
    copy, way = _empty(like, interleaved)
    return copy.copy_(value), way


def _write(out: Tensor, interleaved: bool) -> tuple[Tensor, _Way]:
    """What the kernels write: ``out``, if they can walk it."""
    way = _fits(out, interleaved)
    return (out, way) if way is not None else _empty(out, interleaved)


def _operand(value: Tensor, way: _Way) -> native.Operand:
    return (value.data_ptr(), native.DTYPES[value.dtype], *way.strides)


def _floats(value: Tensor | None) -> Tensor | None:
    if value is None or (value.dtype == torch.float32 and value.is_contiguous()):
        return value
    return value.detach().to(torch.float32).contiguous()


def _address(value: Tensor | None) -> int:
    return 0 if value is None else value.data_ptr()


def group_norm_silu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    act: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    y = native.fresh_like(x)
    mean = torch.empty((x.shape[0], num_groups), dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    if x.numel() == 0:
        return y, mean.zero_(), rstd.copy_(1 / (mean + eps).sqrt())
    walked, way = _walk(x)
    written, written_way = _write(y, way.interleaved)
    weight, bias = _floats(weight), _floats(bias)
    native.module().group_norm(
        way.shape,
        _operand(walked, way),
        _operand(written, written_way),
        num_groups,
        way.interleaved,
        _address(weight),
        _address(bias),
        act is not None,
        eps,
        mean.data_ptr(),
        rstd.data_ptr(),
        torch.get_num_threads(),
    )
    native.deliver(written, y)
    return y, mean, rstd


def _sums(x: Tensor, of: Tensor | None, needed: bool) -> Tensor:
    """Where the gradient of a weight is added up, in float32; size 0 where it is not needed."""
    dtype = torch.float32 if needed or of is None else of.dtype
    count = x.shape[1] if needed else 0
    return torch.empty(count, dtype=dtype, device=x.device)


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
    wants_dx = needs[0]
    wants_dweight = needs[1] and weight is not None
    wants_dbias = needs[2] and bias is not None
    dx = native.fresh_like(x) if wants_dx else x.new_empty((0,))
    dweight, dbias = _sums(x, weight, wants_dweight), _sums(x, bias, wants_dbias)
    if x.numel() == 0:
        dweight.zero_()
        dbias.zero_()
    elif wants_dx or wants_dweight or wants_dbias:
        walked, way = _walk(x)
        gradient, gradient_way = _read(grad_y, walked, way.interleaved)
        written = operand = None
        if wants_dx:
            written, written_way = _write(dx, way.interleaved)
            operand = _operand(written, written_way)
        mean, rstd = mean.contiguous(), rstd.contiguous()
        scale, shift = _floats(weight), _floats(bias)
        native.module().group_norm_backward(
            way.shape,
            _operand(walked, way),
            _operand(gradient, gradient_way),
            operand,
            num_groups,
            way.interleaved,
            _address(scale),
            _address(shift),
            act is not None,
            mean.data_ptr(),
            rstd.data_ptr(),
            dweight.data_ptr() if wants_dweight else 0,
            dbias.data_ptr() if wants_dbias else 0,
            torch.get_num_threads(),
        )
        native.deliver(written, dx)
    if wants_dweight and weight is not None:
        dweight = dweight.to(weight.dtype)
    if wants_dbias and bias is not None:
        dbias = dbias.to(bias.dtype)
    return dx, dweight, dbias
