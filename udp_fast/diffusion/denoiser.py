"""Denoisers: the models whose training the perturbation disturbs.

A denoiser takes a noisy image in the range [-1, 1] at timestep t and predicts the noise (or v, or
the clean image). The methods need no more than the small protocol below, so a model of any other
library joins by a few lines.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udp_fast.diffusion.schedules import NoiseSchedule

__all__ = [
    "DEFAULT_SURROGATE",
    "Denoiser",
    "PixelDenoiser",
    "load_denoiser",
    "save_unet",
]

#: Folder of the surrogate that is shipped with the package.
DEFAULT_SURROGATE = Path(__file__).parent / "surrogate"

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@runtime_checkable
class Denoiser(Protocol):
    """What the methods ask of a model.

    Attributes:
        schedule: the noise schedule it was trained with.
        prediction_type: "epsilon", "v_prediction" or "sample".
        module: the torch module whose parameters the alternation trains.
        multiple: the sides of its input must be multiples of this many pixels.
    """

    schedule: NoiseSchedule
    prediction_type: str
    module: nn.Module
    multiple: int

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """``x_t`` float [B, 3, H, W] around [-1, 1], ``t`` int64 [B]; returns the same shape."""
        ...


class PixelDenoiser:
    """A diffusers ``UNet2DModel`` in pixel space.

    The UNet has 3*p*p channels in and out: p = 1 is the usual DDPM, p > 1 sees each p x p block of
    pixels as channels (pixel unshuffle), which makes full resolution affordable on a CPU.
    """

    def __init__(
        self, unet: nn.Module, schedule: NoiseSchedule, *, prediction_type: str = "epsilon"
    ) -> None:
        config: Any = unet.config
        if prediction_type not in _PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type: expected one of {', '.join(_PREDICTION_TYPES)}, "
                f"got {prediction_type!r}"
            )
        patch = next((p for p in (1, 2, 4, 8) if 3 * p * p == config.in_channels), None)
        if patch is None or config.out_channels != config.in_channels:
            raise ValueError(
                f"unet: expected an RGB model with 3 (or 12, 48, 192: patches) channels in and "
                f"out, got {config.in_channels} in and {config.out_channels} out"
            )
        self.module = unet
        self.schedule = schedule
        self.prediction_type = prediction_type
        self.patch_size: int = patch
        self.multiple: int = patch * 2 ** (len(config.block_out_channels) - 1)

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        if x_t.ndim != 4 or x_t.shape[1] != 3:
            raise ValueError(f"x_t: got shape {tuple(x_t.shape)}, expected [B, 3, H, W]")
        if x_t.shape[2] % self.multiple or x_t.shape[3] % self.multiple:
            raise ValueError(
                f"x_t: expected height and width to be multiples of {self.multiple}, "
                f"got {x_t.shape[2]} x {x_t.shape[3]}"
            )
        if self.patch_size == 1:
            return self.module(x_t, t, return_dict=False)[0]
        patches = F.pixel_unshuffle(x_t, self.patch_size)
        patches = patches.contiguous(memory_format=torch.channels_last)
        prediction = self.module(patches, t, return_dict=False)[0]
        return F.pixel_shuffle(prediction, self.patch_size)


def load_denoiser(model: str | os.PathLike[str] | None = None) -> PixelDenoiser:
    """Load a pixel-space DDPM.

    Args:
        model: None for the surrogate shipped with the package; a local folder, either a bare UNet
            (config.json, diffusion_pytorch_model.safetensors and perhaps scheduler_config.json) or
            a DDPM pipeline (unet/, scheduler/); or a hub id such as "google/ddpm-celebahq-256",
            the only case in which anything is downloaded. Weights are read from safetensors only,
            never from pickles. Without a scheduler configuration the schedule is the DDPM default
            (1000 linear betas) and the model predicts epsilon.

    The schedule is the table of the diffusers class that the configuration names, whichever has
    one: DDPM, DDIM, PNDM, DPM-Solver, Euler, LCM and their kin, but neither score SDEs, EDM, flow
    matching nor consistency models, whose training is another. ``rescale_betas_zero_snr`` is in
    that table. What only concerns sampling (clip_sample, thresholding, Karras sigmas, spacing, …)
    has no part in training and is not read.

    Raises:
        ImportError: if diffusers, or what its scheduler class needs, is not installed.
        FileNotFoundError: if there is neither such a folder nor a plausible hub id.
        ValueError: if the folder holds no usable UNet2DModel or a schedule we cannot read.
    """
    folder = _local_folder(model)
    unet_folder = folder / "unet" if (folder / "unet" / "config.json").is_file() else folder
    config_file = unet_folder / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"model: expected config.json (or unet/config.json) in {folder}")
    try:
        config = json.loads(config_file.read_text())
    except ValueError as error:
        raise ValueError(f"model: {config_file} is no valid JSON: {error}") from error
    if config.get("_class_name") != "UNet2DModel":
        raise ValueError(
            f"model: got {config.get('_class_name')!r}, expected a UNet2DModel in {config_file}"
        )
    if not any(unet_folder.glob("*.safetensors")):
        raise ValueError(
            f"model: expected {_WEIGHTS} in {unet_folder}, found none "
            "(pickled weights are not read: convert them to safetensors)"
        )
    diffusers = _diffusers()
    try:
        unet = diffusers.UNet2DModel.from_pretrained(
            unet_folder,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
        )
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"model: cannot load the UNet in {unet_folder}: {error}") from error
    schedule, prediction_type = _read_scheduler(folder, unet_folder)
    unet = unet.eval().to(memory_format=torch.channels_last)
    return PixelDenoiser(unet, schedule, prediction_type=prediction_type)


def _local_folder(model: str | os.PathLike[str] | None) -> Path:
    if model is None:
        return DEFAULT_SURROGATE
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    # A hub id is one owner and one name; everything else was meant as a path.
    if not isinstance(model, str) or not _HUB_ID.fullmatch(model):
        raise FileNotFoundError(f"model: no such folder: {folder}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"model: {model} is no local folder, and fetching it from the hub needs "
            "huggingface_hub: pip install huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the hub client raises many kinds, network errors included
        raise FileNotFoundError(
            f"model: {model} is neither a local folder nor available from the hub: {error}"
        ) from error


def _read_scheduler(folder: Path, unet_folder: Path) -> tuple[NoiseSchedule, str]:
    for place in (unet_folder, folder / "scheduler", unet_folder.parent / "scheduler"):
        file = place / "scheduler_config.json"
        if file.is_file():
            return _schedule_of(file)
    return NoiseSchedule.linear(), "epsilon"


def _schedule_of(file: Path) -> tuple[NoiseSchedule, str]:
    expected = (
        "expected a diffusers scheduler with a table alphas_cumprod of discrete timesteps, such as "
        "DDPMScheduler or DDIMScheduler"
    )
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"model: {file} is no valid JSON: {error}") from error
    name = config.get("_class_name") if isinstance(config, dict) else None
    kind = None
    if isinstance(name, str) and name.endswith("Scheduler"):
        kind = getattr(_diffusers(), name, None)
    if kind is None:
        raise ValueError(f"model: {expected}, got _class_name {name!r} in {file}")
    try:
        # Its own class, not DDPM's: defaults differ, and so do a few tables.
        scheduler = kind.from_config(config)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(f"model: cannot read the schedule in {file}: {error}") from error
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise ValueError(f"model: {expected}, got {name} in {file}")
    # Two settings give a class that has a table to models that were trained without one.
    for setting, common in (("use_flow_sigmas", False), ("timestep_type", "discrete")):
        value = scheduler.config.get(setting, common)
        if value != common:
            raise ValueError(f"model: {expected}, got {name} with {setting}={value!r} in {file}")
    prediction_type = scheduler.config.get("prediction_type", "epsilon")
    return NoiseSchedule.from_scheduler(scheduler), prediction_type


def _diffusers() -> Any:
    """diffusers takes seconds to import and is not needed for the controls: only on demand."""
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            "this needs diffusers, which is not installed: pip install diffusers"
        ) from error
    return diffusers


def save_unet(
    unet: nn.Module, folder: Path, *, schedule_config: dict[str, float], half: bool = True
) -> None:
    """Write a UNet2DModel as a diffusers folder with its scheduler_config.json beside it."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    config = {k: v for k, v in unet.config.items() if k != "_use_default_values"}  # type: ignore[union-attr,operator]
    config["_class_name"] = "UNet2DModel"
    config.pop("_name_or_path", None)
    scheduler = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "linear",
        "prediction_type": "epsilon",
        **schedule_config,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2) + "\n")
    dtype = torch.float16 if half else torch.float32
    weights = {k: v.detach().to(dtype).contiguous() for k, v in unet.state_dict().items()}
    partial = folder / f".{_WEIGHTS}.partial"
    partial.write_bytes(save(weights, metadata={"format": "pt"}))
    os.replace(partial, folder / _WEIGHTS)
