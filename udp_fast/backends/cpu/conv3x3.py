"""conv3x3 on csrc/cpu: Winograd's F(4x4, 3x3), the taps transformed anew in every call."""

from __future__ import annotations

import torch
from torch import Tensor

from .native import fresh, module

#: Fewer channels than this are a bad use of tiles and of vectors of output channels.
LEAST_CHANNELS = 24


#: With fewer 4×4 tiles than this the transform of the weights costs more than it saves.
LEAST_TILES = 4


def not_supported_reasons(x: Tensor, weight: Tensor) -> list[str]:
    """Why not this call; ``x`` and ``weight`` of either op."""
    for name, tensor in (("the input", x), ("the weight", weight)):
        if not tensor.is_cpu:
            return [f"{name} is on {tensor.device}, not in the processor's memory"]
        if tensor.dtype != torch.float32:
            return [f"{name} is {tensor.dtype}; only float32 is served"]
    reasons = []
    if x.stride(1) != 1:
        reasons.append("the input's channels do not lie side by side (channels_last)")
    least = min(weight.shape[:2])
    if least < LEAST_CHANNELS:
        reasons.append(f"{least} channels: torch is faster below {LEAST_CHANNELS}")
    images, _, height, width = x.shape
    tiles = images * -(-height // 4) * -(-width // 4)
    if tiles < LEAST_TILES:
        reasons.append(f"{tiles} tiles of 4×4 pixels: torch is faster below {LEAST_TILES}")
    elif 36 * tiles >= 9 * images * height * width:
        reasons.append(f"4×4 tiles save no multiplication for {height}×{width} pixels")
    if module().isa() == "baseline":
        reasons.append("the baseline instruction set has no fused multiply-add")
    return reasons


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    weight = weight.contiguous()
    return _convolve(x, weight, weight.shape[0], weight.stride()[:2], False, bias)


def conv3x3_dx(grad: Tensor, weight: Tensor) -> Tensor:
    # dL/dx is the convolution of dL/dy with the taps reversed and the channels' roles exchanged.
    weight = weight.contiguous()
    return _convolve(grad, weight, weight.shape[1], weight.stride()[1::-1], True, None)


def _convolve(
    x: Tensor,
    weight: Tensor,
    out: int,
    strides: tuple[int, ...],
    flipped: bool,
    bias: Tensor | None,
) -> Tensor:
    images, channels, height, width = x.shape
    shape = (images, out, height, width)
    y = fresh(torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last))
    if y.numel() == 0:
        return y
    if bias is not None:
        bias = bias.contiguous()
    module().conv3x3(
        (images, height, width, channels, out),
        x.data_ptr(),
        weight.data_ptr(),
        (x.stride(0), x.stride(2), x.stride(3)),
        strides,
        flipped,
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y
