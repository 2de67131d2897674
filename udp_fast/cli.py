"""The command `udp-fast`.

Heavy imports happen inside the commands, so that --help and --version answer at once.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

import click

from . import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from .diffusion import Denoiser
    from .engine import ImageResult, Options, RunProgress, RunResult, Task
    from .images import Photo, PictureRow

HONEST_NOTE = (
    "Protection is statistical, not a lock: purification weakens it and other models are affected"
    " only in part. What counts is 'protected' above 'random', which is noise of the same ε."
)
_PICTURE_ROWS = 8
_WIDE_TERMINAL = 120


class _Option(click.Option):
    """An option that knows under which heading --help lists it."""

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class _Command(click.Command):
    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                groups.setdefault(getattr(parameter, "group", "Display"), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="See udp-fast COMMAND --help.",
)
@click.version_option(__version__, prog_name="udp-fast")
def cli() -> None:
    """Perturb photographs to make them hard for diffusion models to learn (UDP and EUDP)."""


@cli.command()
def info() -> None:
    """Print versions, build, devices, and every op on every backend."""
    from .info import report

    click.echo(report())


@cli.command(
    cls=_Command,
    no_args_is_help=True,
    epilog="""\b
Examples:
  udp-fast protect holiday/ portrait.jpg -o protected/
  udp-fast protect art/ -r -o protected/ --eps 6/255 --seed 7
  udp-fast protect art/ -o protected/ --mask masks/ --picture look.png
  udp-fast protect art/ -o control/ --method random

\b
Exit codes:
  0    every photograph is protected, or skipped as the table says
  1    some are not; the table names each with its reason, the others are protected
  2    the command line or the request as a whole makes no sense; nothing was written
  130  interrupted; what was written is whole and listed in the manifest

