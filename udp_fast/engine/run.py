"""The run: read, perturb, quantise, write, measure, group by group.

Images are protected in groups, because the surrogate is adapted to all of them together. A group
holds at most `Options.group_pixels` pixels, so that a folder of any size needs bounded memory; each
group has its own adaptation. Every image of a group is on the disk, and in the manifest, before the
next group is read.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import methods
from ..diffusion import Denoiser
from ..evaluate.denoising import surrogate_loss
from ..evaluate.metrics import max_abs_difference, psnr, ssim
from ..images import (
    LOSSLESS,
    ImageError,
    Photo,
    Written,
    explain_os_error,
    interrupts_held_back,
    left_behind,
    mask_from_array,
    read_image,
    read_mask,
    write_image,
)
from ..methods import ImageItem
from ..methods.modes import own_modes
from ..ops import quantize
from .manifest import Manifest
from .options import Options
from .plan import Task
from .results import (
    ImageResult,
    ProgressCallback,
    ResultCallback,
    RunProgress,
    RunResult,
    Status,
)

# The part of a run that a method with a model takes, for the progress bar: measured on the default
# settings, where writing and three denoising losses cost about a tenth.
_METHOD_SHARE, _METHOD_SHARE_WITHOUT_EVALUATION = 0.9, 0.98

# (index of the task, the original, the protected colours uint8 [3, H, W])
ProtectedCallback = Callable[[int, Photo, Tensor], None]


@dataclass(eq=False)
class _Work:
    """An image between reading and writing."""

    index: int
    task: Task
    photo: Photo
    mask: Tensor | None
    item: ImageItem


@own_modes()
def run(
    tasks: Sequence[Task],
    options: Options,
    denoiser: Denoiser | None,
    *,
    manifest_folder: Path | None = None,
    command: list[str] | None = None,
    notes: Sequence[str] = (),
    on_progress: ProgressCallback | None = None,
    on_result: ResultCallback | None = None,
    on_protected: ProtectedCallback | None = None,
) -> RunResult:
    """Protect every task's image; never raises for what is wrong with one of them.

    Args:
        tasks: from `plan_files`, or for images in memory.
        denoiser: the surrogate, on `options.torch_device()`; None only where
            `options.needs_denoiser` is false.
        manifest_folder: where the manifest goes; None for none.
        command: the command line, for the manifest.
        notes: what there is to say beside the rows, for the table and the manifest.
        on_progress: called often; may raise KeyboardInterrupt to stop.
        on_result: called once an image's row is complete.
        on_protected: called with what was written.

    Returns the table. After KeyboardInterrupt, from the keyboard or a callback, the result is
    marked interrupted, its files are whole, and the manifest describes exactly those.

    Raises OSError, before any work, if the output folder cannot be made or written to, and ValueError
    where the environment leaves the ops no backend.
    """
    started = time.monotonic()
    state = _Run(tasks, options, denoiser, on_progress, on_result, on_protected)
    state.result.notes = list(notes)
    manifest = None
    if manifest_folder is not None:
        manifest = Manifest(
            manifest_folder,
            options,
            targets=[task.target for task in tasks if task.target and not task.refusal],
            command=command,
            denoiser=denoiser,
        )
        # Not before: the manifest asks for the backends, and where there are none no folder is left.
        manifest_folder.mkdir(parents=True, exist_ok=True)
        state.result.manifest = manifest.path

    def save(status: str) -> None:
        state.result.seconds = state.timings["total"] = time.monotonic() - started
        if manifest is None:
            return
        try:
            with interrupts_held_back():
                manifest.write(state.result, status, state.timings)
        except OSError as error:
            if status == "started":
                raise  # nothing has been done yet: better to learn of it now
            state.result.problem = f"manifest {manifest.path}: {explain_os_error(error)}"

    try:
        state.refuse_planned()
        save("started")
        for number, group in enumerate(_groups(tasks, options.group_pixels), start=1):
            state.do_group(number, group)
            save("running")
        save("complete")
    except KeyboardInterrupt:
        state.close_interrupted()
        save("interrupted")
    return state.result


class _Run:
    def __init__(
        self,
        tasks: Sequence[Task],
        options: Options,
        denoiser: Denoiser | None,
        on_progress: ProgressCallback | None,
        on_result: ResultCallback | None,
        on_protected: ProtectedCallback | None,
    ) -> None:
        self.tasks = tasks
        self.options = options
        self.settings = options.settings()
        self.device = options.torch_device()
        self.denoiser = denoiser
        self.on_progress = on_progress
        self.on_result = on_result
        self.on_protected = on_protected
        self.result = RunResult([_blank(task) for task in tasks])
        self.timings = dict.fromkeys(("read", "protect", "write", "evaluate", "total"), 0.0)
        self.pixels = max(1, sum(task.pixels for task in tasks if not task.refusal))
        self.pixels_done = 0.0
        self.fraction = 0.0
        self.share = 0.0
        if methods.METHODS[options.method].needs_denoiser:
            self.share = _METHOD_SHARE if options.evaluate else _METHOD_SHARE_WITHOUT_EVALUATION
        self.loss: float | None = None

    # What is known before anything is decoded

    def refuse_planned(self) -> None:
        for index, task in enumerate(self.tasks):
            if task.refusal:
                status = Status.SKIPPED if task.skipped else Status.FAILED
                if task.skipped and task.target is not None:
                    self.result.images[index].output = str(task.target)
                self._close(index, status, task.refusal)

    def close_interrupted(self) -> None:
        self.result.interrupted = True
        for image in self.result.images:
            if image.status is Status.INTERRUPTED:
                image.reason = image.reason or "the run ended before it"

    # One group

    def do_group(self, number: int, group: Sequence[int]) -> None:
        with self._timed("read"):
            works = [work for index in group if (work := self._read(index, number)) is not None]
        for batch in _distinct(works):
            self._perturb(batch)
            self.pixels_done += self.share * sum(work.task.pixels for work in batch)
        self.loss = None
        for work in works:
            if self.result.images[work.index].status is not Status.FAILED:
                self._finish(work)
            self.pixels_done += (1 - self.share) * work.task.pixels
            self._say(0.0, work.photo.path.name, "done")

    def _read(self, index: int, group: int) -> _Work | None:
        task, image = self.tasks[index], self.result.images[index]
        image.group = group
        try:
            photo = task.photo or read_image(task.source, max_pixels=self.options.max_pixels)
            image.width, image.height, image.mode = photo.width, photo.height, photo.mode
            image.input_sha256 = photo.sha256 or None
            image.image_id = photo.image_id
            image.notes += [*photo.notes, *task.mask_notes]
            mask = self._mask(task, photo)
            image.mask = str(task.mask) if isinstance(task.mask, Path) else None
            item = ImageItem(
                photo.image_id,
                photo.colour.to(self.device),
                None if mask is None else mask.to(self.device),
            )
        except ImageError as error:
            self._close(index, Status.FAILED, error.reason)
        except Exception as error:  # e.g. no memory left on the device: this image's bad luck only
            self._close(index, Status.FAILED, _words(error))
        else:
            return _Work(index, task, photo, mask, item)
        self.pixels_done += task.pixels
        return None

    def _mask(self, task: Task, photo: Photo) -> Tensor | None:
        if task.mask is None:
            return None
        if isinstance(task.mask, Path):
            return read_mask(task.mask, photo, max_pixels=self.options.max_pixels)
        return mask_from_array(task.mask, photo)

    def _perturb(self, works: Sequence[_Work]) -> None:
        """Fill the items' deltas. If the group as a whole fails, each image gets its own chance."""
        names = {work.item.image_id: work.photo.path.name for work in works}
        pixels = sum(work.task.pixels for work in works)

        def report(progress: methods.Progress) -> None:
            self.loss = progress.loss
            name = None if progress.image_id is None else names.get(progress.image_id)
            activity = (
                "adapting the surrogate" if progress.phase == "surrogate" else "perturbing"
            ) + f", round {progress.round + 1} of {self.settings.rounds}"
            share = self.share * progress.total_steps_done / max(1, progress.total_steps)
            self._say(share * pixels, name, activity)

        try:
            with self._timed("protect"):
                methods.protect(
                    [work.item for work in works],
                    method=self.options.method,
                    settings=self.settings,
                    denoiser=self.denoiser,
                    on_progress=report,
                )
        except Exception as error:
            if len(works) == 1:
                self._close(works[0].index, Status.FAILED, _words(error))
                return
            for work in works:
                self._perturb([work])

    def _finish(self, work: _Work) -> None:
        image = self.result.images[work.index]
        name = work.photo.path.name
        try:
            self._say(0.0, name, "writing")
            colour = to_levels(work.item, work.photo, self.options)
            if work.task.target is not None:
                with self._timed("write"):
                    colour = self._write(work, colour, image)
            image.status = Status.PROTECTED
            with self._timed("evaluate"):
                self._measure(work, colour, image)
        except ImageError as error:
            self._close(work.index, Status.FAILED, error.reason)
            return
        except Exception as error:
            self._close(work.index, Status.FAILED, _words(error))
            return
        try:
            if self.options.evaluate and self.denoiser is not None:
                self._say(0.0, name, "evaluating")
                with self._timed("evaluate"):
                    self._evaluate(work, colour, image)
        except Exception as error:  # the file is whole and within its budget: say what is missing
            image.notes.append(f"loss not measured: {_words(error)}")
        if self.on_protected is not None:
            self.on_protected(work.index, work.photo, colour)
        if self.on_result is not None:
            self.on_result(image)

    def _write(self, work: _Work, colour: Tensor, image: ImageResult) -> Tensor:
        target = work.task.target
        assert target is not None
        lossless = self.options.format in LOSSLESS

        def within_budget(read_back: Tensor) -> None:
            image.max_difference = largest = max_abs_difference(work.photo.colour, read_back)
            if lossless and largest > self.options.eps.levels:
                raise ImageError(
                    target,
                    f"the written file differs by {largest} levels,"
                    f" the budget is {self.options.eps.levels}",
                )

        def appeared(written: Written) -> None:
            image.output, image.status = str(target), Status.PROTECTED
            image.output_sha256, image.output_bytes = written.sha256, written.size_bytes

        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ImageError(target, f"its folder cannot be made: {error.strerror}") from error
        written = write_image(
            target,
            colour,
            work.photo,
            format=self.options.format,
            overwrite=self.options.overwrite,
            check=within_budget,
            named=appeared,
        )
        if not lossless:
            image.survived = survived(work.photo.colour, colour, written.colour)
            if image.survived is not None:
                image.notes.append(f"JPEG: {image.survived:.0%} of the change survives")
            largest, levels = image.max_difference or 0, self.options.eps.levels
            if largest > levels:
                image.notes.append(f"differs by up to {largest} levels, ε allows {levels}")
        image.notes += left_behind(work.photo, self.options.format)
        return written.colour

    def _measure(self, work: _Work, colour: Tensor, image: ImageResult) -> None:
        original = work.photo.colour
        if image.max_difference is None:
            image.max_difference = max_abs_difference(original, colour)
        image.psnr = psnr(original, colour)
        image.ssim = ssim(original, colour)

    def _evaluate(self, work: _Work, colour: Tensor, image: ImageResult) -> None:
        control = ImageItem(work.item.image_id, work.item.original, work.item.mask)
        methods.protect([control], method="random", settings=self.settings)
        versions = [work.photo.colour, to_levels(control, work.photo, self.options), colour]
        assert self.denoiser is not None
        losses = surrogate_loss(
            [version.to(self.device) for version in versions],
            self.denoiser,
            seed=self.options.seed,
            image_ids=[work.photo.image_id] * len(versions),
        )
        image.loss_original, image.loss_random, image.loss_protected = losses.tolist()

    # Reporting

    def _close(self, index: int, status: Status, reason: str) -> None:
        image = self.result.images[index]
        image.status, image.reason = status, reason
        if self.on_result is not None:
            self.on_result(image)

    def _say(self, pixels: float, image: str | None, activity: str) -> None:
        if self.on_progress is not None:
            # Never backwards, not even where a failed group is tried again image by image.
            self.fraction = max(self.fraction, (self.pixels_done + pixels) / self.pixels)
            self.on_progress(RunProgress(min(1.0, self.fraction), image, activity, self.loss))

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.timings[name] += time.monotonic() - start


