from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from udp_fast.diffusion import NoiseSchedule


class TinyDenoiser:
    """Four weights a channel: fast, and still a function of x_t whose gradient means something."""

    prediction_type = "epsilon"
    multiple = 1

    def __init__(self) -> None:
        self.schedule = NoiseSchedule.linear()
        self.module: nn.Module = nn.Conv2d(3, 3, 3, padding=1)
        nn.init.normal_(self.module.weight, std=0.3, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(self.module.bias)

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.module(x_t)


@pytest.fixture
def tiny() -> TinyDenoiser:
    return TinyDenoiser()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _pixels(seed: int = 0, height: int = 40, width: int = 36, channels: int = 3) -> np.ndarray:
    """A smooth picture with some grain that reaches black and white."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    wave = 127 * np.sin(x / (5 + seed) + y / 9)[..., None] + 128
    grain = generator.normal(0, 12, (height, width, channels))
    return (wave + grain).clip(0, 255).astype(np.uint8)


@pytest.fixture
def pixels() -> Callable[..., np.ndarray]:
    return _pixels


@pytest.fixture
def quick() -> dict[str, int]:
    """As little work as a method can be asked for."""
    return {
        "steps": 1,
        "rounds": 1,
        "draws": 1,
        "surrogate_steps": 1,
        "surrogate_batch": 1,
        "surrogate_crop": 32,
    }


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with one photo of each kind that is read."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(_pixels(0)).save(folder / "colour.png")
    Image.fromarray(_pixels(1)).save(folder / "photo.jpg", quality=90)
    Image.fromarray(_pixels(2, channels=1)[..., 0]).save(folder / "grey.png")
    rgba = np.concatenate([_pixels(3), _pixels(4, channels=1)], axis=2)
    Image.fromarray(rgba).save(folder / "alpha.png")
    return folder
