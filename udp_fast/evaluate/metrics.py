"""How far a protected image is from its original, as people measure images.

SSIM comes from pytorch-msssim; it and PSNR run over bands of rows here, so that a photograph of a hundred
megapixels needs no gigabytes of intermediate maps. The bands change nothing: both are means over pixels,
and each pixel's value depends on its own neighbourhood only.
"""

from __future__ import annotations

import math

import pytorch_msssim
import torch
from torch import Tensor

# Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity":
# an 11 × 11 Gaussian window, sigma 1.5, population covariance, K1 = 0.01, K2 = 0.03.
_RADIUS = 5
_BAND_PIXELS = 1 << 19


def max_abs_difference(original: Tensor, image: Tensor) -> int:
    """max|image - original| in 8-bit levels, 0 to 255; uint8 [3, H, W] both."""
    _check(original, image)
    # |a - b| = max - min stays within uint8, at a third of the memory of a signed difference.
    return int((original.maximum(image) - original.minimum(image)).max())


def psnr(original: Tensor, image: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, peak 255, over all channels; inf where nothing differs.

    Both uint8 [3, H, W]. Raises ValueError for other dtypes or shapes.
    """
    _check(original, image)
    rows = _band_rows(original)
    total = 0.0
    for top in range(0, original.shape[1], rows):
        a, b = original[:, top : top + rows], image[:, top : top + rows]
        total += float((a.double() - b.double()).square().sum())
    if total == 0:
        return math.inf
    return 10 * math.log10(255**2 * original.numel() / total)


def ssim(original: Tensor, image: Tensor) -> float:
    """Structural similarity in [-1, 1], mean over pixels and channels; 1 where nothing differs.

    Both uint8 [3, H, W], at least 11 pixels a side. Pixels nearer than 5 to the border have no full
    window and do not count. Raises ValueError for other dtypes or shapes.
    """
    _check(original, image)
    height = original.shape[1]
    if min(height, original.shape[2]) < 2 * _RADIUS + 1:
        raise ValueError(f"original: got shape {tuple(original.shape)}, expected at least 11 × 11")
    rows = _band_rows(original)
    # Its own window is float32, which is 2e-6 in the value of a clear sky.
    window = torch.linspace(-_RADIUS, _RADIUS, 2 * _RADIUS + 1, dtype=torch.float64)
    window = (window.square() / (-2 * 1.5**2)).softmax(0)
    total = 0.0
    for top in range(_RADIUS, height - _RADIUS, rows):
        bottom = min(top + rows, height - _RADIUS)
        halo = slice(top - _RADIUS, bottom + _RADIUS)
        band = pytorch_msssim.ssim(
            original[None, :, halo].double(),
            image[None, :, halo].double(),
            data_range=255,
            win=window.expand(len(original), 1, 1, -1),
            K=(0.01, 0.03),
        )
        total += float(band) * (bottom - top)
    return total / (height - 2 * _RADIUS)


def _band_rows(image: Tensor) -> int:
    return max(1, _BAND_PIXELS // int(image.shape[2]))


def _check(original: Tensor, image: Tensor) -> None:
    for name, value in (("original", original), ("image", image)):
        if str(value.dtype) != "torch.uint8" or value.ndim != 3:
            raise ValueError(
                f"{name}: got {value.dtype} {tuple(value.shape)}, expected uint8 [C, H, W]"
            )
    if original.shape != image.shape:
        raise ValueError(
            f"image: got shape {tuple(image.shape)}, expected that of original,"
            f" {tuple(original.shape)}"
        )
