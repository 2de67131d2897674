"""Which dtypes our kernels take, argument by argument: those of all backends read the same operands."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .registry import backend

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_NUMBERS = (torch.float32,)  # of images, timesteps or rows: kernels know them as floats alone
_INTEGERS = (torch.int64,)
_BYTES = (torch.uint8,)

#: Tensors that are something else than floats of whichever type.
_OTHERS: Mapping[str, Mapping[str, tuple[torch.dtype, ...]]] = {
    "attention_backward": {"lse": _NUMBERS},
    "denoising_loss": {"t": _INTEGERS, "table": _NUMBERS, "key": _INTEGERS, "weight": _NUMBERS},
    "group_norm_silu_backward": {"mean": _NUMBERS, "rstd": _NUMBERS},
    "image_scale": {"scale": _NUMBERS},
    "image_scale_": {"scale": _NUMBERS},
    "pgd_step_": {
        "x": FLOATS + _BYTES,
        "alpha": _NUMBERS,
        "eps": _NUMBERS,
        "mask": (*FLOATS, *_BYTES, torch.bool),
    },
    "pgd_step_multi_": {"xs": FLOATS + _BYTES, "alpha": _NUMBERS, "eps": _NUMBERS},
    "q_sample": {"t": _INTEGERS, "table": _NUMBERS, "key": _INTEGERS},
    "quantize": {"original": _BYTES, "eps": _NUMBERS, "key": _INTEGERS},
}

#: Asked first: of what is no tensor `isinstance` has to ask torch.
_PLAIN = frozenset((bool, int, float, str, type(None)))


@cache
def _arguments(op: str) -> tuple[tuple[str, tuple[torch.dtype, ...]], ...]:
    """Names of an op's arguments, and what each may be if it is a tensor or a dtype."""
    others = _OTHERS.get(op, {})
    parameters = inspect.signature(backend("reference").ops[op]).parameters
    return tuple((name, others.get(name, FLOATS)) for name in parameters)


def not_served(op: str, args: tuple[Any, ...]) -> str:
    """Of the first argument that kernels would misread, name, dtype and what it may be; or nothing."""
    # At every call, where a small latent's op takes a tenth of a millisecond.
    for value, (name, served) in zip(args, _arguments(op), strict=False):
        if type(value) in _PLAIN:
            continue
        if isinstance(value, Tensor):
            if value.dtype not in served:
                return _reason(name, value.dtype, served)
        elif isinstance(value, torch.dtype):
            if value not in served:
                return _reason(name, value, served)
        elif isinstance(value, (list, tuple)):
            for one in value:
                if isinstance(one, Tensor) and one.dtype not in served:
                    return _reason(name, one.dtype, served)
    return ""


def _reason(name: str, found: torch.dtype, served: tuple[torch.dtype, ...]) -> str:
    *most, last = (str(dtype).removeprefix("torch.") for dtype in served)
    only = f"{', '.join(most)} and {last}" if most else last
    return f"{name}: {found} is not served, only {only}"


def tensors_on_gpu(op: str, args: tuple[Any, ...]) -> Iterator[Tensor]:
    """Those that a kernel on a GPU reads or writes there: all but one number for all images, which
    goes along with the launch if it is on the processor."""
    for value, (_, served) in zip(args, _arguments(op), strict=False):
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if not isinstance(one, Tensor):
                continue
            if not (served is _NUMBERS and one.is_cpu and one.dim() == 0):
                yield one
