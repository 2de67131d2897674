"""The denoising loss of a model on images: what a protection should raise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from udp_fast.diffusion import Denoiser, TileGrid, TimestepSampler, noised_loss
from udp_fast.methods.acceleration import accelerated
from udp_fast.methods.weights import frozen
from udp_fast.ops import noise_key

__all__ = ["surrogate_loss", "tile_losses"]

#: Noise streams of the tiles start here, above those of the attack.
_TILE_STREAM = 1 << 24


def tile_losses(
    image: Tensor,  # uint8 [3, H, W]
    denoiser: Denoiser,
    *,
    seed: int,
    image_id: int,
    draws: int = 8,
    tile: int = 128,
) -> tuple[Tensor, Tensor]:
    """Denoising losses of one image, tile by tile, at stratified uniform timesteps.

    Timesteps and noise depend on (seed, image_id, size) alone, so that versions of one image are
    compared at equal draws.

    Returns:
        (t int64, loss float32), each [draws, tiles].
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image: got {image.dtype} {tuple(image.shape)}, expected uint8 [3, H, W]")
    if draws < 1:
        raise ValueError(f"draws: got {draws}, expected at least 1")
    grid = TileGrid.fit(
        image.shape[1],
        image.shape[2],
        tile=max(tile, denoiser.multiple),
        overlap=0,
        multiple=denoiser.multiple,
    )
    tiles = grid.cut(image.float() / 127.5 - 1.0)
    device = image.device
    table = denoiser.schedule.alphas_cumprod.to(device)
    sampler = TimestepSampler.uniform(len(table))
    t = sampler.stratified(len(grid), draws, seed=(seed, image_id)).to(device)
    losses = torch.empty(t.shape, device=device)
    ids, streams = [image_id] * len(grid), _TILE_STREAM + torch.arange(len(grid))
    with torch.inference_mode(), frozen(denoiser.module), accelerated(denoiser.module):
        for draw in range(draws):
            keys = noise_key(seed, ids, draw=draw, stream=streams, device=device)
            for part in grid.batches():
                losses[draw, part] = noised_loss(
                    denoiser, tiles[part], t[draw, part], table, key=keys[part], reduction="none"
                )
    return t, losses


def surrogate_loss(
    images: Sequence[Tensor],  # N uint8 [3, H, W]
    denoiser: Denoiser,
    *,
    seed: int,
    image_ids: Sequence[int],
    draws: int = 8,
    tile: int = 128,
) -> Tensor:
    """Mean denoising loss of each image, float64 [N].

    Pass an image's versions (original, random noise, protected) with the same id: they are then
    compared at equal timesteps and noise, and their differences vary far less than their losses.

    Args:
        images: uint8 [3, H, W], of any sizes.
        denoiser: the judge.
        seed, image_ids: decide timesteps and noise.
        draws: timesteps per tile, spread evenly over the schedule.
        tile: side of the evaluation tiles in pixels.
    """
    if len(images) != len(image_ids):
        raise ValueError(
            f"image_ids: got {len(image_ids)}, expected one for each of {len(images)} images"
        )
    means = [
        tile_losses(image, denoiser, seed=seed, image_id=identity, draws=draws, tile=tile)[1]
        .double()
        .mean()
        for image, identity in zip(images, image_ids, strict=True)
    ]
    return torch.stack(means) if means else torch.empty(0, dtype=torch.float64)
