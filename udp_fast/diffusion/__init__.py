"""Diffusion models as the methods see them: schedules, timestep samplers, denoisers, tiles."""

from udp_fast.diffusion.denoiser import (
    DEFAULT_SURROGATE,
    Denoiser,
    PixelDenoiser,
    load_denoiser,
    save_unet,
)
from udp_fast.diffusion.noised_loss import noised_loss
from udp_fast.diffusion.schedules import NoiseSchedule
from udp_fast.diffusion.tiles import TileGrid
from udp_fast.diffusion.timesteps import TimestepSampler

__all__ = [
    "DEFAULT_SURROGATE",
    "Denoiser",
    "NoiseSchedule",
    "PixelDenoiser",
    "TileGrid",
    "TimestepSampler",
    "load_denoiser",
    "noised_loss",
    "save_unet",
]