\b
Time grows with pixels and with steps times rounds: with the defaults a
megapixel takes some two minutes on two cores. --steps 1 --rounds 1 is a quick
trial, which gains less.
""",
)
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    cls=_Option,
    group="Output",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder for the protected photographs and manifest.json; made if it is not there.",
)
@click.option(
    "--format",
    "format_",
    cls=_Option,
    group="Output",
    type=click.Choice(["png", "webp", "jpeg"]),
    default="png",
    show_default=True,
    help="png and webp are written without loss. jpeg removes part of the protection; the table"
    " says how much survives.",
)
@click.option(
    "--overwrite",
    cls=_Option,
    group="Output",
    is_flag=True,
    help="Replace files in the output folder and the --picture. Inputs are never replaced; a manifest"
    " only if all the files it lists are.",
)
@click.option(
    "--skip-existing",
    cls=_Option,
    group="Output",
    is_flag=True,
    help="Leave out photographs whose output is there already, by name, whatever settings it was made"
    " with: to go on after an interruption.",
)
@click.option(
    "--picture",
    cls=_Option,
    group="Output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"Also draw before / after / ten times the difference, for the first {_PICTURE_ROWS}.",
)
@click.option(
    "--method",
    cls=_Option,
    group="Protection",
    type=click.Choice(["eudp", "udp", "random", "none"]),
    default="eudp",
    show_default=True,
    help="eudp: timesteps from the noise scheduler. udp: uniform timesteps. random: the control,"
    " random signs. none: change nothing.",
)
@click.option(
    "--eps",
    cls=_Option,
    group="Protection",
    metavar="BUDGET",
    default="8/255",
    show_default=True,
    help="Largest change of any colour value: a fraction of the range such as 8/255 or 0.03, or"
    " '8 levels'.",
)
@click.option(
    "--steps",
    cls=_Option,
    group="Protection",
    metavar="N",
    type=int,
    help="Gradient steps on each photograph in each round.  [default: 4]",
)
@click.option(
    "--rounds",
    cls=_Option,
    group="Protection",
    metavar="N",
    type=int,
    help="How often the surrogate is trained anew on the protected photographs.  [default: 3]",
)
@click.option(
    "--model",
    cls=_Option,
    group="Protection",
    metavar="PATH|HUB_ID",
    help="The surrogate: a folder with a diffusers UNet2DModel (safetensors) or a hub id."
    "  [default: the one in the package]",
)
@click.option(
    "--mask",
    cls=_Option,
    group="Protection",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of greyscale PNGs without transparency, named like the photographs: white protects,"
    " black stays as it is. A photograph without a mask is protected everywhere.",
)
@click.option(
    "--seed",
    cls=_Option,
    group="Protection",
    metavar="N",
    type=int,
    default=0,
    show_default=True,
    help="All random draws follow from it and from each photograph's pixels. Equal bytes need the same"
    " set of photographs as well: those of one run adapt one surrogate together.",
)
@click.option(
    "-r",
    "--recursive",
    cls=_Option,
    group="Photographs",
    is_flag=True,
    help="Look into subfolders, and repeat them in the output folder.",
)
@click.option(
    "--max-pixels",
    cls=_Option,
    group="Photographs",
    metavar="N",
    type=int,
    help="Refuse larger ones before decoding them.  [default: UDP_FAST_MAX_PIXELS or 100000000]",
)
@click.option(
    "--device",
    cls=_Option,
    group="Computation",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="cpu, cuda, cuda:1, …; auto is the CPU, since no GPU has run the GPU kernels yet. cuda uses"
    " them.",
)
@click.option(
    "--group-pixels",
    cls=_Option,
    group="Computation",
    metavar="N",
    type=int,
    default=16_000_000,
    show_default=True,
    help="Photographs are protected together, up to so many pixels at a time; bounds the memory."
    " Each group trains its own surrogate.",
)
@click.option(
    "--evaluate/--no-evaluate",
    cls=_Option,
    group="Computation",
    default=True,
    show_default=True,
    help="Measure the surrogate's denoising loss on original, random noise and protected.",
)
@click.option(
    "-q",
    "--quiet",
    cls=_Option,
    group="Display",
    is_flag=True,
    help="No progress, no table; what failed is still named, on standard error.",
)
@click.pass_context
def protect(ctx: click.Context, /, **given: Any) -> None:
    """Protect PHOTOS, files and folders, against diffusion training.

    In png and webp every colour value changes by at most EPS; jpeg can exceed it, and the table
    says by how much. Size, orientation, EXIF, colour profile and transparency stay. Reads PNG,
    JPEG, WebP, TIFF, BMP and GIF with 8 bits per channel.
    """
    try:
        with _terminate_like_interrupt():
            ctx.exit(_protect(**given))
    except KeyboardInterrupt:
        click.echo("Interrupted; every file written is whole.", err=True)
        ctx.exit(130)


@contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """A polite kill, as batch systems send it, ends the run as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _protect(
    *,
    photos: Sequence[Path],
    out: Path,
    format_: str,
    overwrite: bool,
    skip_existing: bool,
    picture: Path | None,
    method: str,
    eps: str,
    steps: int | None,
    rounds: int | None,
    model: str | None,
    mask: Path | None,
    seed: int,
    recursive: bool,
    max_pixels: int | None,
    device: str,
    group_pixels: int,
    evaluate: bool,
    quiet: bool,
) -> int:
    from .engine import Options, plan_files, run, unused_masks
    from .engine.manifest import backends_in_use
    from .images import PictureRow, explain_os_error
    from .ops import Budget

    try:
        options = Options(
            method=method,
            eps=Budget.linf(eps),
            steps=steps,
            rounds=rounds,
            model=model,
            seed=seed,
            device=device,
            format=format_,
            overwrite=overwrite,
            skip_existing=skip_existing,
            evaluate=evaluate,
            max_pixels=max_pixels,
            group_pixels=group_pixels,
        )
        backends_in_use(options.torch_device())  # raises where the environment leaves none
        tasks = plan_files(photos, out, options, recursive=recursive, mask=mask)
        picture = _checked_picture(picture, options, tasks)
        denoiser = _load(options)
    except (ValueError, TypeError, ImportError) as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:  # the model is not there
        raise click.UsageError(str(error)) from error
    if format_ == "jpeg" and not quiet:
        click.echo(
            "Warning: JPEG is lossy: it removes part of the protection and may exceed ε.", err=True
        )

    rows: list[PictureRow] = []

    def keep(index: int, photo: Photo, colour: Tensor) -> None:
        if picture is not None and len(rows) < _PICTURE_ROWS:
            rows.append(PictureRow.cut(printable(photo.path.name), photo.colour, colour))

    try:
        with _reporter(quiet) as reporter:
            result = run(
                tasks,
                options,
                denoiser,
                manifest_folder=out,
                command=sys.argv,
                notes=unused_masks(mask, tasks, recursive=recursive),
                on_progress=reporter.progress,
                on_result=reporter.result,
                on_protected=keep,
            )
    except OSError as error:
        raise click.UsageError(f"output folder {out}: {explain_os_error(error)}") from error
    drawn = _draw(picture, rows, overwrite)
    if not quiet:
        _print_table(result)
        click.echo(_summary(result, options, drawn))
    elif result.problem:
        click.echo(result.problem, err=True)
    return result.exit_code


