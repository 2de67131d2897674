"""The whole run as one JSON file: enough to check every output, and to do it again."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Collection
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..diffusion import Denoiser
from ..images import publish_bytes
from .options import Options
from .results import RunResult

NAME = "manifest.json"
_SCHEMAS = "udp_fast.manifest/"
SCHEMA = f"{_SCHEMAS}1"
_PACKAGES = ("torch", "numpy", "diffusers", "pillow", "pytorch-msssim", "safetensors")


class Manifest:
    """Collects what a run is, and writes it anew whenever more of it is done.

    `targets` are the files that the run is to write. With `options.overwrite` an earlier manifest is
    replaced if it lists no file but these, so that no record of a file that stays is lost.
    """

    def __init__(
        self,
        folder: Path,
        options: Options,
        *,
        targets: Collection[Path],
        command: list[str] | None = None,
        denoiser: Denoiser | None = None,
    ) -> None:
        self.path = _free_name(folder, set(targets) if options.overwrite else None)
        # A name that is free now may be taken before the first write; after it, it is ours.
        self._replace = os.path.lexists(self.path)
        self._head = {
            "schema": SCHEMA,
            "started": _now(),
            "command": command,
            "settings": describe_options(options),
            "surrogate": describe_denoiser(options, denoiser),
            "versions": versions(),
            "device": str(options.torch_device()),
            "threads": torch.get_num_threads(),
            "backends": backends_in_use(options.torch_device()),
        }

    def write(self, result: RunResult, status: str, timings: dict[str, float]) -> None:
        """Replace the file by one that describes `result`; it is whole at every moment."""
        base = self.path.parent
        content = {
            **self._head,
            "status": status,
            "updated": _now(),
            "seconds": {name: round(value, 3) for name, value in timings.items()},
            "counts": {
                name: sum(image.status.value == name for image in result.images)
                for name in ("protected", "failed", "skipped", "interrupted")
            },
            "notes": result.notes,
            "images": [_row(dataclasses.asdict(image), base) for image in result.images],
        }
        text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        data = text.encode(errors="backslashreplace")  # names may hold bytes that are no text
        publish_bytes(self.path, data, overwrite=self._replace)
        self._replace = True


def describe_options(options: Options) -> dict[str, Any]:
    """Every setting that shaped the outcome, defaults included."""
    settings = dataclasses.asdict(options.settings())
    settings["eps"] = str(options.eps)
    return {
        "method": options.method,
        **settings,
        "alpha": options.settings().step_size,
        "levels": options.eps.levels,
        "format": options.format,
        "overwrite": options.overwrite,
        "skip_existing": options.skip_existing,
        "evaluate": options.evaluate,
        "group_pixels": options.group_pixels,
    }


def describe_denoiser(options: Options, denoiser: Denoiser | None) -> dict[str, Any] | None:
    """The surrogate by name and by a hash of its weights (names, shapes and bytes)."""
    if denoiser is None:
        return None
    digest = hashlib.sha256()
    for name, weight in sorted(denoiser.module.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        flat = weight.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return {
        "model": options.model or "built-in",
        "weights_sha256": digest.hexdigest(),
        "prediction_type": denoiser.prediction_type,
    }


def versions() -> dict[str, str]:
    """udp_fast, Python, and the libraries that take part."""
    found = {"udp_fast": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def backends_in_use(device: torch.device) -> dict[str, str]:
    """Which backend serves each op on `device`, asked with a photograph's dtypes and layout.

    Raises ValueError, in words, where a variable of the environment names a backend or an instruction
    set that there is not, or pins what cannot serve an op: each image of a run would fail of it.
    """
    from ..backends.registry import backend
    from ..explain import explain
    from ..ops import noise_key

    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=device)
    delta = torch.zeros(pixels.shape, dtype=torch.float16, device=device)
    image = torch.zeros(pixels.shape, device=device)
    t = torch.zeros(1, dtype=torch.int64, device=device)
    table = torch.ones(1, device=device)
    key = noise_key(0, [0], device=device)
    asked = {
        "pgd_step_": explain("pgd_step_", delta, image, pixels, alpha=0.0, eps=0.0),
        "q_sample": explain("q_sample", image, t, table, key=key),
        "denoising_loss": explain("denoising_loss", image, key=key),
        "quantize": explain("quantize", delta, pixels, eps=0.0),
    }
    chosen = {}
    for op, answer in asked.items():
        if answer.chosen is None:
            reasons = [
                f"{c.backend}: {'; '.join(c.reasons)}" for c in answer.candidates if c.reasons
            ]
            raise ValueError("\n  ".join([answer.error or f"{op}: no backend serves it", *reasons]))
        backend(answer.chosen).variant()  # looks up the instruction set
        chosen[op] = answer.chosen
    return chosen


def _row(image: dict[str, Any], base: Path) -> dict[str, Any]:
    if image["output"] is not None:
        output = Path(image["output"])
        # Relative to the manifest: the folder can be moved as a whole.
        image["output"] = output.relative_to(base).as_posix()
    image["status"] = image["status"].value
    if image["image_id"] is not None:
        image["image_id"] = f"{image['image_id'] & (1 << 64) - 1:016x}"
    return image


def _plain(value: Any) -> Any:
    """JSON knows no infinity: the PSNR of an unchanged image is written as "inf"."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _free_name(folder: Path, replaced: set[Path] | None) -> Path:
    """The first name that is free, or whose manifest lists none but the `replaced` files."""
    path, number = folder / NAME, 2
    while os.path.lexists(path) and (replaced is None or not _is_covered(path, replaced)):
        path = folder / f"{Path(NAME).stem}-{number}.json"
        number += 1
    return path


def _is_covered(path: Path, replaced: set[Path]) -> bool:
    """Whether this is a manifest of ours, and each output that it lists is among `replaced`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not found["schema"].startswith(_SCHEMAS):
            return False
        outputs = [row["output"] for row in found["images"]]
        return replaced.issuperset(path.parent / name for name in outputs if name is not None)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False  # somebody else's file, of whatever form


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
