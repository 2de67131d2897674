"""Checks of the ops' arguments; every message names the argument, what came, what was expected."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .budget import Budget

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_tensor(
    op: str,
    name: str,
    value: Any,
    dtypes: tuple[torch.dtype, ...],
    *,
    like: Tensor | None = None,
    shape: tuple[int, ...] | None = None,
) -> None:
    """``value`` is a dense tensor of one of ``dtypes``, with ``shape`` or that of ``like``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name}: got {type(value).__name__}, expected a tensor")
    if value.dtype not in dtypes:
        expected = ", ".join(_name(d) for d in dtypes)
        raise TypeError(f"{op}: {name}: got dtype {_name(value.dtype)}, expected one of {expected}")
    if value.layout != torch.strided:
        raise TypeError(
            f"{op}: {name}: got layout {value.layout}, expected a dense (strided) tensor"
        )
    if shape is None and like is not None:
        shape = tuple(like.shape)
    if shape is not None and tuple(value.shape) != shape:
        raise ValueError(f"{op}: {name}: got shape {list(value.shape)}, expected {list(shape)}")
    if like is not None and value.device != like.device:
        raise ValueError(f"{op}: {name}: got a tensor on {value.device}, expected {like.device}")


def check_batched(op: str, name: str, value: Any, dtypes: tuple[torch.dtype, ...]) -> None:
    """``value`` is a tensor [B, ...]: its first dimension counts images."""
    check_tensor(op, name, value, dtypes)
    if value.dim() < 1:
        raise ValueError(f"{op}: {name}: got a 0-dim tensor, expected [B, ...], one row an image")


def check_updatable(op: str, name: str, value: Tensor) -> None:
    """``value`` may be written to in place."""
    if not torch.compiler.is_compiling() and value.is_neg():
        raise ValueError(
            f"{op}: {name}: got a tensor that torch negates only when it is read (is_neg()), expected"
            " one to write to (call .resolve_neg() first)"
        )
    if torch.is_grad_enabled() and value.requires_grad:
        raise ValueError(f"{op}: {name}: requires grad; update it under torch.no_grad()")
    if value.numel() and any(
        n > 1 and s == 0 for n, s in zip(value.shape, value.stride(), strict=True)
    ):
        raise ValueError(
            f"{op}: {name}: got an expanded tensor whose elements share memory; expected one element"
            " a place (call .contiguous() first)"
        )


