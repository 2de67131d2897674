"""The maximisation: projected sign-gradient ascent of the denoising loss on the perturbation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from udp_fast.diffusion import Denoiser, TileGrid, noised_loss
from udp_fast.methods.items import ImageItem
from udp_fast.methods.modes import ordinary
from udp_fast.methods.settings import Settings
from udp_fast.ops import noise_key, pgd_step_

__all__ = ["ascend", "image_gradient", "perturbed", "step_grid"]

#: Noise streams of the tiles start here; lower numbers have other uses.
_TILE_STREAM = 1 << 16


def perturbed(item: ImageItem, rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
    """The image, or a window of it, as the model sees it: float32 [3, H, W] in [-1, 1]."""
    original, delta = item.original[:, rows, columns], item.delta[:, rows, columns]
    image = original.float().div_(255).add_(delta.float()).clamp_(0, 1)
    return image.mul_(2).sub_(1)


def step_grid(item: ImageItem, denoiser: Denoiser, settings: Settings, *, step: int) -> TileGrid:
    """The tiles of one step: the grid moves from step to step by up to ``settings.overlap``.

    Only the seed, the image and the step decide how far.
    """
    slack = settings.overlap
    words = [settings.seed % 2**64, item.image_id % 2**64, step]
    down, right = np.random.default_rng(words).integers(0, slack + 1, size=2).tolist()
    height, width = item.original.shape[1:]
    return TileGrid.fit(
        height,
        width,
        tile=max(settings.tile, denoiser.multiple),
        overlap=settings.overlap,
        multiple=denoiser.multiple,
        shift=(down, right),
        slack=slack,
    )


def image_gradient(
    image: Tensor,  # float32 [3, H, W]
    denoiser: Denoiser,
    grid: TileGrid,
    t: Tensor,  # int64 [draws, tiles]
    weight: Tensor,  # float32 [draws, tiles]
    *,
    seed: int,
    image_id: int,
    step: int,
) -> tuple[Tensor, float]:
    """Gradient of the denoising loss with respect to the image, tiles blended.

    Args:
        image: the perturbed image in [-1, 1].
        t: a timestep for each draw of each tile.
        weight: what the losses are multiplied by.
        seed, image_id, step: decide the noise, together with the draw and the tile.

    Returns:
        float32 [3, H, W] and the mean of the weighted losses. The first is the sum over tiles and
        draws, under the tiles' windows, of the gradient that reaches each pixel's own place in a
        tile. A pixel near the border also stands in the reflection that fills the tiles up; what
        reaches those copies is dropped (see ``TileGrid.blend``), and an overlap is weighed tile by
        tile. So it is an ascent direction, of which the sign is used, rather than a multiple of the
        loss's exact gradient: signs differ near the borders, about a tenth of all in an image of 32
        pixels a side and a fiftieth at 128.
    """
    tiles = grid.cut(image)
    device = image.device
    table = ordinary(denoiser.schedule.alphas_cumprod).to(device)
    t, weight = t.to(device), weight.to(device)
    gradient = torch.zeros_like(tiles)
    total = 0.0
    ids, streams = [image_id] * len(grid), _TILE_STREAM + torch.arange(len(grid))
    keys = [
        noise_key(seed, ids, draw=draw, step=step, stream=streams, device=device)
        for draw in range(t.shape[0])
    ]
    for part in grid.batches():
        for draw in range(t.shape[0]):
            clean = tiles[part].detach().requires_grad_()
            loss = noised_loss(
                denoiser,
                clean,
                t[draw, part],
                table,
                key=keys[draw][part],
                weight=weight[draw, part],
                reduction="sum",
            )
            (slope,) = torch.autograd.grad(loss, clean)
            gradient[part] += slope
            total += float(loss.detach())
    return grid.blend(gradient), total / t.numel()


def ascend(item: ImageItem, gradient: Tensor, settings: Settings) -> Tensor:
    """One PGD step on ``item.delta``; returns the perturbed image, float32 [3, H, W] in [-1, 1]."""
    stepped = pgd_step_(
        item.delta.unsqueeze(0),
        gradient.unsqueeze(0),
        item.original.unsqueeze(0),
        alpha=settings.step_size,
        eps=settings.eps,
        mask=item.batched_mask,
        out_range=(-1.0, 1.0),
    )
    return stepped.adv[0]
