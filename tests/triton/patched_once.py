"""A pytest plugin: Triton's interpreter patches its language once a launch.

Of itself it searches the whole language at each call of a function within a kernel, to find everything
patched already: half of the time of our tests. What is computed stays the same.
"""

from __future__ import annotations

from typing import Any

from triton import language as tl
from triton.runtime import interpreter

patch = interpreter._patch_lang
#: Of the launch that is under way, the sets of modules whose functions are patched.
patched: set[tuple[bool, ...]] = set()


class Scope:
    """Of a launch, which restores at its end what it patched; or of a call within it."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner

    def restore(self) -> None:
        patched.clear()
        if self.inner is not None:
            self.inner.restore()


def patch_once(function: Any) -> Scope:
    reached = tuple(any(v is m for v in function.__globals__.values()) for m in (tl, tl.core))
    if reached in patched:
        return Scope()
    patched.add(reached)
    return Scope(patch(function))


interpreter._patch_lang = patch_once