def _checked_picture(picture: Path | None, options: Options, tasks: Sequence[Task]) -> Path | None:
    """The picture to draw, None where that is none or one is there that stays."""
    from .engine.plan import same_file

    if picture is None:
        return None
    if picture.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise click.UsageError(
            f"--picture {picture}: expected a name ending in .png, .jpg or .webp"
        )
    if picture.exists() and not options.overwrite and not options.skip_existing:
        raise click.UsageError(f"--picture {picture}: exists already (--overwrite replaces it)")
    for task in tasks:
        for path in (task.source, task.target, task.mask):
            if path is not None and same_file(picture, path):
                raise click.UsageError(f"--picture {picture}: is the same file as {path}")
    return None if picture.exists() and options.skip_existing else picture


def _load(options: Options) -> Denoiser | None:
    if not options.needs_denoiser:
        return None
    from .diffusion import load_denoiser

    denoiser = load_denoiser(options.model)
    denoiser.module.to(options.torch_device())
    return denoiser


def _draw(picture: Path | None, rows: list[PictureRow], overwrite: bool) -> Path | None:
    if picture is None or not rows:
        return None
    import io

    from .images import compose_picture, publish_bytes

    kind = {".png": "PNG", ".webp": "WEBP"}.get(picture.suffix.lower(), "JPEG")
    content = io.BytesIO()
    compose_picture(rows).save(content, kind, **({"quality": 95} if kind != "PNG" else {}))
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        publish_bytes(picture, content.getvalue(), overwrite=overwrite)
    except OSError as error:  # the photographs are safe; a missing picture must not say otherwise
        click.echo(f"--picture {picture}: {error.strerror or error}", err=True)
        return None
    return picture


# What the user sees


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty()


