"""A pytest plugin: Triton's interpreter does a few things once instead of again and again. Results stay
the same; of the time that interpreted tests take less than half is left.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from triton import language as tl
from triton.runtime import interpreter

# It patches its language for each launch, and searches all of it at each call of a function within a
# kernel, to find everything patched already. Here nothing else uses it: once will do.
patch = interpreter._patch_lang
patched: set[Any] = set()


class Scope:
    def restore(self) -> None:
        pass


def patch_once(function: Any) -> Scope:
    if function not in patched:
        reached = tuple(any(v is m for v in function.__globals__.values()) for m in (tl, tl.core))
        if reached not in patched:
            patch(function)
        patched.update((function, reached))
    return Scope()


interpreter._patch_lang = patch_once


# It makes a table of dtypes at each look into it.
numpy_dtype = interpreter._get_np_dtype
numpy_dtypes: dict[str, Any] = {}


def numpy_dtype_once(dtype: Any) -> Any:
    name = dtype.scalar.name
    if name not in numpy_dtypes:
        numpy_dtypes[name] = numpy_dtype(dtype)
    return numpy_dtypes[name]


interpreter._get_np_dtype = numpy_dtype_once

# Each value has a type of its own, whose name is written out.
make_block_type = tl.block_type.__init__
block_types: dict[Any, dict[str, Any]] = {}


def make_block_type_once(self: Any, element_ty: Any, shape: Any) -> None:
    key = (element_ty.name, *(getattr(n, "value", n) for n in shape))
    if key not in block_types:
        make_block_type(self, element_ty, shape)
        block_types[key] = dict(vars(self))
    else:
        vars(self).update(block_types[key])


tl.block_type.__init__ = make_block_type_once

# It computes whether integers overflow, for an assertion that is made only with debug set.
options = interpreter.interpreter_builder.options
interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)
