"""group_norm_silu and its gradients on csrc/cpu: contiguous and channels_last are read in place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from . import native


@lru_cache(maxsize=1024)
def _layouts(shape: torch.Size, stride: tuple[int, ...]) -> tuple[bool, bool]:
    """Whether the kernels can walk such a tensor (planar, interleaved)."""
    found = _strides(shape, stride)
    if found is None:
        return False, False
    channels, pixels = shape[1], shape[2:].numel()
    _, channel, pixel = found
    planar = (pixel == 1 or pixels == 1) and (channel == pixels or channels == 1)
    return planar, channel == 1 or channels == 1


@lru_cache(maxsize=1024)
def _strides(shape: torch.Size, stride: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Of image, channel and pixel."""
    if len(shape) == 2:
        return stride[0], stride[1], 1
    return native.strides(shape, stride)


def _empty(x: Tensor, interleaved: bool) -> Tensor:
    """Like x, densely in the order of the walk."""
    if not interleaved:
        return torch.empty(x.shape, dtype=x.dtype)
    return torch.empty((x.shape[0], *x.shape[2:], x.shape[1]), dtype=x.dtype).movedim(-1, 1)


def _walk(x: Tensor) -> tuple[Tensor, bool]:
    """x, copied only if it is in neither order, and whether to walk it with its channels inside."""
    planar, interleaved = _layouts(x.shape, x.stride())
    if not planar and not interleaved:
        return x.contiguous(), False
    # One pixel an image: lanes are of more use across the channels.
    return x, interleaved and (not planar or x.shape[2:].numel() == 1)


def _fitting(value: Tensor, like: Tensor, interleaved: bool) -> Tensor:
    """value, copied only if it is not in the order of the walk or not of the dtype of ``like``."""
    if value.dtype == like.dtype and _layouts(value.shape, value.stride())[interleaved]:
        return value
    return _empty(like, interleaved).copy_(value)


def _operand(value: Tensor) -> native.Operand:
    found = _strides(value.shape, value.stride())
    assert found is not None
    return (value.data_ptr(), native.DTYPES[value.dtype], *found)


def _output(x: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """What the op returns, and what the kernels write: the same tensor, if they can walk it."""
    out = torch.empty_like(x)
    if _layouts(out.shape, out.stride())[interleaved]:
        return out, out
    return out, _empty(x, interleaved)


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
    mean = torch.zeros((x.shape[0], num_groups))
    rstd = torch.empty_like(mean)
    if x.numel() == 0:
        return torch.empty_like(x), mean, rstd.copy_(1 / (mean + eps).sqrt())
    walked, interleaved = _walk(x)
    y, written = _output(x, interleaved)
    weight, bias = _floats(weight), _floats(bias)
    native.module().group_norm(
        (x.shape[0], x.shape[1], x.shape[2:].numel()),
        _operand(walked),
        _operand(written),
        num_groups,
        interleaved,
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
    needed = [n and v is not None for n, v in zip(needs, (x, weight, bias), strict=True)]
    sums = [torch.zeros(x.shape[1]) if n else torch.empty(0) for n in needed[1:]]
    dx = torch.empty(0, dtype=x.dtype)
    if x.numel() == 0:
        dx = torch.empty_like(x) if needed[0] else dx
    elif any(needed):
        walked, interleaved = _walk(x)
        gradient = _fitting(grad_y, walked, interleaved)
        written = None
        if needed[0]:
            dx, written = _output(x, interleaved)
        mean, rstd = mean.contiguous(), rstd.contiguous()
        scale, shift = _floats(weight), _floats(bias)
        native.module().group_norm_backward(
            (x.shape[0], x.shape[1], x.shape[2:].numel()),
            _operand(walked),
            _operand(gradient),
            None if written is None else _operand(written),
            num_groups,
            interleaved,
            _address(scale),
            _address(shift),
            act is not None,
            mean.data_ptr(),
            rstd.data_ptr(),
            *(s.data_ptr() if n else 0 for s, n in zip(sums, needed[1:], strict=True)),
            torch.get_num_threads(),
        )
        native.deliver(written, dx)
    dweight, dbias = (
        s if v is None else s.to(v.dtype) for s, v in zip(sums, (weight, bias), strict=True)
    )
    return dx, dweight, dbias
