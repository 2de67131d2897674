import json
import subprocess
import sys

import pytest
import torch

from udp_fast.diffusion import (
    DEFAULT_SURROGATE,
    Denoiser,
    NoiseSchedule,
    PixelDenoiser,
    load_denoiser,
    save_unet,
)

diffusers = pytest.importorskip("diffusers")

T = torch.tensor([10, 900])


def same_prediction(denoiser, unet, size=16):
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = unet(x, T).sample
        return torch.allclose(denoiser(x, T), expected, atol=1e-5)


def test_bare_folder_without_a_scheduler_is_ddpm(tmp_path, tiny_unet):
    unet = tiny_unet()
    unet.save_pretrained(tmp_path)
    denoiser = load_denoiser(tmp_path)
    assert isinstance(denoiser, Denoiser)
    assert same_prediction(denoiser, unet)
    assert torch.equal(denoiser.schedule.alphas_cumprod, NoiseSchedule.linear().alphas_cumprod)
    assert (denoiser.prediction_type, denoiser.multiple) == ("epsilon", 2)
    assert not denoiser.module.training


def test_scheduler_beside_the_unet_is_read(tmp_path, tiny_unet):
    tiny_unet().save_pretrained(tmp_path)
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=50, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    )
    scheduler.save_config(tmp_path)
    denoiser = load_denoiser(str(tmp_path))
    assert denoiser.prediction_type == "v_prediction"
    assert torch.equal(denoiser.schedule.alphas_cumprod, scheduler.alphas_cumprod)


@pytest.mark.parametrize("inner", [False, True], ids=["pipeline folder", "its unet folder"])
def test_pipeline_folder(tmp_path, tiny_unet, inner):
    unet = tiny_unet()
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule="scaled_linear")
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path)
    denoiser = load_denoiser(tmp_path / "unet" if inner else tmp_path)
    assert same_prediction(denoiser, unet)
    assert torch.equal(denoiser.schedule.alphas_cumprod, scheduler.alphas_cumprod)


WITH_A_TABLE = [
    "DDPM",
    "DDPMParallel",
    "DDIM",
    "DDIMInverse",
    "DDIMParallel",
    "PNDM",
    "LMSDiscrete",
    "HeunDiscrete",
    "KDPM2Discrete",
    "KDPM2AncestralDiscrete",
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "DPMSolverMultistep",
    "DPMSolverMultistepInverse",
    "DPMSolverSinglestep",
    "DEISMultistep",
    "UniPCMultistep",
    "SASolver",
    "LCM",
    "TCD",
]


def save_scheduler(folder, name, **settings):
    kind = getattr(diffusers, f"{name}Scheduler")
    try:
        kind(**settings).save_config(folder)
    except ImportError as error:  # a class that wants scipy, say
        pytest.skip(str(error))


@pytest.mark.parametrize("name", WITH_A_TABLE)
def test_schedulers_with_a_table_are_read(tmp_path, tiny_unet, name):
    tiny_unet().save_pretrained(tmp_path)
    settings = {"num_train_timesteps": 50, "beta_schedule": "scaled_linear", "beta_end": 0.2}
    save_scheduler(tmp_path, name, beta_start=0.01, **settings)
    expected = NoiseSchedule.scaled_linear(50, beta_start=0.01, beta_end=0.2)
    got = load_denoiser(tmp_path)
    torch.testing.assert_close(got.schedule.alphas_cumprod, expected.alphas_cumprod)
    assert got.prediction_type == "epsilon"


def test_a_setting_that_is_not_written_is_the_classs_own(tmp_path, tiny_unet):
    tiny_unet().save_pretrained(tmp_path)
    config = {"_class_name": "LCMScheduler"}  # scaled linear betas by default, unlike DDPM's
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    expected = NoiseSchedule.scaled_linear().alphas_cumprod
    torch.testing.assert_close(load_denoiser(tmp_path).schedule.alphas_cumprod, expected)


@pytest.mark.parametrize(
    "name",
    [
        "ScoreSdeVe",
        "EDMEuler",
        "EDMDPMSolverMultistep",
        "FlowMatchEulerDiscrete",
        "CMStochasticIterative",
        "IPNDM",
    ],
)
@pytest.mark.parametrize("converted", [False, True], ids=["own", "converted from DDPM"])
def test_schedulers_without_a_table_are_refused(tmp_path, tiny_unet, name, converted):
    tiny_unet().save_pretrained(tmp_path)
    kind = getattr(diffusers, f"{name}Scheduler")
    scheduler = kind()
    if converted:  # its configuration then still holds DDPM's betas
        scheduler = kind.from_config(diffusers.DDPMScheduler().config)
    scheduler.save_config(tmp_path)
    with pytest.raises(ValueError, match=rf"expected .*alphas_cumprod.*got {name}Scheduler in "):
        load_denoiser(tmp_path)


@pytest.mark.parametrize("name", [None, "MyScheduler", "UNet2DModel", 3], ids=str)
def test_unknown_schedulers_are_refused(tmp_path, tiny_unet, name):
    tiny_unet().save_pretrained(tmp_path)
    config = {"beta_schedule": "linear"} | ({} if name is None else {"_class_name": name})
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=f"expected a diffusers scheduler.*got _class_name {name!r}"
    ):
        load_denoiser(tmp_path)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("DPMSolverMultistep", {"use_flow_sigmas": True}),
        ("EulerDiscrete", {"timestep_type": "continuous"}),
    ],
    ids=["flow", "continuous time"],
)
def test_settings_for_models_without_a_table_are_refused(tmp_path, tiny_unet, name, setting):
    tiny_unet().save_pretrained(tmp_path)
    save_scheduler(tmp_path, name, **setting)
    ((key, value),) = setting.items()
    with pytest.raises(ValueError, match=f"got {name}Scheduler with {key}={value!r}"):
        load_denoiser(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]"], ids=["broken", "no mapping"])
