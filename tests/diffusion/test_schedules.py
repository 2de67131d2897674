import pytest
import torch

from udp_fast.diffusion import NoiseSchedule

diffusers = pytest.importorskip("diffusers")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (NoiseSchedule.linear, {"beta_schedule": "linear"}),
        (
            NoiseSchedule.scaled_linear,
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        ),
        (NoiseSchedule.cosine, {"beta_schedule": "squaredcos_cap_v2"}),
    ],
    ids=["linear", "scaled_linear", "cosine"],
)
@pytest.mark.parametrize("timesteps", [1000, 50])
def test_agrees_with_diffusers(ours, theirs, timesteps):
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=timesteps, **theirs)
    schedule = ours(timesteps)
    assert len(schedule) == timesteps
    torch.testing.assert_close(schedule.alphas_cumprod, scheduler.alphas_cumprod, rtol=0, atol=1e-6)


def test_from_scheduler_takes_the_very_table():
    scheduler = diffusers.DDPMScheduler(rescale_betas_zero_snr=True)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    assert torch.equal(schedule.alphas_cumprod, scheduler.alphas_cumprod.float())
    assert schedule.alphas_cumprod.dtype == torch.float32


def test_from_scheduler_names_what_has_no_table():
    with pytest.raises(TypeError, match=r"scheduler: .*alphas_cumprod.*got object"):
        NoiseSchedule.from_scheduler(object())


@pytest.mark.parametrize(
    ("table", "error", "words"),
    [
        (torch.tensor([1, 0]), TypeError, "int64"),
        (torch.ones(2, 2), ValueError, r"\(2, 2\)"),
        (torch.empty(0), ValueError, r"\(0,\)"),
        (torch.tensor([0.5, 0.6]), ValueError, "rises"),
        (torch.tensor([0.5, float("nan")]), ValueError, "NaN"),
        (torch.tensor([1.5, 0.5]), ValueError, "outside"),
    ],
    ids=["integers", "2-D", "empty", "rising", "nan", "above one"],
)
def test_refuses_what_is_no_schedule(table, error, words):
    with pytest.raises(error, match=f"alphas_cumprod: .*{words}"):
        NoiseSchedule(table)


def test_refuses_no_timesteps():
    with pytest.raises(ValueError, match=r"timesteps: .*got 0"):
        NoiseSchedule.linear(0)