def check_choice(op: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{op}: {name}: got {value!r}, expected one of {', '.join(choices)}")


def check_float_dtype(op: str, name: str, value: Any) -> None:
    if value not in FLOATS:
        expected = ", ".join(_name(d) for d in FLOATS)
        raise TypeError(f"{op}: {name}: got {value!r}, expected one of {expected}")


def check_range(op: str, name: str, value: Any) -> tuple[float, float]:
    """A pair (lo, hi) of finite floats with lo < hi."""
    try:
        lo, hi = (float(v) for v in value)
    except (TypeError, ValueError):
        raise ValueError(f"{op}: {name}: got {value!r}, expected a pair (lo, hi)") from None
    if not -math.inf < lo < hi < math.inf:
        raise ValueError(f"{op}: {name}: got ({lo}, {hi}), expected finite lo < hi")
    return lo + 0.0, hi + 0.0  # no negative zero


def constants(values: Tensor) -> Tensor:
    """Numbers that nothing is differentiated in, as float32 and in memory as they are."""
    return values.detach().resolve_neg().to(torch.float32)


def is_number(value: Any) -> bool:
    """A real number of Python's, numpy's or anybody's who registers with `numbers`; no bool."""
    # The first question answers most calls, and is the one that torch.compile knows.
    return isinstance(value, (int, float, Real)) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    """An integer of Python's or numpy's; no bool."""
    return isinstance(value, (int, Integral)) and not isinstance(value, bool)


def per_image(
    op: str, name: str, value: Any, batch: int, device: torch.device, span: float = 1.0
) -> Tensor:
    """A non-negative number per image as a float32 tensor, 0-dim (one for all, on the CPU) or [B].

    ``span``: of the range that images have, hi - lo, of which a `Budget` is a fraction. A tensor on an
    accelerator is not read: looking at its values would stall the stream.
    """
    if isinstance(value, Budget):
        value = value.eps * span
    if isinstance(value, Tensor):
        if value.dtype not in FLOATS or tuple(value.shape) not in ((), (batch,)):
            raise ValueError(
                f"{op}: {name}: got {_name(value.dtype)}{list(value.shape)}, expected a float"
                f" tensor of shape [] or [{batch}]"
            )
        if value.dim() == 1 and value.device != device:
            raise ValueError(f"{op}: {name}: got a tensor on {value.device}, expected {device}")
        value = constants(value)
        assert isinstance(value, Tensor)
        if value.device.type == "cpu" and not torch.compiler.is_compiling():
            bad = ~(torch.isfinite(value) & (value >= 0))
            if bool(bad.any()):
                first = value[bad].flatten()[0].item()
                raise ValueError(f"{op}: {name}: got {first}, expected finite values >= 0")
        return value
    if not is_number(value):
        raise TypeError(
            f"{op}: {name}: got {type(value).__name__}, expected a number or a tensor of shape []"
            f" or [{batch}]"
        )
    if not isinstance(value, (int, float)):
        value = float(value)
    if not 0 <= value <= torch.finfo(torch.float32).max:
        raise ValueError(f"{op}: {name}: got {value}, expected a finite float32 number >= 0")
    return torch.tensor(value, dtype=torch.float32, device="cpu")


def budget_per_image(
    op: str,
    eps: Any,
    batch: int,
    device: torch.device,
    range: tuple[float, float],
    norm: str = "linf",
) -> Tensor:
    """``eps`` by `per_image`; a number in units of x, which has ``range``. math.inf is no bound.

    A number that is larger than any change within the range was meant in other units, mostly as 8 of
    255 levels, and would bound nothing. Tensors are believed: reading one could stall a stream.
    """
    lo, hi = range
    width = hi - lo
    if is_number(eps) and norm == "linf" and eps > width * (1 + 1e-6):
        if eps != math.inf:
            eight = {1.0: "8/255", 2.0: "16/255"}.get(width, f"{8 * width / 255:g}")
            raise ValueError(
                f"{op}: eps: got {eps}, expected at most {width:g}, the width of range"
                f" ({lo:g}, {hi:g}): {eight} is eight levels, math.inf no bound"
            )
        eps = width
    elif is_number(eps) and eps == math.inf:
        eps = torch.finfo(torch.float32).max
    return per_image(op, "eps", eps, batch, device, span=width)


def check_key(op: str, key: Any, x: Tensor) -> None:
    """``key`` is what `noise_key` returns for x's images, and the images are within its reach."""
    check_tensor(op, "key", key, (torch.int64,), like=x, shape=(x.shape[0], 3))
    if x.shape[0] and x.numel() // x.shape[0] > 2**34:
        raise ValueError(
            f"{op}: got images of {x.numel() // x.shape[0]} elements, expected at most 2**34 (the"
            " noise counter's 2**32 blocks of 4)"
        )


def check_timesteps(
    op: str, t: Any, table: Any, table_name: str, x: Tensor
) -> tuple[Tensor, Tensor]:
    """``t`` int64 [B] and the schedule's float table [T], on x's device; the table as float32."""
    check_tensor(op, "t", t, (torch.int64, torch.int32), like=x, shape=(x.shape[0],))
    check_tensor(op, table_name, table, FLOATS)
    if table.dim() != 1 or table.numel() == 0:
        raise ValueError(f"{op}: {table_name}: got shape {list(table.shape)}, expected [T], T > 0")
    if table.device != x.device:
        raise ValueError(f"{op}: {table_name}: got a tensor on {table.device}, expected {x.device}")
    return t.to(torch.int64), constants(table)


def check_timestep_values(op: str, t: Tensor | None, table: Tensor | None) -> None:
    """Every t indexes the table. Only where reading t costs no synchronisation."""
    if t is None or table is None or t.device.type != "cpu" or t.numel() == 0:
        return
    low, high = int(t.min()), int(t.max())
    if low < 0 or high >= table.numel():
        raise IndexError(
            f"{op}: t: got values from {low} to {high}, expected 0 <= t < {table.numel()}, the"
            " length of the schedule"
        )


_ORDINARY = frozenset((Tensor, torch.nn.Parameter, type(None)))

# Under names of our own: after a kernel has gone through the caches, each dictionary of torch's on the
# way to a function takes about a microsecond. What torch.export traces without dynamo are no ordinary
# tensors.
is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_dispatch_mode = torch._C._get_dispatch_mode
_PROXY, _FAKE = torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FAKE
count_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._functorch.peek_interpreter_stack
_is_tracing = torch._C._is_tracing
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def is_plain(*tensors: Tensor | None) -> bool:
    """True when an op may call its backend directly: eager, ordinary tensors, no autograd wanted.

    torch.library's dispatch costs 5 to 40 microseconds a call, which the in-place update of a small
    latent would feel; it is needed only for torch.compile, tensor subclasses and autograd.
    """
    return is_eager(*tensors) and not wants_grad(*tensors)


def is_eager(*tensors: Tensor | None) -> bool:
    """True outside torch.compile for ordinary tensors whose memory holds what they are, where nobody
    traces or transforms what happens to them: no fake and no subclass, which would be dispatched to.

    Raises:
        NotImplementedError: a tensor has a tangent, which torch.library would drop without a word.
    """
    if is_dynamo_compiling() or not _ORDINARY.issuperset(map(type, tensors)):
        return False
    for tensor in tensors:  # a loop, and no generator, which would take twice as long
        if tensor is not None and (tensor.is_neg() or _is_wrapped(tensor)):
            return False
    if forward_ad._current_level >= 0:
        _refuse_tangents(tensors)
    # make_fx, torch.jit.trace or a transform of torch.func: a kernel called directly would escape them.
    # Where tensors are made fake, those that an op makes of its numbers are.
    return (
        _dispatch_mode(_PROXY) is None
        and _dispatch_mode(_FAKE) is None
        and _transforms() is None
        and not _is_tracing()
    )


def is_usual() -> bool:
    """True outside torch.compile, where nobody traces, transforms, gives tangents or sees what is
    dispatched: then a call is eager if an earlier one with such tensors was."""
    return (
        not is_dynamo_compiling()
        and forward_ad._current_level < 0
        and count_modes() == 0
        and _transforms() is None
        and not _is_tracing()
    )


def _refuse_tangents(tensors: Iterable[Tensor | None]) -> None:
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:  # type: ignore[no-untyped-call]
            raise NotImplementedError(
                "got a tensor with a tangent of forward-mode autograd, expected none: the ops are"
                " differentiated backward only"
            )


def written(*tensors: Tensor) -> None:
    """Tells autograd that a kernel has written to these, so that a backward which needs what they held
    before is an error and not a wrong result. torch.compile does so itself."""
    if torch.compiler.is_compiling():
        return
    for tensor in tensors:
        if not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)


def wants_grad(*tensors: Tensor | None) -> bool:
    """True when autograd is on and one of the tensors requires a gradient."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
