"""Letting torch.compile see the kernels: an op becomes its Triton launches in the traced graph.

`torch.library.triton_op` does this for ops that it registers itself; ours have their schemas, fakes
and gradients already, so only its last step is taken: when AOTAutograd makes a graph functional, an
op whose arguments Triton serves is replaced by what its launcher does. On any other machine, and
for any other call, the op stays the opaque node it was.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
from torch._subclasses.functional_tensor import FunctionalTensorMode

from . import BACKEND, INTERPRETS

#: Op of torch.library -> op of the backend.
OPS = {
    "denoising_loss": "denoising_loss",
    "image_scale": "image_scale",
    "pgd_step": "pgd_step_",
    "pgd_step_": "pgd_step_",
    "q_sample": "q_sample",
    "quantize": "quantize",
}


def _visible(op: str, args: tuple[Any, ...]) -> bool:
    wanted = os.environ.get("UDP_FAST_BACKEND", "") in ("", "auto", BACKEND.name)
    usable = not BACKEND.missing and not INTERPRETS
    return wanted and usable and not BACKEND.not_supported_reasons(op, args)


def _see_through(name: str, op: str) -> None:
    def decompose(
        mode: Any, function: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if kwargs or not _visible(op, args):
            return mode.__torch_dispatch__(function, types, args, kwargs)
        from .launch import traced

        with mode, traced():
            if name == op:
                return BACKEND.ops[op](*args)
            # The functional form: the in-place one on a copy.
            copy = args[0].clone()
            return copy, *BACKEND.ops[op](copy, *args[1:])

    torch.library.register_torch_dispatch(f"udp_fast::{name}", FunctionalTensorMode, decompose)


@cache
def install() -> None:
    """For all ops, once they are defined; imports no Triton."""
    for name, op in OPS.items():
        _see_through(name, op)
