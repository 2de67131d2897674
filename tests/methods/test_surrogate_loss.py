import pytest
import torch

from udp_fast.evaluate.denoising import surrogate_loss, tile_losses


def test_does_not_depend_on_the_batch(make_items, denoiser):
    images = [i.original for i in make_items(1, 2, 3)]
    together = surrogate_loss(images, denoiser, seed=0, image_ids=[1, 2, 3], draws=2)
    alone = surrogate_loss(images[1:2], denoiser, seed=0, image_ids=[2], draws=2)
    assert together.shape == (3,)
    assert together.dtype == torch.float64
    assert torch.equal(together[1:2], alone)


def test_pairs_share_timesteps_and_noise(make_items, denoiser):
    """Two versions of an image with one id: the difference is that of the images alone."""
    (item,) = make_items(1)
    brighter = item.original.clamp(max=250) + 5
    t, first = tile_losses(item.original, denoiser, seed=0, image_id=9, draws=4, tile=16)
    again, second = tile_losses(brighter, denoiser, seed=0, image_id=9, draws=4, tile=16)
    assert torch.equal(t, again)
    assert t.shape == first.shape == (4, 9)
    paired = (first - second).std()
    other = tile_losses(brighter, denoiser, seed=0, image_id=8, draws=4, tile=16)[1]
    assert paired < 0.3 * (first - other).std()


def test_timesteps_cover_the_schedule(make_items, denoiser):
    (item,) = make_items(1, size=(32, 32))
    t, _ = tile_losses(item.original, denoiser, seed=0, image_id=1, draws=5, tile=16)
    assert sorted((t // 50).flatten().tolist()) == list(range(20))  # 4 tiles, 5 draws


def test_leaves_the_model_as_it_was(make_items, denoiser):
    denoiser.module.train()
    surrogate_loss([make_items(1)[0].original], denoiser, seed=0, image_ids=[1], draws=1)
    assert denoiser.module.training
    assert all(p.requires_grad for p in denoiser.module.parameters())


def test_errors(make_items, denoiser):
    image = make_items(1)[0].original
    with pytest.raises(ValueError, match="image_ids: got 2, expected one for each of 1 images"):
        surrogate_loss([image], denoiser, seed=0, image_ids=[1, 2])
    with pytest.raises(ValueError, match=r"image: got torch.float32 .*expected uint8"):
        surrogate_loss([image.float()], denoiser, seed=0, image_ids=[1])
    with pytest.raises(ValueError, match=r"draws: .*got 0"):
        surrogate_loss([image], denoiser, seed=0, image_ids=[1], draws=0)
