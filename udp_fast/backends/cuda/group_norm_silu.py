"""group_norm_silu on csrc/cuda: sums over pieces of channels, over groups, then the result.

Forward is three launches; backward is three, or two where dx is not wanted. What is neither contiguous
nor channels last is copied first, and so is a gradient that lies in another order than x.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..channel_order import dense, laid_like, shape_of, strides
from ..outputs import gradients
from . import native


def operand(x: Tensor) -> native.Operand:
    """A dense tensor as the kernels take it."""
    found = strides(x)
    assert found is not None
    return (x.data_ptr(), native.DTYPES[x.dtype], *found)


def vector(values: Tensor | None) -> tuple[int, int] | None:
    """Address and dtype of one number for each channel, of a contiguous tensor."""
    return None if values is None else (values.data_ptr(), native.DTYPES[values.dtype])


def contiguous(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.contiguous()


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
    shape, read = shape_of(x), dense(x)
    written = y if read is x else torch.empty_like(read)
    weight, bias = contiguous(weight), contiguous(bias)
    with native.stream_of(x) as stream:
        module = native.module()
        scratch = native.workspace(module.group_norm_silu_workspace(shape, num_groups), x)
        module.group_norm_silu(
            shape,
            num_groups,
            operand(read),
            vector(weight),
            vector(bias),
            eps,
            act is not None,
            operand(written),
            mean.data_ptr(),
            rstd.data_ptr(),
            scratch.data_ptr(),
            stream,
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
    found = gradients(needs, (x, weight, bias))  # of a vector it is contiguous
    if x.numel() == 0:
        for g in found:
            g.zero_()
        return found
    dx, dweight, dbias = (g if g.numel() else None for g in found)
    if any(g.numel() for g in found):
        # A gradient of another dtype than x's: both in float32, which loses nothing of either.
        shape, read = shape_of(x), dense(x if grad_y.dtype == x.dtype else x.float())
        grad = laid_like(read, grad_y)
        written = dx if dx is None or read is x else torch.empty_like(read)
        weight, bias = contiguous(weight), contiguous(bias)
        mean, rstd = mean.contiguous(), rstd.contiguous()
        with native.stream_of(x) as stream:
            module = native.module()
            scratch = native.workspace(module.group_norm_silu_workspace(shape, num_groups), x)
            module.group_norm_silu_backward(
                shape,
                num_groups,
                operand(grad),
                operand(read),
                mean.data_ptr(),
                rstd.data_ptr(),
                vector(weight),
                vector(bias),
                act is not None,
                None if written is None else operand(written),
                vector(dweight),
                vector(dbias),
                scratch.data_ptr(),
                stream,
            )
            if dx is not None:
                native.deliver(written, dx)
    return found
