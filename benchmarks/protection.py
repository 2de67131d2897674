"""Does the protection reach a model that it was not made for?

    python -m benchmarks.protection PHOTOS --judge MODEL [--methods eudp udp random] [--limit N]

protects the photographs with each method's default settings and the default surrogate and asks an
independently trained model (--judge, a diffusers folder; see
`python -m udp_fast.diffusion.train_surrogate`) for its denoising loss on the exact 8-bit pixels.
Compared is always with random-sign noise of the same budget: paired over the photographs, at equal
timesteps and noise, with a Student 95 % interval. The JSON file holds every figure by photograph.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from udp_fast.diffusion import Denoiser, load_denoiser
from udp_fast.evaluate.denoising import tile_losses
from udp_fast.methods import METHODS, ImageItem, Progress, Settings, protect
from udp_fast.ops import quantize

#: Upper ends of the timestep ranges whose mean losses are listed beside the overall mean.
RANGES = (10, 50, 200, 500, 1000)

CONTROLS = ("none", "random")


def load_photos(folder: Path, *, limit: int | None, size: int | None) -> dict[str, Tensor]:
    """Photographs by file name, uint8 [3, H, W]; ``size`` cuts a square from the middle."""
    from PIL import Image

    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in {".png", ".jpg", ".jpeg"})
    if limit is not None and limit < len(files):
        # Spread over the folder instead of its first files: names often group by author.
        files = [files[i] for i in np.linspace(0, len(files) - 1, limit).round().astype(int)]
    photos = {}
    for file in files:
        with Image.open(file) as opened:
            pixels = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)
        if size is not None:
            top, left = (max((side - size) // 2, 0) for side in pixels.shape[1:])
            pixels = pixels[:, top : top + size, left : left + size]
        photos[file.name] = pixels.contiguous()
    if not photos:
        raise SystemExit(f"no pictures in {folder}")
    return photos


def protected(
    photos: dict[str, Tensor], method: str, settings: Settings, *, group: int
) -> tuple[list[Tensor], float]:
    """The 8-bit pixels that a method gives, and the seconds it took."""
    items = [ImageItem(index, pixels) for index, pixels in enumerate(photos.values())]
    started = time.perf_counter()

    def show(progress: Progress) -> None:
        if progress.phase == "perturb" and progress.step == 0:
            spent = time.perf_counter() - started
            done = f"{progress.total_steps_done}/{progress.total_steps}"
            print(f"  {method}: step {done} of a group, {spent:.0f} s", flush=True)

    for first in range(0, len(items), group):
        protect(items[first : first + group], method=method, settings=settings, on_progress=show)
    seconds = time.perf_counter() - started
    written = [
        quantize(item.delta[None].float(), item.original[None], eps=settings.eps)[0]
        for item in items
    ]
    return written, seconds


def judge_losses(
    images: Sequence[Tensor], judge: Denoiser, *, draws: int, seed: int
) -> tuple[list[float], list[float]]:
    """Mean loss of each image, and the mean over all images in each range of timesteps."""
    pairs = [
        tile_losses(image, judge, seed=seed, image_id=index, draws=draws)
        for index, image in enumerate(images)
    ]
    t = torch.cat([pair[0].flatten() for pair in pairs])
    loss = torch.cat([pair[1].flatten() for pair in pairs]).double()
    lower = (0, *RANGES[:-1])
    by_range = [float(loss[(t >= a) & (t < b)].mean()) for a, b in zip(lower, RANGES, strict=True)]
    return [float(pair[1].double().mean()) for pair in pairs], by_range


def paired(values: Sequence[float], control: Sequence[float]) -> dict[str, float]:
    """Mean paired difference with its Student 95 % interval, and how many pairs are above zero."""
    difference = np.asarray(values) - np.asarray(control)
    count = len(difference)
    mean = float(difference.mean())
    margin = math.nan
    if count > 1:
        margin = float(stats.t.ppf(0.975, count - 1) * difference.std(ddof=1) / math.sqrt(count))
    return {
        "mean": mean,
        "low": mean - margin,
        "high": mean + margin,
        "above_zero": int((difference > 0).sum()),
        "pairs": count,
    }


def print_table(results: dict[str, Any], *, photos: int, eps: str) -> None:
    """The methods by row: loss, loss by timestep range, largest change, time, gain over random."""
    print(f"\nJudge's denoising loss, {photos} photographs, eps {eps}")
    ranges = "".join(f"{f't<{b}':>9}" for b in RANGES)
    print(f"{'method':8}{'loss':>9}{ranges}{'max|d|':>8}{'s/image':>9}  over random [95 %]")
    for method, row in results.items():
        line = f"{method:8}{np.mean(row['losses']):9.5f}"
        line += "".join(f"{value:9.4f}" for value in row["by_range"])
        line += f"{row['largest_change']:8d}{row['seconds'] / photos:9.1f}"
        if "over_random" in row:
            o = row["over_random"]
            line += f"  {o['mean']:+.5f} [{o['low']:+.5f}, {o['high']:+.5f}]"
            line += f"  {o['above_zero']}/{o['pairs']} above zero"
        print(line)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.protection",
        description="Judge protected photographs by a model that took no part in protecting them.",
    )
    parser.add_argument("photos", type=Path, help="folder of photographs")
    parser.add_argument("--judge", required=True, help="folder of the independent model")
    parser.add_argument("--methods", nargs="+", default=["eudp", "udp"], choices=list(METHODS))
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--limit", type=int, help="only so many photographs")
    parser.add_argument("--size", type=int, help="only the middle square of so many pixels")
    parser.add_argument("--group", type=int, default=4, help="photographs protected together")
    parser.add_argument("--draws", type=int, default=16, help="judge's timesteps per tile")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)

    photos = load_photos(args.photos, limit=args.limit, size=args.size)
    judge = load_denoiser(args.judge)
    results: dict[str, Any] = {}
    for method in dict.fromkeys([*CONTROLS, *args.methods]):
        settings = Settings.for_method(method, eps=args.eps, seed=args.seed)
        images, seconds = protected(photos, method, settings, group=args.group)
        losses, by_range = judge_losses(images, judge, draws=args.draws, seed=args.seed)
        changes = [
            int((new.int() - old.int()).abs().max())
            for new, old in zip(images, photos.values(), strict=True)
        ]
        results[method] = {
            "losses": losses,
            "by_range": by_range,
            "largest_change": max(changes),
            "seconds": seconds,
        }
        if method not in CONTROLS:
            results[method]["over_random"] = paired(losses, results["random"]["losses"])
    print_table(results, photos=len(photos), eps=args.eps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak:.2f} GiB")
    if args.json:
        record = {
            "photos": list(photos),
            "judge": str(args.judge),
            "eps": args.eps,
            "seed": args.seed,
            "draws": args.draws,
            "group": args.group,
            "ranges": RANGES,
            "peak_gib": peak,
            "methods": results,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
