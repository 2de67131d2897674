"""Train a small pixel-space surrogate from a folder of photographs.

    python -m udp_fast.diffusion.train_surrogate IMAGES_DIR_OR_NPZ -o OUT --seed 0

writes a diffusers folder (config.json, diffusion_pytorch_model.safetensors,
scheduler_config.json) and training.json, the record of how it was made. Random 64 px crops from
an image pyramid, flipped and transposed at random; uniform timesteps; the epsilon loss; AdamW
with a cosine learning rate; the saved weights are the moving average. The random stream depends
on the seed alone; the last bits of the weights also on the thread count and the processor.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from udp_fast.diffusion.denoiser import PixelDenoiser, save_unet
from udp_fast.diffusion.schedules import NoiseSchedule
from udp_fast.ops import denoising_loss, q_sample

__all__ = ["load_pyramids", "main", "random_crops", "train"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
_BETA_START, _BETA_END = 1e-4, 0.02


def load_pyramids(
    source: Path, *, largest: int = 1024, smallest: int = 256
) -> list[list[NDArray[np.uint8]]]:
    """Read every picture as a pyramid of uint8 [H, W, 3] arrays, each level half the one before.

    A picture whose short side exceeds ``largest`` pixels is reduced to it first (area filter):
    cameras blur at full size, and the model should see sharp edges. An .npz holds ``images``
    uint8 [N, H, W, 3]; its pictures are taken as they are.
    """
    from PIL import Image

    if source.suffix == ".npz":
        with np.load(source) as archive:
            return [[np.ascontiguousarray(image)] for image in archive["images"]]
    files = sorted(p for p in source.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if not files:
        raise ValueError(f"images: expected pictures ({', '.join(sorted(_SUFFIXES))}) in {source}")
    pyramids = []
    for file in files:
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
        short = min(largest, *picture.size)
        levels = []
        while True:
            scale = short / min(picture.size)
            size = (round(picture.width * scale), round(picture.height * scale))
            reduced = picture.resize(size, Image.Resampling.BOX) if scale < 1 else picture
            levels.append(np.asarray(reduced))
            short //= 2
            if short < smallest:
                break
        pyramids.append(levels)
    return pyramids


def random_crops(
    pyramids: Sequence[Sequence[NDArray[np.uint8]]],
    *,
    count: int,
    size: int,
    rng: np.random.Generator,
) -> Tensor:
    """Draw crops as a uint8 tensor [count, 3, size, size]: picture, level and place uniform."""
    crops = np.empty((count, size, size, 3), dtype=np.uint8)
    for crop in crops:
        levels = pyramids[int(rng.integers(len(pyramids)))]
        picture = levels[int(rng.integers(len(levels)))]
        top = rng.integers(picture.shape[0] - size + 1)
        left = rng.integers(picture.shape[1] - size + 1)
        view = picture[top : top + size, left : left + size]
        if rng.integers(2):
            view = view[:, ::-1]
        if rng.integers(2):
            view = view[::-1]
        if rng.integers(2):
            view = view.transpose(1, 0, 2)
        crop[...] = view
    return torch.from_numpy(crops).permute(0, 3, 1, 2)


def train(
    pyramids: Sequence[Sequence[NDArray[np.uint8]]],
    *,
    out: Path,
    channels: Sequence[int] = (24, 48, 96),
    layers_per_block: int = 1,
    patch_size: int = 2,
    steps: int = 4800,
    batch: int = 8,
    crop: int = 64,
    learning_rate: float = 2e-3,
    ema_decay: float = 0.998,
    seed: int = 0,
    half: bool = True,
    log_every: int = 100,
) -> dict[str, Any]:
    """Train and write a surrogate; returns the record that is also written as training.json.

    Args:
        pyramids: pictures from :func:`load_pyramids`, each side of each level >= ``crop``.
        out: folder to write; made if missing, its model files replaced.
        channels: width of each resolution, multiples of 8.
        patch_size: p; the UNet sees p x p pixel blocks as 3*p*p channels.
        crop: side of the training crops in pixels, a multiple of patch_size * 2^(len(channels)-1).
        half: store the weights in float16.
    """
    from diffusers import UNet2DModel

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    schedule = NoiseSchedule.linear(beta_start=_BETA_START, beta_end=_BETA_END)
    unet = UNet2DModel(
        sample_size=crop // patch_size,
        in_channels=3 * patch_size**2,
        out_channels=3 * patch_size**2,
        block_out_channels=tuple(channels),
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
        layers_per_block=layers_per_block,
        norm_num_groups=8,
        add_attention=False,
    )
    unet = unet.to(memory_format=torch.channels_last).train()
    denoiser = PixelDenoiser(unet, schedule)
    average = copy.deepcopy(unet)
    optimiser = torch.optim.AdamW(unet.parameters(), lr=learning_rate, weight_decay=1e-2)
    warmup = min(200, steps // 10 + 1)
    table = schedule.alphas_cumprod
    started = time.monotonic()
    window: list[float] = []
    curve: list[tuple[int, float]] = []
    record: dict[str, Any] = {}
    for step in range(steps):
        rate = min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * rate
        pixels = random_crops(pyramids, count=batch, size=crop, rng=rng)
        x = pixels.float() / 127.5 - 1.0
        # One stratum of the timesteps for each image of the batch: steadier losses.
        u = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        t = (u * len(schedule)).long().clamp_(max=len(schedule) - 1)
        noise = torch.randn(x.shape, generator=generator)
        loss = denoising_loss(denoiser(q_sample(x, t, table, noise=noise), t), noise)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        decay = min(ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), unet.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        window.append(float(loss.detach()))
        last = step + 1 == steps
        if (step + 1) % log_every == 0 or last:
            curve.append((step + 1, sum(window) / len(window)))
            window.clear()
            elapsed = time.monotonic() - started
            print(f"step {step + 1}/{steps}  loss {curve[-1][1]:.4f}  {elapsed:.0f} s", flush=True)
        if (step + 1) % (5 * log_every) == 0 or last:
            record = {
                "seed": seed,
                "steps": step + 1,
                "batch": batch,
                "crop": crop,
                "learning_rate": learning_rate,
                "ema_decay": ema_decay,
                "parameters": sum(p.numel() for p in unet.parameters()),
                "seconds": round(time.monotonic() - started),
                "loss": curve,
            }
            save_unet(
                average,
                out,
                schedule_config={"beta_start": _BETA_START, "beta_end": _BETA_END},
                half=half,
            )
            (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m udp_fast.diffusion.train_surrogate",
        description="Train a small pixel-space diffusion surrogate on photographs.",
    )
    parser.add_argument("images", type=Path, help="folder of pictures, or .npz with `images`")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--channels", default="24,48,96", help="widths, comma-separated")
    parser.add_argument("--layers-per-block", type=int, default=1)
    parser.add_argument("--patch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4800)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--ema-decay", type=float, default=0.998)
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's own)")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    train(
        load_pyramids(args.images),
        out=args.out,
        channels=[int(c) for c in args.channels.split(",")],
        layers_per_block=args.layers_per_block,
        patch_size=args.patch_size,
        steps=args.steps,
        batch=args.batch,
        crop=args.crop,
        learning_rate=args.learning_rate,
        ema_decay=args.ema_decay,
        seed=args.seed,
    )


if __name__ == "__main__":
    main()
