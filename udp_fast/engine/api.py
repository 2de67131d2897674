"""`udp_fast.protect`: the command, for programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ..diffusion import Denoiser, load_denoiser
from ..images import FORMATS, ImageError, Photo
from ..methods.modes import own_modes
from ..ops import Budget
from .memory import InMemory, accept
from .options import DEFAULT_GROUP_PIXELS, DEFAULT_SEED, Options
from .plan import PlanError, Task, check_out, plan_files, unused_masks
from .results import ProgressCallback, RunResult, Status
from .run import run


class Protected(NamedTuple):
    """What `protect` returns.

    images  in the shape of the input: one for one, a list for a list; files give the paths of
            their outputs (None where a file failed), a folder a list of paths
    result  the table (`print(result)`) and each image's figures
    """

    images: Any
    result: RunResult


@own_modes()
def protect(
    images: Any,
    *,
    out: str | os.PathLike[str] | None = None,
    method: str = "eudp",
    eps: Budget | str | float = "8/255",
    steps: int | None = None,
    rounds: int | None = None,
    model: str | os.PathLike[str] | Denoiser | None = None,
    seed: int = DEFAULT_SEED,
    device: str = "auto",
    mask: Any = None,
    format: str = "png",
    overwrite: bool = False,
    skip_existing: bool = False,
    recursive: bool = False,
    evaluate: bool = True,
    max_pixels: int | None = None,
    group_pixels: int = DEFAULT_GROUP_PIXELS,
    on_progress: ProgressCallback | None = None,
    **settings: Any,
) -> Protected:
    """Protect images and return them as what they came as.

    Args:
        images: one of, or a list mixing: a file or folder (str or Path; needs `out`); a PIL image;
            a numpy array [H, W], [H, W, C] or [B, H, W, C]; a torch tensor [H, W], [C, H, W] or
            [B, C, H, W]. C = 1 (grey), 3, or 4 (alpha, kept). uint8, or floating point in [0, 1],
            which is protected on the 8-bit grid: the change is a whole number of 1/255 steps, so
            that it survives being written as 8 bits.
        out: folder for files and manifest.json; images from memory go there too, by number.
        method: "eudp", "udp", or the controls "random" (random signs) and "none".
        eps: budget: "8/255", "8 levels", a fraction in [0, 1], a Budget.
        steps, rounds: of the method; None for its defaults.
        model: None for the surrogate in the package; a folder or hub id; or a Denoiser.
        seed: every random draw follows from it and the image's pixels. Equal results need the same
            set of images as well, which adapt one surrogate together.
        device: "auto" (the CPU: no GPU has run the GPU kernels yet), "cpu", "cuda", …
        mask: where an image may change. A folder of greyscale PNGs (files only), or one mask [H, W]
            (PIL, numpy, torch; >= half protects) for all, or a list of masks and None, one for each
            input.
        format, overwrite, recursive: of and for files, as in the command.
        skip_existing: files whose output is in `out` already, from whatever run, are left out; its
            path is returned. Not together with `overwrite`.
        evaluate: measure the surrogate's losses (takes about a tenth of the time).
        max_pixels: largest file decoded.
        group_pixels: images are protected in groups of at most so many pixels; each group adapts
            its own surrogate.
        on_progress: called with a `RunProgress`; may raise KeyboardInterrupt to stop.
        settings: further fields of `udp_fast.methods.Settings`, e.g. draws=4.

    What the caller's torch.no_grad(), torch.inference_mode() or autocast would change does not
    change: gradients are computed, in float32, and equal calls give equal bytes.

    Raises:
        TypeError, ValueError: an argument makes no sense; it names the argument.
        FileNotFoundError, ImportError: `model` names a folder that is not there, or needs a package
            that is not.
        OSError: the output folder cannot be made or written to.
        ImageError: an image from memory cannot be protected. Files do not raise: see `result`.
        KeyboardInterrupt: after Ctrl-C, once whole files and the manifest are on the disk.
    """
    if not (model is None or isinstance(model, (str, os.PathLike, Denoiser))):
        raise TypeError(
            f"model: got {type(model).__name__}, expected None, a folder, a hub id or a Denoiser"
            " (udp_fast.diffusion.PixelDenoiser(unet, schedule) makes one of a UNet2DModel)"
        )
    denoiser = None if isinstance(model, (str, os.PathLike)) else model
    options = Options(
        method=method,
        eps=Budget.linf(eps),
        steps=steps,
        rounds=rounds,
        model=os.fspath(model) if isinstance(model, (str, os.PathLike)) else _name_of(denoiser),
        seed=seed,
        device=device,
        format=format,
        overwrite=overwrite,
        skip_existing=skip_existing,
        evaluate=evaluate,
        max_pixels=max_pixels,
        group_pixels=group_pixels,
        extra=settings,
    )
    single = not isinstance(images, (list, tuple))
    inputs = [images] if single else list(images)
    if not inputs:
        raise ValueError("images: got an empty list, expected at least one image")
    folder = None if out is None else Path(out)
    mask_folder = Path(mask) if isinstance(mask, (str, os.PathLike)) else None
    tasks, memory = _plan(
        inputs, folder, options, None if mask_folder else mask, mask_folder, recursive, single
    )

    if denoiser is None and options.needs_denoiser:
        denoiser = load_denoiser(options.model)
    if denoiser is not None:
        denoiser.module.to(options.torch_device())

    colours: dict[int, Tensor] = {}

    def keep(index: int, photo: Photo, colour: Tensor) -> None:
        if tasks[index].argument in memory:
            colours[index] = colour

    result = run(
        tasks,
        options,
        denoiser,
        manifest_folder=folder,
        notes=unused_masks(mask_folder, tasks, recursive=recursive),
        on_progress=on_progress,
        on_protected=keep,
    )
    if result.interrupted:
        raise KeyboardInterrupt
    outputs = [
        _output(argument, value, tasks, result, memory, colours)
        for argument, value in enumerate(inputs)
    ]
    return Protected(outputs[0] if single else outputs, result)


def _name_of(denoiser: Denoiser | None) -> str | None:
    return None if denoiser is None else type(denoiser).__name__


def _plan(
    inputs: list[Any],
    out: Path | None,
    options: Options,
    mask: Any,
    mask_folder: Path | None,
    recursive: bool,
    single: bool,
) -> tuple[list[Task], dict[int, InMemory]]:
    """Tasks in the order of the inputs, and the inputs that came from memory."""
    files = {i: Path(v) for i, v in enumerate(inputs) if isinstance(v, (str, os.PathLike))}
    if files and out is None:
        raise ValueError(f"out: got None, expected a folder to write {files[min(files)]} to")
    if mask_folder is not None and len(files) < len(inputs):
        raise ValueError(f"mask: got the folder {mask_folder}, expected masks for images in memory")
    if out is not None:
        check_out(out)
    mask_of = _mask_chooser(mask, len(inputs), single)

    tasks: list[Task] = []
    if files:
        assert out is not None
        order = list(files)
        planned = plan_files(
            list(files.values()), out, options, recursive=recursive, mask=mask_folder
        )
        for task in planned:
            argument = order[task.argument]
            chosen = task.mask if mask_folder is not None else mask_of(argument, 0)
            tasks.append(replace(task, argument=argument, mask=chosen))
    memory: dict[int, InMemory] = {}
    number = 0
    taken = {task.target for task in tasks}
    for argument, value in enumerate(inputs):
        if argument in files:
            continue
        memory[argument] = accept(value, "image" if single else f"image {argument}")
        for place, photo in enumerate(memory[argument].photos):
            number += 1
            target = None
            if out is not None:
                target = out / f"image-{number:04d}{FORMATS[options.format]}"
                if target in taken or (os.path.lexists(target) and not options.overwrite):
                    raise PlanError(f"out: {target} exists already (overwrite=True replaces it)")
            tasks.append(
                Task(
                    argument,
                    photo.path,
                    target,
                    photo=photo,
                    mask=mask_of(argument, place),
                    height=photo.height,
                    width=photo.width,
                )
            )
    tasks.sort(key=lambda task: task.argument)  # stable: a folder's files stay in their order
    return tasks, memory


def _mask_chooser(mask: Any, count: int, single: bool) -> Callable[[int, int], Any]:
    """(which input, which image of it) -> its mask."""
    if not isinstance(mask, (list, tuple)):
        if mask is not None and not isinstance(mask, (Image.Image, np.ndarray, Tensor)):
            raise TypeError(
                f"mask: got {type(mask).__name__}, expected a folder, PIL image, numpy array,"
                " torch tensor, or a list of them"
            )
        masks = [mask] * count
    elif single or len(mask) != count:
        raise ValueError(
            f"mask: got a list of {len(mask)}, expected"
            + (" one mask for one input" if single else f" one for each of {count} inputs")
        )
    else:
        masks = list(mask)

    def choose(argument: int, place: int) -> Any:
        chosen = masks[argument]
        # A batch of images may come with a batch of masks [B, H, W] or [B, 1, H, W].
        if not isinstance(chosen, (np.ndarray, Tensor)) or chosen.ndim < 3:
            return chosen
        batched = chosen.ndim == 4 or len(chosen) > 1
        return chosen[place] if batched and place < len(chosen) else chosen

    return choose


def _output(
    argument: int,
    value: Any,
    tasks: Sequence[Task],
    result: RunResult,
    memory: dict[int, InMemory],
    colours: dict[int, Tensor],
) -> Any:
    mine = [i for i, task in enumerate(tasks) if task.argument == argument]
    if argument not in memory:
        rows = [result.images[i] for i in mine]
        paths = [
            None if row.output is None else Path(row.output)
            for row in rows
            if row.status is not Status.SKIPPED or row.output is not None
        ]
        return paths if Path(value).is_dir() else (paths[0] if paths else None)
    for i in mine:
        if i not in colours:
            raise ImageError(tasks[i].source, result.images[i].reason)
    return memory[argument].rebuild([colours[i] for i in mine])
