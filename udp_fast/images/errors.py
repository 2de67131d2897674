"""The one error of this package."""

from __future__ import annotations

import errno
import os
from pathlib import Path


class ImageError(Exception):
    """An image that cannot be read, protected or written.

    `path` is the file (or a name such as "image 3" for an image that came from memory) and `reason`
    says in words what is wrong with it, fit for the last column of a table.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = Path(path)
        self.reason = reason


def explain_os_error(error: OSError) -> str:
    """The operating system's complaint as a short reason, without the file's name."""
    known = {
        errno.ELOOP: "the symbolic link leads back to itself",
        errno.EACCES: "permission denied",
        errno.EPERM: "permission denied",
        errno.ENOSPC: "no space left on the disk",
        errno.ENAMETOOLONG: "the name is too long",
        errno.EROFS: "the disk is read-only",
    }
    if error.errno in known:
        return known[error.errno]
    return error.strerror or str(error) or type(error).__name__
