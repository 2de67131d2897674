"""Keeps what was read from compiled kernels, by the content of everything that it depends on."""

from __future__ import annotations

import ast
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from . import elf, machine_code
from .machine_code import Code

FOLDER = Path(os.environ.get("UDP_PROOF_CACHE", Path(__file__).parents[2] / ".cache/proof"))

#: How code is read, as it was when this process began.
_READER = "".join(ast.dump(ast.parse(Path(m.__file__).read_text())) for m in (elf, machine_code))


def key(*parts: object) -> str:
    """Of compiler, options and sources; how machine code is read is always a part."""
    digest = hashlib.sha256(_READER.encode())
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


def load(key: str) -> dict[str, Code] | None:
    """Kernel -> its code, or None where nothing is known."""
    path = FOLDER / f"{key}.json"
    if not path.exists():
        return None
    kernels = json.loads(path.read_text())
    return {n: Code(**{**code, "widths": tuple(code["widths"])}) for n, code in kernels.items()}


def save(key: str, kernels: dict[str, Code]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{key}.json"
    # Under its name only when whole: another process may be reading.
    written = path.with_suffix(".new")
    written.write_text(json.dumps({name: asdict(code) for name, code in kernels.items()}))
    written.replace(path)