def test_scheduler_configuration_that_is_none(tmp_path, tiny_unet, text):
    tiny_unet().save_pretrained(tmp_path)
    (tmp_path / "scheduler_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"model: .*scheduler_config\.json"):
        load_denoiser(tmp_path)


def test_zero_terminal_snr_is_in_the_table_and_clipping_has_no_part(tmp_path, tiny_unet):
    tiny_unet().save_pretrained(tmp_path)
    plain = NoiseSchedule.linear().alphas_cumprod
    settings = {"clip_sample": True, "clip_sample_range": 0.5, "thresholding": True}
    save_scheduler(tmp_path, "DDPM", **settings)
    torch.testing.assert_close(load_denoiser(tmp_path).schedule.alphas_cumprod, plain)
    save_scheduler(tmp_path, "DDPM", rescale_betas_zero_snr=True)
    table = load_denoiser(tmp_path).schedule.alphas_cumprod
    assert table[-1] == 0
    expected = diffusers.DDPMScheduler(rescale_betas_zero_snr=True).alphas_cumprod
    assert torch.equal(table, expected)


def test_half_precision_weights_load_as_float32(tmp_path, tiny_unet):
    unet = tiny_unet()
    save_unet(unet, tmp_path, schedule_config={"beta_start": 1e-4, "beta_end": 0.02}, half=True)
    denoiser = load_denoiser(tmp_path)
    loaded, original = next(denoiser.module.parameters()), next(unet.parameters())
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, original.half().float())


def test_patches(tiny_unet):
    """A UNet of 12 channels sees 2 x 2 pixel blocks; the way there and back loses nothing."""

    class Identity(torch.nn.Module):
        config = tiny_unet(12).config

        def forward(self, x, t, return_dict):
            self.seen = x.shape
            return (x,)

    identity = Identity()
    denoiser = PixelDenoiser(identity, NoiseSchedule.linear())
    x = torch.randn(2, 3, 16, 24)
    assert torch.equal(denoiser(x, T), x)
    assert identity.seen == (2, 12, 8, 12)
    assert denoiser.multiple == 4


def test_wrong_input_shapes_are_named(tiny_unet):
    denoiser = PixelDenoiser(tiny_unet(12), NoiseSchedule.linear())
    with pytest.raises(ValueError, match=r"x_t: .*multiples of 4, got 16 x 18"):
        denoiser(torch.zeros(2, 3, 16, 18), T)
    with pytest.raises(
        ValueError, match=r"x_t: got shape \(2, 1, 16, 16\), expected \[B, 3, H, W\]"
    ):
        denoiser(torch.zeros(2, 1, 16, 16), T)


def test_model_must_be_rgb_and_of_a_known_prediction(tiny_unet):
    with pytest.raises(ValueError, match=r"unet: expected an RGB model.*got 1 in and 1 out"):
        PixelDenoiser(tiny_unet(1), NoiseSchedule.linear())
    with pytest.raises(ValueError, match=r"prediction_type: .*got 'flow'"):
        PixelDenoiser(tiny_unet(), NoiseSchedule.linear(), prediction_type="flow")


def test_missing_folder():
    with pytest.raises(FileNotFoundError, match="no such folder: /nowhere/at/all"):
        load_denoiser("/nowhere/at/all")


def test_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model: expected config\.json"):
        load_denoiser(tmp_path)


def test_other_model_class(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(ValueError, match=r"got 'UNet2DConditionModel', expected a UNet2DModel"):
        load_denoiser(tmp_path)


def test_broken_configuration(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no valid JSON"):
        load_denoiser(tmp_path)


def test_pickled_weights_are_refused(tmp_path, tiny_unet):
    tiny_unet().save_pretrained(tmp_path, safe_serialization=False)
    assert list(tmp_path.glob("*.bin"))
    with pytest.raises(ValueError, match=r"expected diffusion_pytorch_model\.safetensors"):
        load_denoiser(tmp_path)


def test_truncated_weights(tmp_path, tiny_unet):
    tiny_unet().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot load the UNet"):
        load_denoiser(tmp_path)


def test_hub_id_that_cannot_be_fetched(monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise ConnectionError("no network here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match=r"someone/model is neither.*no network here"):
        load_denoiser("someone/model")


def test_hub_download_asks_for_safetensors_only(monkeypatch, tmp_path, tiny_unet):
    import huggingface_hub

    tiny_unet().save_pretrained(tmp_path)
    asked = {}

    def fetch(repo, **kwargs):
        asked.update(kwargs, repo=repo)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert load_denoiser("someone/model").multiple == 2
    assert asked == {"repo": "someone/model", "allow_patterns": ["*.json", "*.safetensors"]}


def test_default_surrogate_is_small_and_denoises():
    """The shipped model predicts the noise on a smooth picture far better than "no noise" does."""
    assert (DEFAULT_SURROGATE / "diffusion_pytorch_model.safetensors").stat().st_size <= 4e6
    denoiser = load_denoiser()
    ramp = torch.linspace(-0.8, 0.8, 64).expand(1, 3, 64, 64)
    table = denoiser.schedule.alphas_cumprod
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for t, bound in ((100, 0.2), (400, 0.05), (900, 0.05)):
        a = table[t]
        with torch.no_grad():
            error = denoiser(a.sqrt() * ramp + (1 - a).sqrt() * noise, torch.tensor([t])) - noise
        assert error.square().mean() < bound  # predicting zero scores 1


def test_importing_does_not_import_diffusers():
    code = "import sys, udp_fast.diffusion, udp_fast.methods; print('diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
