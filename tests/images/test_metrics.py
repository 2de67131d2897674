"""PSNR, SSIM and max|Δ| against scikit-image on the whole image at once."""

from __future__ import annotations

import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from udp_fast.evaluate import metrics


@pytest.fixture(params=["noise", "sky"])
def pair(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(0, 256, (3, 53, 37), generator=generator, dtype=torch.uint8)
    if request.param == "sky":  # a variance that is small beside the mean's square
        a = 180 + torch.arange(53, dtype=torch.uint8)[:, None].expand(3, 53, 37).clone()
    step = torch.randint(-8, 9, a.shape, generator=generator, dtype=torch.int16)
    return a, (a.to(torch.int16) + step).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("band", [1, 37 * 4, 1 << 19])
def test_bands_change_nothing(
    pair: tuple[torch.Tensor, torch.Tensor], band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_BAND_PIXELS", band)
    a, b = pair
    whole = structural_similarity(
        a.numpy(),
        b.numpy(),
        channel_axis=0,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert metrics.ssim(a, b) == pytest.approx(whole, abs=1e-12)
    assert metrics.psnr(a, b) == pytest.approx(
        peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=255), abs=1e-9
    )


def test_extremes(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = pair
    assert metrics.psnr(a, a) == math.inf
    assert metrics.ssim(a, a) == pytest.approx(1)
    assert metrics.max_abs_difference(a, b) == 8
    black = torch.zeros_like(a)
    assert metrics.max_abs_difference(black, black + 255) == 255
    assert metrics.psnr(black, black + 255) == pytest.approx(0)


def test_bad_arguments(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = pair
    with pytest.raises(ValueError, match=r"image: got shape .*expected that of original"):
        metrics.psnr(a, b[:, :10])
    with pytest.raises(ValueError, match=r"image: got torch\.float32"):
        metrics.ssim(a, b.float())
    with pytest.raises(ValueError, match="at least 11"):
        metrics.ssim(a[:, :8], b[:, :8])
