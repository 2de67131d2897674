"""What one run is told, checked where it is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ..images import FORMATS, pixel_limit
from ..methods import METHODS, Settings
from ..ops import Budget
from ..ops.validation import is_integer

# Photographs are protected in groups that fit in memory: a group of 16 megapixels takes some
# 300 MB of images and perturbations beside the model's own needs.
DEFAULT_GROUP_PIXELS = 16_000_000
DEFAULT_SEED = 0


@dataclass(frozen=True)
class Options:
    """One run's settings; `udp_fast.protect` and the command share names and defaults.

    method        "eudp", "udp", or the controls "random" and "none"
    eps           the budget: "8/255", "8 levels", a fraction in [0, 1], or a Budget
    steps, rounds None for the method's default
    model         None for the surrogate in the package, else a folder or hub id
    seed          any integer; every random draw follows from it and from the image's pixels
    device        "auto" (the CPU), "cpu", "cuda", "cuda:1", …
    format        of the written files: png, webp (lossless) or jpeg
    overwrite     replace existing files (never an input)
    skip_existing files whose output is there already are left out, and nothing is wrong with that
    evaluate      measure the surrogate's loss on original, random noise and protected
    max_pixels    largest image decoded; None for UDP_FAST_MAX_PIXELS or 100 megapixels
    group_pixels  images protected together hold at most this many pixels (or are a single image)
    extra         further fields of methods.Settings, e.g. {"draws": 4}

    Raises TypeError or ValueError naming the argument, what came and what was expected.
    """

    method: str = "eudp"
    eps: Budget = field(default_factory=lambda: Budget.linf("8/255"))
    steps: int | None = None
    rounds: int | None = None
    model: str | None = None
    seed: int = DEFAULT_SEED
    device: str = "auto"
    format: str = "png"
    overwrite: bool = False
    skip_existing: bool = False
    evaluate: bool = True
    max_pixels: int | None = None
    group_pixels: int = DEFAULT_GROUP_PIXELS
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", Budget.linf(self.eps))
        if self.eps.levels == 0 and self.method != "none":
            raise ValueError(
                f"eps: got {self.eps}, which is less than one of 255 levels and would change nothing,"
                " expected at least 1/255"
            )
        if self.overwrite and self.skip_existing:
            raise ValueError("overwrite, skip_existing: got both, expected one of them at most")
        if self.format not in FORMATS:
            raise ValueError(f"format: got {self.format!r}, expected one of {', '.join(FORMATS)}")
        if not is_integer(self.group_pixels):
            raise TypeError(
                f"group_pixels: got {type(self.group_pixels).__name__}, expected an integer"
            )
        if self.group_pixels < 1:
            raise ValueError(f"group_pixels: got {self.group_pixels}, expected at least 1")
        object.__setattr__(self, "group_pixels", int(self.group_pixels))
        pixel_limit(self.max_pixels)
        object.__setattr__(self, "seed", self.settings().seed)
        self.torch_device()

    @property
    def needs_denoiser(self) -> bool:
        return self.evaluate or bool(METHODS[self.method].needs_denoiser)

    def settings(self) -> Settings:
        """The method's settings with this run's replacements."""
        given = {"steps": self.steps, "rounds": self.rounds}
        replaced = {name: value for name, value in given.items() if value is not None}
        return Settings.for_method(
            self.method, **{**self.extra, **replaced, "eps": self.eps, "seed": self.seed}
        )

    def torch_device(self) -> torch.device:
        """The device meant by `device`. Raises ValueError, in words, if it is not there."""
        if self.device == "auto":
            # No GPU has run the GPU kernels yet: whoever wants them says so.
            return torch.device("cpu")
        try:
            device = torch.device(self.device)
        except (RuntimeError, TypeError):
            raise ValueError(
                f"device: got {self.device!r}, expected auto, cpu, cuda or cuda:<number>"
            ) from None
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device: got {self.device!r}, expected auto, cpu or cuda")
        if device.type == "cuda":
            if torch.version.cuda is None and torch.version.hip is None:
                raise ValueError(
                    f"device: got {self.device!r}, but this torch was built without CUDA:"
                    " use cpu, or install a CUDA build of torch"
                )
            if not torch.cuda.is_available():
                raise ValueError(
                    f"device: got {self.device!r}, but torch finds no usable GPU or driver: use cpu"
                )
            if (device.index or 0) >= torch.cuda.device_count():
                raise ValueError(
                    f"device: got {self.device!r}, but there are {torch.cuda.device_count()} GPUs"
                )
        return device
