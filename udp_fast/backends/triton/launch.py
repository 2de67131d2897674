"""Starting kernels: how wide their tiles are, and with how many threads they run.

Every kernel has one fixed configuration, 1024 elements by 128 threads. UDP_FAST_TRITON_AUTOTUNE=1
lets those whose result cannot depend on it try `CONFIGS` at the first call for each dtype and size;
read once, at import.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import INTERPRETS

#: (elements of a tile, warps): eight elements a thread, 16 bytes of a 16-bit dtype.
DEFAULT = (1024, 4)
CONFIGS = (DEFAULT, (512, 2), (2048, 8))

_SETTING = os.environ.get("UDP_FAST_TRITON_AUTOTUNE", "")
if _SETTING not in ("", "0", "1"):
    raise ValueError(f"UDP_FAST_TRITON_AUTOTUNE: got {_SETTING!r}, expected 0 or 1")
AUTOTUNE = _SETTING == "1" and not INTERPRETS


class Launch(NamedTuple):
    """One kernel as it is started."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    warps: int
    stages: int | None  # of its pipelined loops; None: it leaves that to Triton
    fuses: bool  # products and sums, where the source does not say so


_recorded: ContextVar[list[Launch] | None] = ContextVar("udp_fast_recorded", default=None)
_tracing: ContextVar[bool] = ContextVar("udp_fast_tracing", default=False)
_tunable: dict[Any, tuple[str, ...]] = {}
_tuned: dict[tuple[Any, int], Any] = {}

#: What a kernel calls the sizes that its best tile depends on.
_SIZES = ("pixels", "columns", "elements")


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Within it kernels are noted instead of run: what an op launches, for any device and size."""
    launches: list[Launch] = []
    token = _recorded.set(launches)
    try:
        yield launches
    finally:
        _recorded.reset(token)


@contextmanager
def traced() -> Iterator[None]:
    """Within it kernels are put into torch.compile's graph instead of run."""
    token = _tracing.set(True)
    try:
        yield
    finally:
        _tracing.reset(token)


def width_of(*stored: Tensor) -> int:
    """Elements of a thread: 16 bytes of the widest operand that is stored, and at most eight.

    A wider thread would have to exchange elements with its neighbours before storing them.
    """
    return 4 if any(t.element_size() == 4 for t in stored) else 8


def float32(value: float) -> float:
    """``value`` rounded to float32."""
    (rounded,) = struct.unpack("f", struct.pack("f", value))
    return float(rounded)


def number(value: Tensor, device: torch.device) -> tuple[float | Tensor, int | None]:
    """A 0-dim or [B] float32 tensor as kernels take it: (number, None) or (tensor, stride).

    One number on the CPU is passed with the launch, since copying it would stall the stream.
    """
    if value.dim() == 0 and value.device.type == "cpu" and not _tracing.get():
        return float(value), None
    return value.to(device), value.stride(0) if value.dim() else 0


def tunable(*updated: str) -> Any:
    """Marks a kernel whose result does not depend on the tile. ``updated``: changed in place."""

    def mark(kernel: Any) -> Any:
        _tunable[kernel] = updated
        return kernel

    return mark


def tuned(launch: Launch) -> Iterator[Launch]:
    """The launch as autotuning may have it, in every tile but the default one."""
    if launch.kernel in _tunable:
        groups = launch.arguments["GROUPS"]
        for elements, warps in CONFIGS[1:]:
            arguments = {**launch.arguments, "GROUPS": groups * elements // DEFAULT[0]}
            yield launch._replace(arguments=arguments, warps=warps)


def launch(kernel: Any, programs: int, width: int, *args: Any, **constants: Any) -> None:
    """Runs ``programs`` programs of a kernel that walks over images, on its tensors' device."""
    runs = _recorded.get() is None and not _tracing.get()
    if AUTOTUNE and kernel in _tunable and runs:
        _run(_autotuner(kernel, width), programs, args, constants)
    else:
        elements, warps = DEFAULT
        options = {"GROUPS": elements // width, "WIDTH": width, "num_warps": warps}
        _run(kernel, programs, args, {**constants, **options, "enable_fp_fusion": False})


def launch_sums(kernel: Any, images: int, *args: Any) -> None:
    """Runs a kernel that finishes the sums of one image a program."""
    _run(kernel, images, args, {"num_warps": DEFAULT[1], "enable_fp_fusion": False})


def launch_tiles(
    kernel: Any, programs: int, warps: int, stages: int, *args: Any, **constants: Any
) -> None:
    """Runs a kernel of matrix products.

    Its last bits depend on how the tensor cores add, so nothing is lost by letting sums and products
    be fused.
    """
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    _run(kernel, programs, args, {**constants, **options})


def _run(kernel: Any, programs: int, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    launches = _recorded.get()
    if launches is not None:
        arguments = dict(zip(kernel.arg_names, args, strict=False))
        arguments |= {name: named[name] for name in kernel.arg_names if name in named}
        launches.append(
            Launch(
                kernel,
                programs,
                arguments,
                named["num_warps"],
                named.get("num_stages"),
                named["enable_fp_fusion"],
            )
        )
        return
    if _tracing.get():
        # Inductor compiles with its own options and has no place for this one.
        named = {name: value for name, value in named.items() if name != "enable_fp_fusion"}
        kernel = torch.library.wrap_triton(kernel)
    kernel[(programs,)](*args, **named)


def _autotuner(kernel: Any, width: int) -> Any:
    if (kernel, width) not in _tuned:
        configs = [
            triton.Config(
                {"GROUPS": elements // width, "WIDTH": width, "enable_fp_fusion": False},
                num_warps=warps,
            )
            for elements, warps in CONFIGS
        ]
        sizes = [name for name in kernel.arg_names if name in _SIZES]
        tune = triton.autotune(configs, key=sizes, restore_value=list(_tunable[kernel]))
        _tuned[kernel, width] = tune(kernel)
    return _tuned[kernel, width]
