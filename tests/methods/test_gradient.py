"""The gradient of one step: tiles, weights and the variance of stratified draws."""

import pytest
import torch

from udp_fast.diffusion import NoiseSchedule, TileGrid, TimestepSampler, load_denoiser
from udp_fast.methods import ImageItem, Settings
from udp_fast.methods.alternation import gradient_size
from udp_fast.methods.ascent import image_gradient, perturbed, step_grid
from udp_fast.methods.random_noise import random_signs_
from udp_fast.ops.noise import Stream


def gradient(item, denoiser, t, weight=None, tile=64, step=0):
    denoiser.module.requires_grad_(False)
    grid = TileGrid.fit(*item.original.shape[1:], tile=tile, overlap=8, multiple=2)
    if t.shape[1] != len(grid):
        t = t.expand(-1, len(grid))
    weight = torch.ones(t.shape) if weight is None else weight
    return image_gradient(
        perturbed(item), denoiser, grid, t, weight, seed=0, image_id=item.image_id, step=step
    )


def test_is_the_gradient_of_the_denoising_loss(make_items, denoiser):
    """Against the formula written out, noise included."""
    from udp_fast.methods.ascent import _TILE_STREAM
    from udp_fast.ops import noise_key, q_sample

    (item,) = make_items(1, size=(24, 24))
    t = torch.tensor([[50], [400]])
    weight = torch.tensor([[1.0], [3.0]])
    got, loss = gradient(item, denoiser, t, weight)

    x = perturbed(item)[None].requires_grad_()
    total = torch.zeros(())
    for draw in range(2):
        a = denoiser.schedule.alphas_cumprod[t[draw, 0]]
        key = noise_key(0, [1], draw=draw, step=0, stream=_TILE_STREAM)
        n = q_sample(torch.zeros_like(x), torch.zeros(1).long(), torch.zeros(1), key=key)
        error = denoiser(a.sqrt() * x + (1 - a).sqrt() * n, t[draw]) - n
        total = total + weight[draw, 0] * error.square().mean()
    (expected,) = torch.autograd.grad(total, x)
    torch.testing.assert_close(got, expected[0], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(loss, float(total.detach()) / 2, rtol=1e-4, atol=0)


def test_stratified_draws_lower_the_variance(make_items, denoiser):
    """Of the gradient over repeated steps: stratified against independent timesteps."""
    (item,) = make_items(1, size=(12, 12))
    sampler = TimestepSampler.uniform(1000)

    def variance(draw):
        steps = torch.stack(
            [
                gradient(item, denoiser, getattr(sampler, draw)(1, 4, seed=(1, i)), step=i)[0]
                for i in range(25)
            ]
        )
        return float(steps.var(dim=0).mean())

    assert variance("stratified") < 0.85 * variance("independent")


def test_gradient_size_follows_the_schedule(denoiser):
    settings = Settings(eps="8/255")
    size = gradient_size(denoiser, settings)
    snr = denoiser.schedule.alphas_cumprod / (1 - denoiser.schedule.alphas_cumprod)
    assert (size.diff() < 0).all()
    late = snr < 0.1  # far below the saturation: proportional to the signal-to-noise ratio
    torch.testing.assert_close(size[late], snr[late].double(), rtol=1e-2, atol=0)
    assert size[0] < 0.1 * snr[0]
    denoiser.prediction_type = "v_prediction"  # early as epsilon, late the target's own image
    d = 2 * settings.eps.eps
    torch.testing.assert_close(gradient_size(denoiser, settings), size + 1 / d)
    denoiser.prediction_type = "sample"
    assert torch.equal(gradient_size(denoiser, settings), torch.ones(1000).double())


def test_gradient_size_survives_extreme_schedules(denoiser):
    """alphas_cumprod of exactly one and zero, and no budget."""
    denoiser.schedule = NoiseSchedule(torch.tensor([1.0, 0.5, 0.0]))
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        denoiser.prediction_type = prediction_type
        size = gradient_size(denoiser, Settings(eps="0"))
        assert size.isfinite().all()
        assert (size > 0).all()


class Converted:
    """The shipped network, which predicts the noise, as a model of another prediction type."""

    def __init__(self, prediction_type):
        self.inner = load_denoiser()
        self.module, self.multiple = self.inner.module, self.inner.multiple
        self.schedule, self.prediction_type = self.inner.schedule, prediction_type

    def __call__(self, x_t, t):
        noise = self.inner(x_t, t)
        if self.prediction_type == "epsilon":
            return noise
        power = self.schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
        a, s = power.sqrt(), (1 - power).sqrt()
        # Where x_t is nearly all noise, dividing by a would make the image an arbitrary one; a
        # model that was trained for it stays near the mean there.
        x = (x_t - s * noise) / a / (1 + 0.02 * (s / a) ** 2)
        return x if self.prediction_type == "sample" else (a * x_t - x) / s


@pytest.mark.parametrize("law", ["udp", "eudp"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_importance_suits_the_prediction_type(law, prediction_type):
    """E |p / q * g|^2 over the timesteps, relative to the least that any proposal reaches."""
    pytest.importorskip("diffusers")
    denoiser, settings = Converted(prediction_type), Settings()
    places = torch.arange(48) / 8.0
    waves = 60 * (places[:, None].sin() + (2.3 * places).cos()) + 127
    item = ImageItem(1, waves.clamp(0, 255).to(torch.uint8).expand(3, 48, 48).clone())
    random_signs_(item, settings, stream=Stream.RANDOM_START)
    timesteps = torch.arange(10, 1000, 20)  # the middles of strata of equal chances
    squares = torch.stack(
        [
            gradient(item, denoiser, t.view(1, 1), step=int(t))[0].double().square().sum()
            for t in timesteps
        ]
    )
    p = (
        torch.ones(1000).double()
        if law == "udp"
        else denoiser.schedule.alphas_cumprod.double() ** 0.5
    )
    p = p[timesteps]

    def moment(size):
        q = p * size[timesteps] / (p * size[timesteps]).sum()
        return float((p.square() * squares / q).sum() / (p * squares.sqrt()).sum() ** 2)

    got, without = moment(gradient_size(denoiser, settings)), moment(torch.ones(1000).double())
    assert got < 2
    assert got == without if prediction_type == "sample" else got < 0.5 * without
    denoiser.prediction_type = "epsilon"
    if prediction_type != "epsilon":
        assert moment(gradient_size(denoiser, settings)) > 10 * got


def test_grid_moves_with_the_step_but_keeps_its_tiles(make_items, denoiser):
    (item,) = make_items(1)
    settings = Settings(tile=24, overlap=6)
    grids = [step_grid(item, denoiser, settings, step=s) for s in range(10)]
    assert len({g.tile_shape for g in grids}) == len({len(g) for g in grids}) == 1
    assert len({(g.rows.starts, g.columns.starts) for g in grids}) > 5
    assert step_grid(item, denoiser, settings, step=3) == grids[3]
