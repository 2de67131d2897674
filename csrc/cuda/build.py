"""How udp_fast._native_cuda is built; setup.py loads this file. No torch and no GPU are needed.

CUDA 12 or 13. It is built where nvcc is found: the one of CUDA_HOME or CUDA_PATH, on PATH, in
/usr/local/cuda, or of PyPI's nvidia-cuda-nvcc 13 in the running environment, beside nvidia-cuda-cccl,
whose headers it needs (what PyPI has for CUDA 12 is an assembler without a compiler). A compiler that merely happens to be there may
lack headers or dislike the host's g++: then the package is built without these kernels, with a
warning. FORCE_CUDA=1, or a TORCH_CUDA_ARCH_LIST as for torch's own extensions ("8.0;9.0+PTX"), says
that they are meant to be there, and makes whatever prevents it an error. UDP_NO_CUDA=1 wins over all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

#: Compute capabilities built for by default, as far as this nvcc knows them; PTX, which the driver
#: of a later GPU translates, is kept of the first.
ARCHITECTURES = ("80", "86", "89", "90", "100")

SOURCES = (
    "csrc/cuda/attention.cu",
    "csrc/cuda/attention_backward.cu",
    "csrc/cuda/attention_float.cu",
    "csrc/cuda/attention_one_tile.cu",
    "csrc/cuda/attention_wide.cu",
    "csrc/cuda/denoising_loss.cu",
    "csrc/cuda/geglu.cu",
    "csrc/cuda/group_norm_silu.cu",
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


class Unavailable(Exception):
    """Why the CUDA kernels cannot be built here."""


@cache
def nvcc() -> Path | None:
    """The compiler, or None where there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        named = Path(home, "bin/nvcc")
        if not named.is_file():
            raise Unavailable(f"CUDA_HOME or CUDA_PATH names {home}, which has no bin/nvcc")
        return named
    on_path = shutil.which("nvcc")
    candidates = [Path(on_path)] if on_path else []
    candidates += [Path("/usr/local/cuda/bin/nvcc")]
    for entry in sys.path:
        candidates += sorted(Path(entry).glob("nvidia/*/bin/nvcc"))
    return next((c for c in candidates if c.is_file()), None)


def demanded() -> bool:
    """Whether not to build the CUDA kernels would be an error."""
    return not _flag("UDP_NO_CUDA") and (
        _flag("FORCE_CUDA") or bool(os.environ.get("TORCH_CUDA_ARCH_LIST"))
    )


def wanted() -> bool:
    """Whether to build the CUDA kernels.

    Raises:
        Unavailable: they are demanded, or CUDA_HOME names a compiler, and there is none.
    """
    if _flag("UDP_NO_CUDA"):
        return False
    found = sys.platform == "linux" and nvcc() is not None
    if demanded() and not found:
        raise Unavailable(
            "FORCE_CUDA=1 or TORCH_CUDA_ARCH_LIST asks for the CUDA kernels, which need Linux and"
            " nvcc:\nput it on PATH, name its folder in CUDA_HOME, or install PyPI's"
            " nvidia-cuda-nvcc and nvidia-cuda-cccl and use pip's --no-build-isolation"
        )
    return found


def _ask(*arguments: str) -> str:
    command = [str(nvcc()), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"{' '.join(command)}: {error}") from error
    return done.stdout + done.stderr


@cache
def toolkit() -> Path:
    """The folder that holds include/ and the libraries; nvcc itself may be a script elsewhere."""
    found = re.search(r"^#\$ TOP=(.*)$", _ask("--dryrun", "-x", "cu", "-E", os.devnull), re.M)
    if found is None:
        raise Unavailable(f"{nvcc()} does not say where its toolkit is")
    return Path(found[1]).resolve()


def library_folder() -> Path:
    for folder in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
        if (toolkit() / folder / "libcudart_static.a").is_file():
            return toolkit() / folder
    raise Unavailable(
        f"{toolkit()} has no libcudart_static.a; with PyPI's packages install nvidia-cuda-runtime too"
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
        return found, found[:1]
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
    """The nvcc call that makes an object file of one .cu file, for all architectures.

    No kernel uses an instruction that only a later GPU has, so the machine code of all comes from one
    front-end pass, for the oldest: half the time of a pass each. An architecture-specific target
    (9.0a) would have it otherwise.
    """
    code, ptx = architectures()
    oldest = min((a for a in (*code, *ptx) if a.isdigit()), key=int, default="")
    targets = [f"-gencode=arch=compute_{oldest if a.isdigit() else a},code=sm_{a}" for a in code]
    targets += [f"-gencode=arch=compute_{a},code=compute_{a}" for a in ptx]
    return [str(nvcc()), *FLAGS, _compression(), *targets, "-c", source, "-o", output]
