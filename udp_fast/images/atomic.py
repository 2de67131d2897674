"""A file appears under its name whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from .interrupt import interrupts_held_back

Checked = TypeVar("Checked")

# Hidden, and recognisable should the machine lose power between write and rename.
TEMPORARY_PREFIX = ".udp-fast-"


def publish(
    path: Path,
    write: Callable[[BinaryIO], None],
    *,
    overwrite: bool,
    check: Callable[[Path], Checked],
    named: Callable[[Checked], None] | None = None,
) -> Checked:
    """Write a file beside `path`, check it, and only then give it the name `path`.

    `write` receives an open binary file; `check` receives the path of the finished temporary
    file (flushed to the disk) and may raise to stop it from ever appearing; returns its result.
    `named` is called with that result once the name is given; Ctrl-C cannot come between the two,
    so that a caller knows of every file there is.
    Whatever is raised on the way, KeyboardInterrupt included, the temporary file is removed and
    `path` is as it was. Raises FileExistsError if `path` exists and `overwrite` is false.
    """
    temporary = path.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}.tmp"
    # Not tempfile.mkstemp: its mode 0600 would end up on the photograph; 0666 honours the umask.
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(temporary, flags, 0o666), "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        result = check(temporary)
        with interrupts_held_back():
            _rename(temporary, path, overwrite=overwrite)
            if named is not None:
                named(result)
        _sync_folder(path.parent)
        return result
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def publish_bytes(path: Path, content: bytes, *, overwrite: bool) -> None:
    """`publish` for content that is already in memory and needs no check."""

    def write(file: BinaryIO) -> None:
        file.write(content)

    publish(path, write, overwrite=overwrite, check=lambda temporary: None)


def _rename(temporary: Path, path: Path, *, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, path)
        return
    try:
        # link() fails where the name is taken, in one step: no other process can slip in between.
        os.link(temporary, path)
    except FileExistsError:
        raise
    except (OSError, AttributeError, NotImplementedError):
        # A file system without hard links (FAT, some network shares): the best that is left.
        if os.path.lexists(path):
            raise FileExistsError(f"{path} exists") from None
        os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    # The name itself must reach the disk too; Windows offers no way to ask for that.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
