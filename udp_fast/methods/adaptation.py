"""The minimisation: training the surrogate on the images as they are protected so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from udp_fast.diffusion import Denoiser, TileGrid, TimestepSampler, noised_loss
from udp_fast.methods.ascent import perturbed
from udp_fast.methods.items import ImageItem
from udp_fast.methods.modes import ordinary
from udp_fast.methods.settings import Settings

__all__ = ["adapt", "protected_crops"]


def protected_crops(
    items: Sequence[ImageItem], *, count: int, size: int, multiple: int, rng: np.random.Generator
) -> Tensor:
    """Random crops of the perturbed images, float32 [count, 3, size, size] in [-1, 1].

    Images are chosen with equal chances, flips too; smaller images are continued by reflection.
    """
    size = max(size // multiple, 1) * multiple
    crops = []
    for choice in rng.integers(len(items), size=count).tolist():
        item = items[choice]
        height, width = item.original.shape[1:]
        room = (max(height - size, 0), max(width - size, 0))
        top, left = (int(rng.integers(r + 1)) for r in room)
        view = perturbed(item, slice(top, top + size), slice(left, left + size))
        if view.shape[1:] != (size, size):
            grid = TileGrid.fit(*view.shape[1:], tile=size, overlap=0, multiple=size)
            view = grid.cut(view)[0]
        crops.append(view.flip(2) if rng.integers(2) else view)
    return torch.stack(crops)


@contextmanager
def _own_randomness(module: nn.Module, seed: int) -> Iterator[None]:
    """What the module draws itself (dropout) depends on ``seed``; torch's generators come back as
    they were."""
    devices = sorted({p.device for p in module.parameters() if p.is_cuda}, key=str)
    with torch.random.fork_rng(devices, device_type="cuda"):  # and the CPU's, always
        # torch.manual_seed would seed every GPU there is, those that nobody brings back as well.
        torch.default_generator.manual_seed(seed)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def adapt(
    items: Sequence[ImageItem],
    denoiser: Denoiser,
    optimiser: torch.optim.Optimizer,
    sampler: TimestepSampler,
    settings: Settings,
    *,
    round_index: int,
) -> Iterator[float]:
    """Take ``settings.surrogate_steps`` optimiser steps; yields the loss of each.

    Every draw, dropout included, depends on the seed, the round and the step alone.
    """
    module = denoiser.module
    module.train()
    device = items[0].original.device
    table = ordinary(denoiser.schedule.alphas_cumprod).to(device)
    for step in range(settings.surrogate_steps):
        words = (settings.seed % 2**64, round_index, step, 1)
        rng = np.random.default_rng(words)
        x = protected_crops(
            items,
            count=settings.surrogate_batch,
            size=settings.surrogate_crop,
            multiple=denoiser.multiple,
            rng=rng,
        )
        t = sampler.stratified(len(x), 1, seed=words)[0].to(device)
        noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32)).to(device)
        # The last draw of this step's generator. Backward is inside, since a model that checkpoints
        # its activations may draw again there; the yield is not: what the caller does is its own.
        with _own_randomness(module, int(rng.integers(2**63))):
            loss = noised_loss(denoiser, x, t, table, noise=noise)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
        optimiser.step()
        yield float(loss.detach())
    module.eval()
