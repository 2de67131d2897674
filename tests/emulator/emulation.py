"""Builds a .cu file for the CPU, runs its launchers under many schedules and compares the bits.

    scale = emulate(ROOT / "csrc/cuda/scale.cu")
    launches = scale.run("udp_scale", out, x, n=..., writes=[out])

See csrc/emulator/README.md for what is checked. Needs g++ and numpy, no CUDA.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
EMULATOR = ROOT / "csrc/emulator"
CACHE = Path(os.environ.get("UDP_EMULATOR_CACHE", ROOT / ".cache/emulator"))

#: Set to 1, everything is built for AddressSanitizer and UndefinedBehaviorSanitizer in place of the
#: emulator's own checks; the process must have been started with libasan preloaded.
SANITIZE = os.environ.get("UDP_EMULATOR_SANITIZE") == "1"

#: 0: first thread, first block first. 1: the last first. 2, 4, …: any thread at any access.
#: 3, 5, …: a random order of threads, kept. From 2 on blocks come in random order.
SEEDS = (0, 1, 2, 3, 4, 5)
#: The one that is closest to order, and one that changes threads anywhere: for the variants of what
#: runs under all schedules elsewhere.
FEW_SEEDS = (0, 4)

_COMMON = [
    "-std=c++17",
    "-g1",  # lines, for reports
    "-fPIC",
    # Two libraries in one process must not share a template's static (that is, shared) variables.
    "-fno-gnu-unique",
    # As on the CPU backend: an fma is where the source says so.
    "-ffp-contract=off",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-Wno-unused",
]
_SANITIZERS = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
_CHECKED = [
    "-O1",
    "-DUDP_EMULATOR_CHECKED",
]
_CHECKED_KERNEL = [
    *_CHECKED,
    # Calls a hook at every access; memory.cpp has the hooks, the sanitizer's own library stays out.
    "-fsanitize=thread",
    "--param=tsan-instrument-func-entry-exit=0",
    "--param=tsan-distinguish-volatile=1",
    # The access that the source names, as wide as there and only where it is reached.
    "-fno-tree-sra",
    "-fno-tree-loop-im",
    "-fno-tree-pre",
    "-fno-code-hoisting",
    "-fno-if-conversion",
    "-fno-if-conversion2",
    # Variables in the order of the source, each shared one behind its gap.
    "-fno-toplevel-reorder",
]


class EmulatorFault(AssertionError):
    """What the emulator, or the comparison of schedules, found wrong with a kernel."""


@dataclass(frozen=True)
class Launch:
    """Counters of one kernel launch; csrc/emulator/state.h says what each means."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    counters: dict[str, int]

    def __getattr__(self, name: str) -> int:
        try:
            return self.counters[name]
        except KeyError:
            raise AttributeError(name) from None


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


