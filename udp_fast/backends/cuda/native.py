"""The way from tensors to the CUDA launchers: addresses, strides, the device and its stream."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from ..cpu.native import DTYPES as DTYPES
from ..cpu.native import Operand as Operand
from ..cpu.native import deliver as deliver
from ..cpu.native import image_shape as image_shape
from ..cpu.native import operand as operand

try:
    from udp_fast import _native_cuda as _module
except ImportError as error:
    _module: ModuleType | None = None  # type: ignore[no-redef]
    MISSING = (
        f"the CUDA kernels are not installed ({error}); reinstall where nvcc is found, or with"
        " FORCE_CUDA=1 to see why it is not"
    )
else:
    MISSING = ""

#: As setup.py names what the extension has code for: "sm_90a" or "PTX 80".
_CODE = re.compile(r"(sm_|PTX )(\d+)(\d)([af]?)")


def module() -> ModuleType:
    """The extension; only called once `MISSING` is known to be empty."""
    assert _module is not None, MISSING
    assert isinstance(_module, ModuleType)
    return _module


def runs_on(capability: tuple[int, int]) -> bool:
    """Whether the extension has code for GPUs of this compute capability.

    Machine code runs on later GPUs of the same major version, PTX on all later ones; what was made
    for one GPU alone (a) on that, and for a family (f) within the major version.
    """
    for kind, of_major, of_minor, only in _CODE.findall(module().architectures):
        made_for = int(of_major), int(of_minor)
        if capability == made_for:
            return True
        if only == "a" or capability < made_for:
            continue
        if capability[0] == made_for[0] or (kind == "PTX " and not only):
            return True
    return False


def no_device() -> str:
    """Why no GPU can be used in this process, in CUDA's own words; empty if one can."""
    if MISSING:
        return MISSING
    if torch.version.cuda is None:
        return "this torch was built without CUDA, so no tensor can be on a GPU"
    # By way of NVML: that does not initialise CUDA, after which a process could not be forked.
    if torch.cuda.device_count() > 0:
        return ""
    _, words = module().devices()
    return f"no GPU can be used: CUDA says {words or 'that there is none'}"


@contextmanager
def stream_of(tensor: Tensor) -> Iterator[int]:
    """Makes the tensor's GPU the current one; gives the address of the caller's stream on it."""
    with torch.cuda.device(tensor.device):
        yield torch.cuda.current_stream().cuda_stream


def workspace(size: int, like: Tensor) -> Tensor:
    """Scratch memory of ``size`` bytes for one call. torch keeps it from being reused before the
    stream is through with it."""
    return torch.empty((size + 7) // 8, dtype=torch.float64, device=like.device)


#: Address, stride (0: one for all images) and value, which counts where the address is 0.
PerImage = tuple[int, int, float]


def per_image(value: Tensor) -> PerImage:
    """One number for all images or one each. One that is on the CPU becomes a kernel argument."""
    if value.is_cpu and value.dim() == 0:
        return 0, 0, float(value)
    return value.data_ptr(), value.stride(0) if value.dim() else 0, 0.0
