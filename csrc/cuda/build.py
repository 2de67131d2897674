"""How udp_fast._native_cuda is built; setup.py loads this file. No torch and no GPU are needed.

It is built when asked for: by FORCE_CUDA=1, or by a TORCH_CUDA_ARCH_LIST as for torch's own
extensions ("8.0;9.0+PTX"). nvcc is the one named by CUDA_HOME or CUDA_PATH, on PATH, in
/usr/local/cuda, or from PyPI's nvidia-cuda-nvcc package in the running environment. UDP_NO_CUDA=1
wins over both. Not by default yet: no backend takes calls to these kernels so far, and they are
minutes of compilation.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

#: Compute capabilities built for by default, as far as this nvcc knows them; PTX of the last serves
#: later GPUs.
ARCHITECTURES = ("80", "86", "89", "90", "100")

SOURCES = (
    "csrc/cuda/denoising_loss.cu",
    "csrc/cuda/image_scale.cu",
    "csrc/cuda/pgd_step.cu",
    "csrc/cuda/pgd_step_multi.cu",
    "csrc/cuda/q_sample.cu",
    "csrc/cuda/quantize.cu",
)

#: For every kernel, also when it is compiled to be inspected. No contraction: an fma is where the
#: source says so, as on the CPU.
FLAGS = ("-std=c++17", "-O3", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden")


def _flag(name: str) -> bool:
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"{name}: got {value!r}, expected 0 or 1")
    return value == "1"


@cache
def nvcc() -> Path | None:
    """The compiler, or None where there is none."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for home in homes:
        if not (home / "bin/nvcc").is_file():
            raise SystemExit(
                f"udp_fast: CUDA_HOME or CUDA_PATH names {home}, which has no bin/nvcc"
            )
    on_path = shutil.which("nvcc")
    candidates = [home / "bin/nvcc" for home in homes]
    candidates += [Path(on_path)] if on_path else []
    candidates += [Path("/usr/local/cuda/bin/nvcc")]
    for entry in sys.path:
        candidates += sorted(Path(entry).glob("nvidia/*/bin/nvcc"))
    return next((c for c in candidates if c.is_file()), None)


def wanted() -> bool:
    """Whether to build the CUDA kernels; ends the build where they are demanded and cannot be."""
    if _flag("UDP_NO_CUDA"):
        return False
    if not (_flag("FORCE_CUDA") or os.environ.get("TORCH_CUDA_ARCH_LIST")):
        return False
    if sys.platform != "linux" or nvcc() is None:
        raise SystemExit(
            "udp_fast: FORCE_CUDA=1 or TORCH_CUDA_ARCH_LIST asks for the CUDA kernels, which need"
            " Linux and nvcc:\nput it on PATH, name its folder in CUDA_HOME, or install PyPI's"
            " nvidia-cuda-nvcc and use pip's --no-build-isolation."
        )
    return True


def _ask(*arguments: str) -> str:
    done = subprocess.run([str(nvcc()), *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


@cache
def toolkit() -> Path:
    """The folder that holds include/ and the libraries; nvcc itself may be a script elsewhere."""
    found = re.search(r"^#\$ TOP=(.*)$", _ask("--dryrun", "-x", "cu", "-E", os.devnull), re.M)
    assert found is not None, "nvcc --dryrun names no TOP"
    return Path(found[1]).resolve()


def library_folder() -> Path:
    for folder in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
        if (toolkit() / folder / "libcudart_static.a").is_file():
            return toolkit() / folder
    raise SystemExit(
        f"udp_fast: {toolkit()} has no libcudart_static.a; with PyPI's packages install"
        " nvidia-cuda-runtime too, or set UDP_NO_CUDA=1 to install without the CUDA kernels"
    )


def version() -> str:
    found = re.search(r"release (\d+\.\d+)", _ask("--version"))
    return found[1] if found else "unknown"


@cache
def architectures() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Compute capabilities to make machine code for ("80", …), and those to keep PTX of."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if not asked:
        known = set(re.findall(r"compute_(\d+)", _ask("--list-gpu-arch")))
        found = tuple(a for a in ARCHITECTURES if a in known)
        return found, found[-1:]
    code, ptx = [], []
    for entry in re.split(r"[;,\s]+", asked.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if match is None or int(match[1]) < 8:
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST: got {entry!r}, expected entries like 9.0 or 9.0+PTX, not below"
                " 8.0"
            )
        code.append(match[1] + match[2] + match[3])
        ptx += code[-1:] if match[4] else []
    return tuple(code), tuple(ptx)


def _compression() -> str:
    # The small form needs a driver of CUDA 12.4; the one that CUDA 13 needs anyway is newer.
    return (
        "--compress-mode=size" if int(version().split(".")[0]) >= 13 else "-Xfatbin=-compress-all"
    )


def command(source: str, output: str) -> list[str]:
    """The nvcc call that makes an object file of one .cu file, for all architectures."""
    code, ptx = architectures()
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in code]
    targets += [f"-gencode=arch=compute_{a},code=compute_{a}" for a in ptx]
    return [str(nvcc()), *FLAGS, _compression(), *targets, "-c", source, "-o", output]


def cubin_command(source: str, output: str, architecture: str) -> list[str]:
    """The nvcc call that makes one cubin to look into, with ptxas' report on stderr."""
    target = [f"-arch=sm_{architecture}", "-cubin", "-Xptxas=-v"]
    return [str(nvcc()), *FLAGS, *target, source, "-o", output]
