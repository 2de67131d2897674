"""Which files are protected and where each one goes: settled, or refused, before the work."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..images import (
    FORMATS,
    MASK_SUFFIXES,
    ImageError,
    Photo,
    find_mask,
    looks_like_image,
    measure,
)
from .options import Options

# Of many unused masks the first ones say enough: one photograph may be picked from a large set.
_NAMED = 12


class PlanError(ValueError):
    """The request as a whole makes no sense; nothing was read or written."""


@dataclass(frozen=True)
class Task:
    """One image to protect.

    argument  which of the inputs it came from (a folder gives several tasks)
    source    the file, or a name for an image from memory
    target    the file to write, or None to keep the result in memory
    photo     the image, if it is in memory already
    mask      a mask file, a mask from memory, or None for the whole image
    refusal   why it is not done, where that is known beforehand; `skipped` if nobody will miss it:
              with a target, since that is there already
    """

    argument: int
    source: Path
    target: Path | None = None
    photo: Photo | None = None
    mask: Any = None
    mask_notes: tuple[str, ...] = ()
    refusal: str = ""
    skipped: bool = False
    height: int = 0
    width: int = 0

    @property
    def pixels(self) -> int:
        return self.height * self.width


@dataclass(frozen=True)
class _Found:
    argument: int
    path: Path
    folder: Path  # inside the output folder, where the file goes
    refusal: str = ""
    skipped: bool = False


def plan_files(
    inputs: Sequence[str | os.PathLike[str]],
    out: Path,
    options: Options,
    *,
    recursive: bool = False,
    mask: Path | None = None,
) -> list[Task]:
    """One task for each file in `inputs` (files and folders), in order.

    A folder gives its files by name; with `recursive` its subfolders too, repeated under `out`.
    Hidden files, and the folders `out` and `mask`, are passed over. What is wrong with a single
    file becomes its task's `refusal`.

    Raises:
        PlanError: no image at all; a file stands where the output folder should be; the output or
            mask folder is one of the input folders; two images would be written to one name; there
            is no mask folder, or no mask in it fits any image.
    """
    check_out(out)
    if mask is not None and not mask.is_dir():
        found_instead = "is a file, expected a folder" if mask.exists() else "no such folder"
        raise PlanError(f"mask folder {mask}: {found_instead}")
    for given in map(Path, inputs):
        # A file given by name may go beside itself: a second run names that file and no other.
        if not given.is_dir():
            continue
        if same_file(given, out):
            raise PlanError(
                f"output folder {out}: is also an input, and a second run would take the results"
                " for photographs: choose another"
            )
        if mask is not None and same_file(given, mask):
            raise PlanError(
                f"mask folder {mask}: is also an input, and the masks would be taken for"
                " photographs: keep them in a folder of their own"
            )
    apart = [folder.resolve() for folder in (out, mask) if folder is not None]
    found = _expand([Path(p) for p in inputs], recursive, apart)
    if all(file.skipped for file in found):
        names = ", ".join(str(p) for p in inputs)
        hint = "" if recursive else " (--recursive looks into subfolders)"
        raise PlanError(f"no images in {names}{hint}")
    targets = _targets(found, out, FORMATS[options.format])
    masks = [None if mask is None else _mask_of(file, mask) for file in found]
    sources = [file.path for file in found if not file.skipped]
    taken = {_identity(path) for path in (*sources, *masks) if path is not None} - {None}
    tasks = [
        _task(file, target, taken, options) for file, target in zip(found, targets, strict=True)
    ]
    if mask is not None:
        tasks = [_masked(task, chosen) for task, chosen in zip(tasks, masks, strict=True)]
    readable = [task for task in tasks if not task.refusal]
    if mask is not None and readable and not any(task.mask for task in readable):
        raise PlanError(
            f"mask folder {mask}: holds no PNG named like one of the images"
            f" (expected for example {readable[0].source.stem}.png)"
        )
    return tasks


def check_out(out: Path) -> None:
    """Raise PlanError if a file stands where the output folder should be."""
    if out.exists() and not out.is_dir():
        raise PlanError(f"output folder {out}: is a file, expected a folder")


def _expand(inputs: Sequence[Path], recursive: bool, apart: list[Path]) -> list[_Found]:
    """All files in order; of several names of one file, all but one are skipped."""
    found: list[_Found] = []
    names: dict[Path, list[int]] = defaultdict(list)
    for argument, given in enumerate(inputs):
        if given.is_dir():
            files = _walk(given, recursive, apart)
        else:
            files = iter([(given, Path())])
        for path, folder in files:
            file = _Found(argument, path, folder)
            if path.is_dir():
                file = replace(file, refusal="the folder cannot be read")
            elif path is not given and not looks_like_image(path):
                file = replace(file, refusal="not an image", skipped=True)
            names[_real(path)].append(len(found))
            found.append(file)
    for real, places in names.items():
        # The name under which the file lies wins over links to it, whatever their order: results
        # and rows are named after it.
        best = min(
            places,
            key=lambda i: (
                found[i].skipped,
                _spelt(found[i].path) != real,
                found[i].path.is_symlink(),
            ),
        )
        for place in places:
            if place != best:
                found[place] = replace(found[place], refusal="given twice", skipped=True)
    return found


def _real(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a link to itself; the reader says so
        return path.absolute()


def _spelt(path: Path) -> Path:
    """The path as it is written, from the root and without `..`, no link followed."""
    return Path(os.path.abspath(path))


def _walk(top: Path, recursive: bool, apart: list[Path]) -> Iterator[tuple[Path, Path]]:
    """(file, its folder relative to `top`), by name; links to folders are not followed. A folder
    that cannot be listed comes as if it were a file."""
    closed: list[OSError] = []
    for folder, folders, names in os.walk(top, onerror=closed.append):
        folders[:] = sorted(
            name
            for name in folders
            if recursive
            and not name.startswith(".")
            and (Path(folder) / name).resolve() not in apart
        )
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder) / name, Path(folder).relative_to(top)
    for error in closed:
        yield Path(error.filename), Path()


def same_file(a: Path, b: Path) -> bool:
    """Whether two paths are one file now, or will be once it is written."""
    identity = _identity(a)
    if identity is not None:
        return identity == _identity(b)
    return _fold(a.absolute()) == _fold(b.absolute())


def _targets(found: Sequence[_Found], out: Path, suffix: str) -> list[Path]:
    """Each file's output; a.jpg and a.png, which would both become a.png, keep their full names."""
    short = [out / file.folder / f"{file.path.stem}{suffix}" for file in found]
    claims = _claims(found, short)
    chosen = [
        out / file.folder / f"{file.path.name}{suffix}" if len(claims[_fold(path)]) > 1 else path
        for file, path in zip(found, short, strict=True)
    ]
    for rivals in _claims(found, chosen).values():
        if len(rivals) > 1:
            names = " and ".join(str(found[i].path) for i in rivals)
            raise PlanError(
                f"{names} would be written to the same file {chosen[rivals[0]]}:"
                " protect them into different output folders"
            )
    return chosen


