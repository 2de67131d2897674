"""geglu on csrc/cuda: one launch in either direction."""

from __future__ import annotations

from torch import Tensor

from . import native


def geglu(x: Tensor) -> Tensor:
    columns = x.shape[-1] // 2
    y = x.new_empty((*x.shape[:-1], columns))
    if y.numel() == 0:
        return y
    x = x.contiguous()
    with native.stream_of(x) as stream:
        native.module().geglu(
            (y.numel() // columns, columns),
            native.DTYPES[x.dtype],
            x.data_ptr(),
            y.data_ptr(),
            stream,
        )
    return y


def geglu_backward(grad_y: Tensor, x: Tensor) -> Tensor:
    if grad_y.dtype != x.dtype:  # both in float32, which loses nothing of either
        return geglu_backward(grad_y.float(), x.float()).to(x.dtype)
    dx = x.new_empty(x.shape)
    if x.numel() == 0:
        return dx
    grad_y, x, columns = grad_y.contiguous(), x.contiguous(), x.shape[-1] // 2
    with native.stream_of(x) as stream:
        native.module().geglu_backward(
            (grad_y.numel() // columns, columns),
            native.DTYPES[x.dtype],
            grad_y.data_ptr(),
            x.data_ptr(),
            dx.data_ptr(),
            stream,
        )
    return dx