@cache
def _compiler_version() -> str:
    command = [_compiler(), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _compile(arguments: Sequence[str], output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(f".{os.getpid()}{output.suffix}")
    command = [_compiler(), *arguments, "-o", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = "\n".join(done.stderr.splitlines()[:40])
        raise RuntimeError(f"{' '.join(command)}\n{errors}")
    partial.replace(output)  # another process may have built the same meanwhile


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256(_compiler_version().encode())
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:20]


def _with_includes(source: Path, include: Sequence[Path]) -> list[Path]:
    """The file and all files of ours that it includes, found by name: a superset does no harm."""
    found: dict[Path, None] = {}
    pending = [source.resolve()]
    while pending:
        path = pending.pop()
        if path in found:
            continue
        found[path] = None
        for name in re.findall(r'^\s*#\s*include\s*["<](.+?)[">]', path.read_text(), re.M):
            candidates = [folder / name for folder in (path.parent, *include)]
            pending += [c.resolve() for c in candidates if c.is_file()][:1]
    return list(found)


def compiled(source: Path, flags: Sequence[str], include: Sequence[Path] = ()) -> Path:
    """The object file of a C++ file; compiled once per content of it and of all it includes."""
    files = _with_includes(source, include)
    output = CACHE / f"{source.stem}-{_digest(*flags, *(f.read_bytes() for f in files))}.o"
    if not output.exists():
        _compile([*flags, *(f"-I{folder}" for folder in include), "-c", str(source)], output)
    return output


@cache
def _runtime() -> tuple[Path, ...]:
    """The emulator itself, as object files."""
    flags = [*_COMMON, *(_SANITIZERS if SANITIZE else ["-O2", *_CHECKED[1:]])]
    flags.append("-fvisibility=hidden")
    sources = ("fiber.cpp", "threads.cpp", "memory.cpp", "matrices.cpp")
    return tuple(compiled(EMULATOR / name, flags) for name in sources)


def build(source: Path) -> Path:
    """The shared library of one .cu file; built once per content of it and of all it includes."""
    folders = [EMULATOR, ROOT / "csrc/cuda", ROOT / "csrc"]
    flags = [*_COMMON, *(_SANITIZERS if SANITIZE else _CHECKED_KERNEL)]
    flags += ["-include", "cuda_emulator.h", "-x", "c++"]
    objects = [compiled(source, flags, folders), *_runtime()]
    output = CACHE / f"{source.stem}-{_digest(*(o.name for o in objects))}.so"
    if not output.exists():
        link = ["-shared", "-Wl,-Bsymbolic", *(_SANITIZERS if SANITIZE else [])]
        _compile([*link, *map(str, objects), "-ldl"], output)
    return output


@dataclass
class _Memory:
    """The bytes between an array's first and last element."""

    address: int
    size: int

    def read(self) -> bytes:
        return ctypes.string_at(self.address, self.size)

    def write(self, data: bytes) -> None:
        ctypes.memmove(self.address, data, self.size)


def _memory(array: Any) -> _Memory:
    """Of a numpy array or torch tensor with strides >= 0."""
    if hasattr(array, "data_ptr"):
        address, itemsize = array.data_ptr(), array.element_size()
        steps = [(n, s * itemsize) for n, s in zip(array.shape, array.stride(), strict=True)]
    else:
        address, itemsize = array.ctypes.data, array.itemsize
        steps = list(zip(array.shape, array.strides, strict=True))
    if any(n == 0 for n, _ in steps):
        return _Memory(address, 0)
    return _Memory(address, itemsize + sum((n - 1) * step for n, step in steps))


def _is_array(value: Any) -> bool:
    return hasattr(value, "data_ptr") or hasattr(value, "__array_interface__")


class Emulated:
    """The launchers of one .cu file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = ctypes.CDLL(str(path))
        self.library.udp_emulator_report.restype = ctypes.c_char_p
        self.library.udp_emulator_counters.restype = ctypes.c_char_p

    def run(
        self,
        launcher: str,
        *arguments: Any,
        writes: Sequence[Any] = (),
        fills: Sequence[Any] = (),
        memory: Sequence[Any] = (),
        seeds: Sequence[int] = SEEDS,
        expect: int | None = 0,
    ) -> list[Launch]:
        """Calls an extern "C" launcher once per schedule, each time from the same memory.

        Args:
            arguments: arrays and tensors go as pointers, int as 64-bit integers (also right for a
                narrower parameter), None as a null pointer, anything of ctypes as it is; a float
                must be a ctypes.c_float or c_double.
            writes: the arrays that may be written; the others are inputs.
            fills: those of `writes` that must not be read before they are written.
            memory: arrays that the launcher reaches by other ways (in a struct); registered too.
            expect: what the launcher returns, cudaSuccess by default; None: anything.

        Returns:
            The counters of each launch, from the first schedule.

        Raises:
            EmulatorFault: a report of the emulator, another return value, or schedules that
                disagree in any bit of `writes`.
        """
        arrays = [a for a in [*arguments, *memory, *writes, *fills] if _is_array(a)]
        written = {_memory(a).address for a in [*writes, *fills]}
        filled = {_memory(a).address for a in fills}
        names = {id(a): f"argument {i}" for i, a in reversed(list(enumerate(arguments)))}
        before = [(m, m.read()) for m in map(_memory, arrays) if m.address in written]
        call = getattr(self.library, launcher)
        call.restype = ctypes.c_int
        converted = [self._convert(i, a) for i, a in enumerate(arguments)]

        launches: list[Launch] = []
        first: list[bytes] = []
        for seed in seeds:
            for region, data in before:
                region.write(data)
            self._begin(seed, count=seed == seeds[0])
            seen = set()
            for array in arrays:
                region = _memory(array)
                if (region.address, region.size) in seen:
                    continue
                seen.add((region.address, region.size))
                self._register(
                    region,
                    names.get(id(array), "an array in `memory`"),
                    region.address in written,
                    region.address not in filled,
                )
            status = call(*converted)
            report = self.report()
            if report:
                raise EmulatorFault(f"{launcher}, schedule {seed}: {report}")
            if expect is not None and status != expect:
                raise EmulatorFault(f"{launcher} returned {status}, expected {expect}")
            if seed == seeds[0]:
                launches = self.launches()
                first = [region.read() for region, _ in before]
            for (region, _), data in zip(before, first, strict=True):
                now = region.read()
                if now != data:
                    at = next(i for i, (a, b) in enumerate(zip(now, data, strict=True)) if a != b)
                    raise EmulatorFault(
                        f"{launcher}: schedules {seeds[0]} and {seed} differ from byte {at} on of "
                        f"the array at {region.address:#x} ({region.size} bytes)"
                    )
        # The history of every byte, of more bytes than the array has, would stay until the next call.
        self._begin(seeds[0], count=False)
        return launches

    def _convert(self, index: int, value: Any) -> Any:
        if _is_array(value):
            return ctypes.c_void_p(_memory(value).address)
        if value is None:
            return ctypes.c_void_p(None)
        if isinstance(value, float):
            raise TypeError(f"argument {index}: {value!r} must be a ctypes.c_float or c_double")
        return ctypes.c_int64(value) if isinstance(value, int) else value

    def _begin(self, seed: int, *, count: bool) -> None:
        self.library.udp_emulator_begin(ctypes.c_uint64(seed), int(count))

    def _register(self, region: _Memory, name: str, writable: bool, written: bool) -> None:
        self.library.udp_emulator_allocation(
            ctypes.c_void_p(region.address),
            ctypes.c_size_t(region.size),
            name.encode(),
            int(writable),
            int(written),
        )

    def launches(self) -> list[Launch]:
        result = []
        for entry in json.loads(self.library.udp_emulator_counters()):
            kernel, grid, block = entry.pop("kernel"), entry.pop("grid"), entry.pop("block")
            result.append(Launch(kernel, tuple(grid), tuple(block), entry))
        return result

    def report(self) -> str:
        """The emulator's report, with code addresses turned into file:line."""
        text: str = self.library.udp_emulator_report().decode()

        def line(match: re.Match[str]) -> str:
            command = ["addr2line", "-e", str(self.path), "-s", match[1]]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except FileNotFoundError:
                return match[0]
            return "at " + done.stdout.strip().split(" ")[0]

        return re.sub(r"@(0x[0-9a-f]+)", line, text)


@cache
def emulate(source: Path) -> Emulated:
    """Builds (from the cache where possible) and loads a .cu file; in one process only once."""
    return Emulated(build(source))