def _claims(found: Sequence[_Found], targets: Sequence[Path]) -> dict[str, list[int]]:
    claims: dict[str, list[int]] = defaultdict(list)
    for index, (file, target) in enumerate(zip(found, targets, strict=True)):
        if not file.skipped:
            claims[_fold(target)].append(index)
    return claims


def _fold(path: Path) -> str:
    # A.png and a.png are one file on the disks of most photographers.
    return str(path).casefold()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _task(
    file: _Found,
    target: Path,
    taken: set[tuple[int, int] | None],
    options: Options,
) -> Task:
    task = Task(file.argument, file.path, target, refusal=file.refusal, skipped=file.skipped)
    if task.refusal:
        return replace(task, target=None)
    try:
        height, width = measure(file.path, max_pixels=options.max_pixels)
    except ImageError as error:
        return replace(task, target=None, refusal=error.reason)
    task = replace(task, height=height, width=width)
    if os.path.lexists(target):
        if _identity(target) in taken:
            return replace(
                task, refusal=f"{target} is itself an input: choose another output folder"
            )
        if options.skip_existing and target.is_file():
            return replace(task, refusal=f"{target} exists already", skipped=True)
        if not options.overwrite:
            return replace(
                task,
                refusal=f"{target} exists already (--overwrite replaces it,"
                " --skip-existing leaves it out)",
            )
        if target.is_dir() and not target.is_symlink():
            return replace(task, refusal=f"{target} is a folder")
    return task


def unused_masks(mask: Path | None, tasks: Sequence[Task], *, recursive: bool = False) -> list[str]:
    """Lines for the end of the table: which files of the mask folder are no photograph's mask.

    A misspelt mask would otherwise be missed only by who looks for the row that lacks it.
    """
    if mask is None:
        return []
    # Photographs and results may lie there too, where they are given one by one.
    known = {_real(p) for task in tasks for p in (task.source, task.target, task.mask) if p}
    stems = {task.source.stem for task in tasks}
    names = []
    for path, _ in _walk(mask, recursive, []):
        if not path.is_file() or _real(path) in known:
            continue
        name = str(path.relative_to(mask))
        if path.suffix not in MASK_SUFFIXES and path.stem in stems:
            name += " (a mask is a .png)"
        names.append(name)
    if not names:
        return []
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return [
        f"mask folder {mask}: not used, since no photograph is named so: "
        + ", ".join(names[:_NAMED])
        + more
    ]


def _mask_of(file: _Found, folder: Path) -> Path | None:
    return find_mask(folder / file.folder, file.path) or find_mask(folder, file.path)


def _masked(task: Task, chosen: Path | None) -> Task:
    if chosen is None:
        return replace(task, mask_notes=("no mask: the whole photo is protected",))
    return replace(task, mask=chosen)
