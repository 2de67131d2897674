import numpy as np
import torch

from udp_fast.diffusion import TimestepSampler
from udp_fast.methods import Settings
from udp_fast.methods.adaptation import adapt, protected_crops
from udp_fast.methods.ascent import perturbed


def test_crops_come_from_the_perturbed_images(make_items):
    items = make_items(1, 2)
    for item in items:
        item.delta.fill_(0.02)
    rng = np.random.default_rng(0)
    crops = protected_crops(items, count=6, size=16, multiple=2, rng=rng)
    assert crops.shape == (6, 3, 16, 16)
    places = torch.cat(
        [perturbed(i).unfold(1, 16, 1).unfold(2, 16, 1).flatten(1, 2) for i in items], 1
    )
    places = places.transpose(0, 1)  # every crop there is
    for crop in crops:
        both = (crop, crop.flip(2))
        assert any((places - c).abs().amax(dim=(1, 2, 3)).min() < 1e-6 for c in both)


def test_small_images_are_continued(make_items):
    rng = np.random.default_rng(0)
    crops = protected_crops(make_items(1, size=(9, 5)), count=2, size=16, multiple=2, rng=rng)
    assert crops.shape == (2, 3, 16, 16)
    assert crops.isfinite().all()


def test_training_lowers_the_loss(make_items, denoiser):
    settings = Settings(surrogate_steps=60, surrogate_batch=4, surrogate_crop=16)
    optimiser = torch.optim.AdamW(denoiser.module.parameters(), lr=1e-2)
    sampler = TimestepSampler.uniform(1000)
    losses = list(adapt(make_items(1, 2), denoiser, optimiser, sampler, settings, round_index=0))
    assert len(losses) == 60
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert not denoiser.module.training
