"""udp_fast: fast kernels for protecting images against diffusion training (UDP and EUDP).

Attributes load on first use, so that ``import udp_fast`` and ``import udp_fast.ops`` need nothing
but torch and numpy; the command, the methods and the image code bring in their own libraries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .compat.diffusers import accelerate
    from .engine.api import protect
    from .explain import explain
    from .ops.attention import attention
    from .ops.budget import Budget
    from .ops.group_norm_silu import group_norm_silu

_LAZY = {
    "Budget": "udp_fast.ops.budget",
    "accelerate": "udp_fast.compat.diffusers",
    "attention": "udp_fast.ops.attention",
    "explain": "udp_fast.explain",
    "group_norm_silu": "udp_fast.ops.group_norm_silu",
    "protect": "udp_fast.engine.api",
}

__all__ = [
    "Budget",
    "__version__",
    "accelerate",
    "attention",
    "explain",
    "group_norm_silu",
    "protect",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'udp_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
