"""What became of each image, and where a run stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path


class Status(str, Enum):
    """PROTECTED: written (or returned) and measured. FAILED: could not be, `reason` says why.
    SKIPPED: not asked for (no image, given twice, or with `skip_existing` done already: `output` is
    there). INTERRUPTED: the run ended before it."""

    PROTECTED = "protected"
    FAILED = "failed"
    SKIPPED = "skipped"
    INTERRUPTED = "interrupted"


@dataclass
class ImageResult:
    """One row of the table.

    psnr in dB (inf where nothing changed), ssim in [-1, 1]; max_difference in 8-bit levels; all
    three compare the original with what was read back from the written file. The losses are the
    unadapted surrogate's mean denoising loss on the original, on random-sign noise of the same
    budget, and on the protected image, at equal timesteps and noise. None: not measured.
    """

    source: str
    status: Status
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    output: str | None = None
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    input_sha256: str | None = None
    output_sha256: str | None = None
    output_bytes: int | None = None
    image_id: int | None = None
    mask: str | None = None
    group: int | None = None
    psnr: float | None = None
    ssim: float | None = None
    max_difference: int | None = None
    survived: float | None = None
    loss_original: float | None = None
    loss_random: float | None = None
    loss_protected: float | None = None


@dataclass(frozen=True)
class RunProgress:
    """Where a run stands: `fraction` of the whole in [0, 1], the image or None where all of a
    group are worked on, the activity in words, and the latest denoising loss."""

    fraction: float
    image: str | None
    activity: str
    loss: float | None


ProgressCallback = Callable[[RunProgress], None]
ResultCallback = Callable[[ImageResult], None]


@dataclass
class RunResult:
    """A finished or interrupted run; `images` in the order they were given. `notes` are what there
    is to say beside the rows. `problem` says what went wrong that is no single image's fault: the
    manifest could not be brought up to date."""

    images: list[ImageResult]
    interrupted: bool = False
    seconds: float = 0.0
    manifest: Path | None = None
    problem: str = ""
    notes: list[str] = field(default_factory=list)

    def of(self, status: Status) -> list[ImageResult]:
        return [image for image in self.images if image.status is status]

    @property
    def protected(self) -> list[ImageResult]:
        return self.of(Status.PROTECTED)

    @property
    def failed(self) -> list[ImageResult]:
        return self.of(Status.FAILED)

    @property
    def exit_code(self) -> int:
        """0 all good, 1 an image failed, 130 interrupted."""
        if self.interrupted:
            return 130
        return 1 if self.failed or self.problem else 0

    def __str__(self) -> str:
        """The table as plain text, a line for each image, and the notes beneath."""
        table = [list(COLUMNS), *table_rows(self.images)]
        widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
        rows = [
            "  ".join(
                cell.ljust(width) if i in (0, len(COLUMNS) - 1) else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in table
        ]
        return "\n".join([*rows, *map(_one_line, self.notes)])


COLUMNS = (
    "image",
    "size",
    "PSNR",
    "SSIM",
    "max|Δ|",
    "loss original",
    "loss random",
    "loss protected",
    "status",
)


def table_rows(images: Sequence[ImageResult]) -> list[list[str]]:
    """The cells under `COLUMNS`; files are named without their folder unless names repeat."""
    names = [Path(image.source).name for image in images]
    times = Counter(names)
    return [
        [
            _one_line(name if times[name] == 1 else image.source),
            f"{image.width}×{image.height}" if image.width else "",
            number(image.psnr, ".1f"),
            number(image.ssim, ".4f"),
            number(image.max_difference, "d"),
            number(image.loss_original, ".5f"),
            number(image.loss_random, ".5f"),
            number(image.loss_protected, ".5f"),
            _one_line(describe(image)),
        ]
        for name, image in zip(names, images, strict=True)
    ]


def _one_line(text: str) -> str:
    """`text` with its line breaks escaped: a file's name may hold any, and a row is one line."""
    return "".join(
        c if len(f"{c}.".splitlines()) == 1 else c.encode("unicode_escape").decode() for c in text
    )


def number(value: float | None, spec: str) -> str:
    """A table cell: empty where nothing was measured, ∞ for an unchanged image's PSNR."""
    if value is None:
        return ""
    if value == float("inf"):
        return "∞"
    return format(value, spec)


def describe(image: ImageResult) -> str:
    """The last column: the status, its reason, and what there is to note."""
    text = image.status.value
    if image.reason:
        text += f": {image.reason}"
    if image.notes:
        text += f" ({'; '.join(image.notes)})"
    return text
