"""`python -m udp_fast.info`: versions, build, devices, and every op on every backend."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

import torch

from . import __version__
from .backends.registry import NAMES, backend

_PACKAGES = ("torch", "numpy", "triton", "diffusers", "xformers", "pillow")
_VARIABLES = (
    "UDP_FAST_BACKEND",
    "UDP_FAST_STRICT",
    "UDP_FAST_LOG_DISPATCH",
    "UDP_FAST_CPU_ISA",
    "UDP_FAST_TRITON_AUTOTUNE",
    "TRITON_INTERPRET",
    # Of a build; shown because the next one would see them.
    "UDP_NO_NATIVE",
    "UDP_NO_CUDA",
    "FORCE_CUDA",
    "TORCH_CUDA_ARCH_LIST",
    "CUDA_HOME",
    "CUDA_PATH",
)


def _version(package: str) -> str:
    if package == "torch":
        return torch.__version__  # with the local part, +cu126, that its metadata may lack
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cuda() -> str:
    if torch.version.cuda is None:
        return "none: this torch was built without CUDA"
    if not torch.cuda.is_available():
        return f"none: torch has CUDA {torch.version.cuda}, but finds no usable driver or GPU"
    names = (torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return ", ".join(names)


def report() -> str:
    """The whole report as text."""
    backends = [backend(name) for name in NAMES]
    ops = sorted({op for b in backends for op in b.ops})
    width = max(map(len, ops))
    lines = [
        f"udp_fast {__version__}, Python {platform.python_version()}, {platform.platform()}",
        "",
        "packages   " + ", ".join(f"{p} {_version(p)}" for p in _PACKAGES),
        f"threads    {torch.get_num_threads()} (torch.set_num_threads)",
        f"GPU        {_cuda()}",
        "",
        "backends, in dispatch order",
        *(f"  {b.name:<10} {b.status()}" for b in backends),
        "",
        f"  {'op':<{width}}  " + "  ".join(f"{b.name:<9}" for b in backends).rstrip(),
    ]
    for op in ops:
        cells = "  ".join(f"{'yes' if op in b.ops and not b.missing else '-':<9}" for b in backends)
        lines.append(f"  {op:<{width}}  {cells.rstrip()}")
    lines += ["", "environment"]
    lines += [f"  {name}={os.environ.get(name, '(unset)')}" for name in _VARIABLES]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(report() + "\n")
