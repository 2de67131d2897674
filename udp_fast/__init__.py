"""udp_fast: fast kernels for protecting images against diffusion training (UDP and EUDP).

Attributes load on first use, so that ``import udp_fast`` and ``import udp_fast.ops`` need nothing
but torch and numpy; the command, the methods and the image code bring in their own libraries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .engine.api import protect
    from .explain import explain
    from .ops.attention import attention
    from .ops.budget import Budget

_LAZY = {
    "Budget": "udp_fast.ops.budget",
    "attention": "udp_fast.ops.attention",
    "explain": "udp_fast.explain",
    "protect": "udp_fast.engine.api",
}

__all__ = ["Budget", "__version__", "attention", "explain", "protect"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'udp_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