def printable(text: str) -> str:
    """`text` without anything that could confuse a terminal or an encoder."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    )


class _Quiet:
    """Says what failed, and nothing else."""

    def progress(self, progress: RunProgress) -> None: ...

    def result(self, image: ImageResult) -> None:
        if image.status.value == "failed":
            click.echo(f"{printable(image.source)}: {printable(image.reason)}", err=True)


class _Lines(_Quiet):
    """For files and pipes: a line for each finished image, and one every so often."""

    INTERVAL_S = 10.0

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()

    def progress(self, progress: RunProgress) -> None:
        now = time.monotonic()
        if now - self.last < self.INTERVAL_S or progress.fraction >= 1:
            return
        self.last = now
        left = (now - self.started) * (1 / progress.fraction - 1) if progress.fraction else None
        click.echo(
            f"{progress.fraction:4.0%}  {_activity(progress)}"
            + (f", about {_duration(left)} left" if left is not None else ""),
            err=True,
        )

    def result(self, image: ImageResult) -> None:
        from .engine.results import describe

        click.echo(f"{printable(image.source)}: {printable(describe(image))}", err=True)


class _Bar(_Quiet):
    """For terminals: one live line with bar, time left, activity and loss."""

    def __init__(self, bar: Any, task: Any) -> None:
        self.bar = bar
        self.task = task

    def progress(self, progress: RunProgress) -> None:
        self.bar.update(self.task, completed=progress.fraction, description=_activity(progress))

    def result(self, image: ImageResult) -> None:
        if image.status.value == "failed":
            from rich.text import Text

            line = f"{printable(image.source)}: {printable(image.reason)}"
            self.bar.console.print(Text(line, style="red"))


@contextmanager
def _reporter(quiet: bool) -> Iterator[_Quiet]:
    if quiet:
        yield _Quiet()
        return
    if not _is_terminal(sys.stderr):
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        yield _Bar(bar, bar.add_task("reading", total=1.0))


def _activity(progress: RunProgress) -> str:
    text = progress.activity
    if progress.image is not None:
        text = f"{printable(progress.image)}: {text}"
    return text if progress.loss is None else f"{text}, loss {progress.loss:.4f}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _print_table(result: RunResult) -> None:
    if not _is_terminal(sys.stdout):
        # Full lines for files and pipes: nothing cut, nothing folded.
        for line in str(result).split("\n"):
            click.echo(printable(line))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from .engine.results import COLUMNS, table_rows

    console = Console()
    # Numbers must never be folded; where that leaves no room for reasons, they come beneath.
    narrow = console.width < _WIDE_TERMINAL
    table = Table(
        box=None, header_style="bold", pad_edge=False, padding=(0, 1 if narrow else 2, 0, 0)
    )
    last = len(COLUMNS) - 1
    for position, title in enumerate(COLUMNS):
        words = position in (0, last)
        table.add_column(
            title.replace(" ", "\n"),
            justify="left" if words else "right",
            overflow="fold",
            no_wrap=not words,
        )
    styles = {"protected": "green", "failed": "red", "skipped": "dim", "interrupted": "yellow"}
    beneath = []
    for image, cells in zip(result.images, table_rows(result.images), strict=True):
        style = styles[image.status.value]
        if narrow and cells[last] != image.status.value:
            beneath.append(Text(printable(f"{cells[0]}: {cells[last]}"), style=style))
            cells[last] = image.status.value
        table.add_row(
            *(Text(printable(cell)) for cell in cells[:last]),
            Text(printable(cells[last]), style=style),
        )
    console.print(table)
    for note in (*beneath, *(Text(printable(note), style="yellow") for note in result.notes)):
        console.print(note)


def _summary(result: RunResult, options: Options, drawn: Path | None) -> str:
    wanted = [image for image in result.images if image.status.value != "skipped"]
    done = (
        f"{len(result.protected)} of {len(wanted)} protected in {_duration(result.seconds)},"
        f" {options.method}, ε = {options.eps} ({options.eps.levels} levels), seed {options.seed}"
    )
    kept = sum(
        image.status.value == "skipped" and image.output is not None for image in result.images
    )
    if kept:
        done += f"; {kept} more existed already"
    if result.interrupted:
        done += "; interrupted, every file written is whole"
    lines = ["", done]
    groups = {image.group for image in result.protected}
    if len(groups) > 1:
        lines.append(f"in {len(groups)} groups, each with its own surrogate (--group-pixels)")
    measured = [image for image in result.protected if image.loss_protected is not None]
    if measured:
        original, random, protected = (
            sum(getattr(image, f"loss_{name}") for image in measured)
            for name in ("original", "random", "protected")
        )
        lines.append(
            "surrogate's denoising loss against the originals:"
            f" protected {protected / original - 1:+.1%},"
            f" random noise of equal ε {random / original - 1:+.1%}"
        )
    if result.problem:
        lines.append(result.problem)
    lines.append(f"manifest: {result.manifest}" + (f", picture: {drawn}" if drawn else ""))
    lines.append(HONEST_NOTE)
    return "\n".join(lines)


def main() -> None:
    """Entry point of the script `udp-fast`."""
    cli(prog_name="udp-fast")