def to_levels(item: ImageItem, photo: Photo, options: Options) -> Tensor:
    """The protected colours, uint8 [3, H, W] on the CPU, within the budget exactly.

    A grey photo has one colour channel and must keep it: its perturbation is the sum of the three,
    since the loss's gradient along a change common to all channels is the sum of their gradients.
    (The mean would leave a third of the budget wherever two channels outvote the other.)
    """
    delta, original = item.delta, item.original
    if photo.grey:
        delta = delta.float().sum(dim=0, keepdim=True)
        original = original[:1]
    if item.mask is not None:
        delta = delta * item.mask
    out = quantize(delta.unsqueeze(0), original.unsqueeze(0), eps=options.eps)[0].cpu()
    return out.expand(3, -1, -1).contiguous() if photo.grey else out


def survived(original: Tensor, meant: Tensor, found: Tensor) -> float | None:
    """How much of the change lossy compression left: <found, meant> / <meant, meant> of the
    differences from `original` (all uint8, equal shape). None where no change was meant."""
    wanted = (meant.to(torch.int16) - original).double()
    energy = float(wanted.square().sum())
    if energy == 0:
        return None
    return float((wanted * (found.to(torch.int16) - original).double()).sum()) / energy


def _groups(tasks: Sequence[Task], budget: int) -> Iterator[list[int]]:
    """Consecutive tasks of at most `budget` pixels together; a larger image stands alone."""
    group: list[int] = []
    pixels = 0
    for index, task in enumerate(tasks):
        if task.refusal:
            continue
        if group and pixels + task.pixels > budget:
            yield group
            group, pixels = [], 0
        group.append(index)
        pixels += task.pixels
    if group:
        yield group


def _distinct(works: Sequence[_Work]) -> list[list[_Work]]:
    """Batches in which no picture occurs twice, as the methods demand.

    A second copy (same pixels, same mask) shares the first one's item, and so its perturbation; a
    copy under another mask is protected in a batch of its own.
    """
    batches: list[list[_Work]] = []
    for work in works:
        for batch in batches:
            twin = next((w for w in batch if w.item.image_id == work.item.image_id), None)
            if twin is None:
                batch.append(work)
                break
            if _same_mask(twin.mask, work.mask):
                work.item = twin.item
                break
        else:
            batches.append([work])
    return batches


def _same_mask(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a, b)


def _blank(task: Task) -> ImageResult:
    # Until something better is known: if the run ended now, this image would be left undone.
    return ImageResult(
        source=str(task.source),
        status=Status.INTERRUPTED,
        width=task.width or None,
        height=task.height or None,
    )


def _words(error: Exception) -> str:
    """An unexpected error in a table cell: its kind, and its first line."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "not enough memory"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
