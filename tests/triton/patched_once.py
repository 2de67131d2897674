"""A pytest plugin: Triton's interpreter does a few things once instead of again and again. Results stay
the same; of the time that interpreted tests take less than half is left.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from triton import language as tl
from triton.language.semantic import TritonSemantic
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

# Each value has a type of its own, whose name is written out, and a shape, of wrapped numbers.
make_block_type = tl.block_type.__init__
block_types: dict[Any, dict[str, Any]] = {}
#: So that equal shapes are one object.
shapes: dict[tuple[int, ...], Any] = {}


def make_block_type_once(self: Any, element_ty: Any, shape: Any) -> None:
    key = (element_ty.name, *[getattr(n, "value", n) for n in shape])
    if key not in block_types:
        make_block_type(self, element_ty, shape)
        self.shape = shapes.setdefault(key[1:], self.shape)
        block_types[key] = dict(vars(self))
    else:
        vars(self).update(block_types[key])


tl.block_type.__init__ = make_block_type_once

make_tensor = tl.tensor.__init__
#: Of a shape, what a tensor keeps of it. By identity, so the key is kept as well.
of_shapes: dict[int, tuple[Any, Any, Any]] = {}
NO_SHAPE = 0


def make_tensor_once(self: Any, handle: Any, type: Any) -> None:
    shape = type.shape if type.is_block() else None
    key = NO_SHAPE if shape is None else id(shape)
    if key not in of_shapes:
        make_tensor(self, handle, type)
        of_shapes[key] = (shape, self.numel, self.shape)
        return
    self.handle, self.type, self.dtype = handle, type, type.scalar
    _, self.numel, self.shape = of_shapes[key]


tl.tensor.__init__ = make_tensor_once

# It compares all sizes of two shapes, and all names of types, where nearly always both are one object.
broadcast = TritonSemantic.broadcast_impl_value


def broadcast_if_needed(self: Any, lhs: Any, rhs: Any) -> Any:
    if lhs.shape is rhs.shape:
        return lhs, rhs
    return broadcast(self, lhs, rhs)


TritonSemantic.broadcast_impl_value = broadcast_if_needed

# It derives the type that both operands of an operation are converted to, where both have it; and makes
# an array of a number at each operation with it, though nothing ever changes a tensor.
checked = TritonSemantic.binary_op_type_checking_impl
numbers: dict[Any, Any] = {}
NUMBERS = (int, float, bool)


def checked_if_unlike(
    self: Any,
    lhs: Any,
    rhs: Any,
    allow_lhs_ptr: bool = False,
    allow_rhs_ptr: bool = False,
    arithmetic_check: bool = True,
    div_or_mod: bool = False,
) -> Any:
    flags = (allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod)
    if type(lhs) is tl.tensor and type(rhs) in NUMBERS:
        # repr tells 0.0 from -0.0, and makes a NaN equal itself; all shapes are kept in `of_shapes`.
        key = (type(rhs), repr(rhs), lhs.dtype.name, id(lhs.shape), flags)
        if key in numbers:
            return lhs, numbers[key]
        converted, array = checked(self, lhs, rhs, *flags)
        if converted is lhs:
            numbers[key] = array
        return converted, array
    both = type(lhs) is tl.tensor and type(rhs) is tl.tensor and lhs.dtype is rhs.dtype
    if both and not div_or_mod and not lhs.dtype.is_ptr():  # a quotient of halves is a float
        return broadcast_if_needed(self, lhs, rhs)
    return checked(self, lhs, rhs, *flags)


TritonSemantic.binary_op_type_checking_impl = checked_if_unlike

cast = TritonSemantic.cast


def cast_if_unlike(self: Any, input: Any, dst_ty: Any, fp_downcast_rounding: Any = None) -> Any:
    if input.dtype is dst_ty:
        return input
    return cast(self, input, dst_ty, fp_downcast_rounding)


TritonSemantic.cast = cast_if_unlike

same_dtype = tl.dtype.__eq__
tl.dtype.__eq__ = lambda self, other: self is other or same_dtype(self, other)


# It copies the arguments of each call, to leave out what it then passes itself.
def patch_attribute(obj: Any, name: str, member: Any, _builder: Any, scope: Any) -> None:
    def called(*args: Any, **kwargs: Any) -> Any:
        kwargs["_semantic"] = interpreter.interpreter_semantic
        return member(*args, **kwargs)

    scope.set_attr(obj, name, called)


interpreter._patch_attr = patch_attribute

# It computes whether integers overflow, for an assertion that is made only with debug set.
options = interpreter.interpreter_builder.options
interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)
