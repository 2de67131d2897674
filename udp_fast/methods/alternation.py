"""The max-min alternation that UDP and EUDP share; they differ in the law of the timesteps.

    max over delta, |delta| <= eps, of min over theta of
        E_{t ~ p, n ~ N(0, I)} || n - n_theta( sqrt(a_t) m(x + delta) + sqrt(1 - a_t) n, t ) ||^2

(Zhao et al., 2023, arXiv 2306.01902), m(x) = 2 x - 1, a_t = alphas_cumprod[t].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from udp_fast.diffusion import Denoiser, TileGrid, TimestepSampler
from udp_fast.methods.acceleration import accelerated
from udp_fast.methods.adaptation import adapt
from udp_fast.methods.ascent import ascend, image_gradient, perturbed, step_grid
from udp_fast.methods.items import ImageItem, Progress, ProgressCallback
from udp_fast.methods.random_noise import random_signs_
from udp_fast.methods.settings import Settings
from udp_fast.methods.weights import frozen, preserved
from udp_fast.ops.noise import Stream

__all__ = ["alternate"]


def alternate(
    items: Sequence[ImageItem],
    denoiser: Denoiser,
    sampler: TimestepSampler,
    settings: Settings,
    on_progress: ProgressCallback | None = None,
) -> None:
    """Fill ``item.delta`` of every item in place; the denoiser's weights come back as they were.

    The outcome depends on the seed, the image ids and the set of images, not on their order: items
    are visited in the order of their ids.
    """
    items = sorted(items, key=lambda item: item.image_id)
    total = settings.rounds * (settings.surrogate_steps + settings.steps * len(items))
    done = 0

    def report(phase: str, turn: int, step: int, image_id: int | None, loss: float) -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(Progress(phase, turn, step, done, total, image_id, loss))

    for item in items:
        if settings.random_start:
            random_signs_(item, settings, stream=Stream.RANDOM_START)
        else:
            item.delta.zero_()
    ascent_sampler = sampler
    if settings.importance:
        ascent_sampler = sampler.with_importance(gradient_size(denoiser, settings))
    module = denoiser.module
    with preserved(module):
        module.requires_grad_(True)
        optimiser = torch.optim.AdamW(module.parameters(), lr=settings.surrogate_lr)
        for turn in range(settings.rounds):
            losses = adapt(items, denoiser, optimiser, sampler, settings, round_index=turn)
            for step, loss in enumerate(losses):
                report("surrogate", turn, step, None, loss)
            optimiser.zero_grad(set_to_none=True)
            plans = [
                _plan(items, denoiser, ascent_sampler, settings, step)
                for step in range(turn * settings.steps, (turn + 1) * settings.steps)
            ]
            with frozen(module), accelerated(module):
                for index, item in enumerate(items):
                    steps = [(step, *plan[index]) for step, plan in plans]
                    for count, loss in enumerate(
                        _perturb(item, denoiser, ascent_sampler, settings, steps)
                    ):
                        report("perturb", turn, count, item.image_id, loss)


def gradient_size(denoiser: Denoiser, settings: Settings) -> Tensor:
    """About how large the gradient that reaches the image is at each timestep, float64 [T].

    Up to a factor that all timesteps share. With snr = a_t / (1 - a_t), and the perturbation
    d = 2 eps in [-1, 1]:

    - epsilon: the error answers d by about sqrt(snr) * d, so the squared loss has a gradient like
      snr * d, until the noise is weaker than the perturbation itself (snr > 1 / d^2), where it
      levels off: snr / (1 + d^2 snr), in units of d.
    - v_prediction: x_t fixed, an error e of the noise is an error e / sqrt(a_t) of v, which makes
      the squared error 1 / a_t = (snr + 1) / snr times as large: the snr of epsilon becomes
      snr + 1. The 1 is what late timesteps have. There the target -sqrt(1 - a_t) * x moves with
      the image while the prediction hardly does, and the error is not d but the image, of size 1:
      in units of d this share is 1 / d.
    - sample: sqrt(1 - a_t) times the error of v. What falls towards early timesteps and what rises
      cancel, within the accuracy of this: one.
    """
    a = denoiser.schedule.alphas_cumprod.double().clamp(min=1e-12)
    if denoiser.prediction_type == "sample":
        return torch.ones_like(a)
    d_squared = max((2 * settings.eps.eps) ** 2, 1e-6)
    size = 1.0 / ((1.0 - a) / a + d_squared)
    if denoiser.prediction_type == "v_prediction":
        size = size + d_squared**-0.5
    return size


def _plan(
    items: Sequence[ImageItem],
    denoiser: Denoiser,
    sampler: TimestepSampler,
    settings: Settings,
    step: int,
) -> tuple[int, list[tuple[TileGrid, Tensor]]]:
    """One step of all images: its number and, by image, the tiles and timesteps [draws, tiles].

    Timesteps are stratified over the tiles of all images; each image takes its part.
    """
    grids = [step_grid(item, denoiser, settings, step=step) for item in items]
    t = sampler.stratified(sum(map(len, grids)), settings.draws, seed=(settings.seed, step))
    return step, list(zip(grids, t.split([len(grid) for grid in grids], dim=1), strict=True))


def _perturb(
    item: ImageItem,
    denoiser: Denoiser,
    sampler: TimestepSampler,
    settings: Settings,
    steps: Sequence[tuple[int, TileGrid, Tensor]],
) -> Iterator[float]:
    """The PGD steps of one image in one round; yields the loss before each."""
    image = perturbed(item)
    for step, grid, t in steps:
        gradient, loss = image_gradient(
            image,
            denoiser,
            grid,
            t,
            sampler.weights(t),
            seed=settings.seed,
            image_id=item.image_id,
            step=step,
        )
        image = ascend(item, gradient, settings)
        yield loss
