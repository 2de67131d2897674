"""Letting torch.compile see the Triton kernels: an op becomes its launches in the traced graph.

`torch.library.triton_op` does this for ops that it registers itself; ours have their schemas, fakes
and gradients already, so only its last step is taken: when AOTAutograd makes a graph functional, an
op whose call Triton would take is replaced by what its launcher does. Any other call stays the
opaque node it was, and is dispatched when it runs.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch._subclasses.functional_tensor import FunctionalTensorMode

from . import dispatch
from .registry import Backend

#: Op of torch.library -> op of the backends.
OPS = {
    "attention": "attention",
    "attention_backward": "attention_backward",
    "denoising_loss": "denoising_loss",
    "geglu": "geglu",
    "geglu_backward": "geglu_backward",
    "group_norm_silu": "group_norm_silu",
    "group_norm_silu_backward": "group_norm_silu_backward",
    "image_scale": "image_scale",
    "pgd_step": "pgd_step_",
    "pgd_step_": "pgd_step_",
    "q_sample": "q_sample",
    "quantize": "quantize",
}


def _visible(op: str, args: tuple[Any, ...]) -> Backend | None:
    """The Triton backend if this call goes there, and to compiled kernels."""
    try:
        chosen = dispatch.select(op, args)
    except dispatch.BackendError:  # the op raises it when it runs
        return None
    if chosen.name != "triton":
        return None
    from .triton import INTERPRETS

    return None if INTERPRETS else chosen


def _see_through(name: str, op: str) -> None:
    def decompose(
        mode: Any, function: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        chosen = None if kwargs else _visible(op, args)
        if chosen is None:
            return mode.__torch_dispatch__(function, types, args, kwargs)
        from .triton.launch import traced

        with mode, traced():
            if name == op:
                return chosen.ops[op](*args)
            # The functional form: the in-place one on a copy.
            copy = args[0].clone()
            return copy, *chosen.ops[op](copy, *args[1:])

    torch.library.register_torch_dispatch(f"udp_fast::{name}", FunctionalTensorMode, decompose)


@cache
def install() -> None:
    """For all ops, once they are defined. Asks no backend yet: looking for a GPU takes time."""
    for name, op in OPS.items():
        _see_through(name, op)
