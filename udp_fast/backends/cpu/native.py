"""The way from tensors to the native kernels: addresses, strides and what they cannot take."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

try:
    from udp_fast import _native
except ImportError as error:
    _module: ModuleType | None = None
    MISSING = (
        f"the native kernels are not installed ({error}); reinstall with a C++17 compiler at hand"
        " and without UDP_NO_NATIVE=1"
    )
else:
    _module = _native
    MISSING = ""

#: As csrc/cpu/ops.h numbers them; True is 1, so a bool is a uint8.
DTYPES = {
    torch.float32: 0,
    torch.float16: 1,
    torch.bfloat16: 2,
    torch.uint8: 3,
    torch.bool: 3,
}

#: Address, dtype, and strides of image, channel and pixel in elements.
Operand = tuple[int, int, int, int, int]


def module() -> ModuleType:
    """The extension; only called once `MISSING` is known to be empty."""
    assert _module is not None, MISSING
    assert isinstance(_module, ModuleType)
    return _module


@lru_cache(maxsize=256)
def image_shape(shape: torch.Size) -> tuple[int, int, int]:
    """[B, C, ...] as (images, channels, pixels); a row of [B, N] is N pixels of one channel."""
    if len(shape) < 3:
        return shape[0], 1, shape[1:].numel()
    return shape[0], shape[1], shape[2:].numel()


@lru_cache(maxsize=1024)
def strides(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Strides of image, channel and pixel, or None where the pixels have no common one."""
    first_pixel = min(2, len(shape) - 1) if len(shape) > 2 else 1
    pixel, run = 0, 1  # of the dimensions so far, last first
    for size, step in reversed(list(zip(shape[first_pixel:], stride[first_pixel:], strict=True))):
        if size == 1:
            continue
        if run == 1:
            pixel = step
        elif step != pixel * run:
            return None
        run *= size
    channel = stride[1] if len(shape) > 2 else 0
    return stride[0], channel, pixel


def operand(tensor: Tensor | None) -> tuple[Operand | None, Tensor | None]:
    """A tensor as the kernels take it, and the tensor that must stay alive meanwhile.

    That is a contiguous copy where the strides need one (a crop, say); contiguous and channels_last
    tensors, and any slice of a batch or of channels of one, are used in place.
    """
    if tensor is None:
        return None, None
    found = strides(tensor.shape, tensor.stride())
    if found is None:
        tensor = tensor.contiguous()
        found = strides(tensor.shape, tensor.stride())
        assert found is not None
    return (tensor.data_ptr(), DTYPES[tensor.dtype], *found), tensor


def image_operand(image: Tensor) -> tuple[Operand, Tensor]:
    """`operand` of a batch of this one image."""
    found = strides((1, *image.shape), (0, *image.stride()))
    if found is None:
        return image_operand(image.contiguous())
    return (image.data_ptr(), DTYPES[image.dtype], *found), image


#: Bytes from which on a result is asked for in large pages, each of 2 MB on most systems. malloc finds
#: memory anew for it whenever that was given back: always from 32 MB on, and below as the heap happens to
#: end, in one process and not in another. Where it was kept the question takes a microsecond.
_LARGE = 4 << 20


def is_large(x: Tensor) -> bool:
    return x.nbytes >= _LARGE


def fresh(x: Tensor) -> Tensor:
    """``x``, which nothing has been written to, in large pages if it has all its pages yet to find.

    A fault for each small one takes longer than what the kernels do with it.
    """
    if is_large(x):
        module().prefer_large_pages(x.data_ptr(), x.nbytes)
    return x


def fresh_like(x: Tensor) -> Tensor:
    return fresh(torch.empty_like(x))


def deliver(written: Tensor | None, output: Tensor) -> None:
    """What the kernel wrote, into the tensor that `operand` could not hand to it directly."""
    if written is not None and written is not output:
        output.copy_(written)


def per_image(value: Tensor | None) -> tuple[int, int] | None:
    """Address and stride of one number for all images (0-dim) or one each ([B])."""
    if value is None:
        return None
    return value.data_ptr(), value.stride(0) if value.dim() else 0
