"""Every kernel in every form that is launched, to be compiled and examined where there is no GPU.

The forms come from the launches themselves: `CASES` lists calls of the ops, their launches are
recorded on meta tensors, and each distinct one is a `Variant`. A kernel of this package that no case
launches is an error. To add an op, write its calls:

    @cases("my_op")
    def _my_op() -> Iterator[Case]:
        for shape in ("dense", "odd"):
            yield Case(shape, "bf16", (image(shape, torch.bfloat16), scale, True))
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .attention import attention, attention_backward
from .denoising_loss import denoising_loss
from .geglu import geglu, geglu_backward
from .group_norm_silu import group_norm_silu, group_norm_silu_backward
from .image_scale import image_scale, image_scale_
from .launch import Launch, recorded, tuned
from .pgd_step import pgd_step_
from .pgd_step_multi import pgd_step_multi_
from .q_sample import q_sample
from .quantize import quantize

#: Compute capabilities that the proof compiles for, and for which of them the tiles of autotuning.
ARCHS = (80, 86, 89, 90, 100)
ARCHS_TUNED = (80, 90)

F32, BF16, F16, U8 = torch.float32, torch.bfloat16, torch.float16, torch.uint8
NAMES = {F32: "f32", BF16: "bf16", F16: "f16", U8: "u8"}

#: What an operand looks like in memory, and the shape that stands for it.
SHAPES = {
    "dense": (8, 3, 256, 256),  # sizes and strides are multiples of 16: vector accesses
    "huge": (2, 64, 8192, 8192),  # the same in 64 bits
    "latent": (8, 4, 64, 64),  # channels last, where noise needs to know which element is which
    "rgb": (8, 3, 256, 256),  # so, with three channels
    "odd": (1, 3, 255, 255),  # one image of any size: vectors, up to its last few elements
    "ragged": (2, 3, 255, 255),  # several: rows begin anywhere, one element an access
    "strided": (2, 6, 256, 256),  # an operand in another order than the rest: one element an access
    "planes": (2, 320, 64, 64),  # features between layers
    "small": (2, 1280, 8, 8),  # several channels a tile
    "channels": (2, 320, 64, 64),  # the same, channels last
    "few": (2, 1280, 8, 8),
    "uneven": (2, 36, 15, 15),  # channels of no whole number of vectors
    "tokens": (2, 1024, 2560),  # of a feed-forward: values and gates
    "narrow": (3, 7, 148),  # with rows of no whole number of vectors
    "heads": (2, 8, 1024),  # attention: so many batches, heads and queries; head dims have names
}
VECTORISED = (
    "dense",
    "huge",
    "latent",
    "rgb",
    "odd",
    "planes",
    "small",
    "channels",
    "few",
    "tokens",
)


def image(shape: str, dtype: torch.dtype) -> Tensor:
    """A tensor without memory of one of `SHAPES`."""
    last = shape in ("latent", "rgb", "strided", "channels", "few")
    tensor = torch.empty(SHAPES[shape], dtype=dtype, device="meta")
    return tensor.contiguous(memory_format=torch.channels_last) if last else tensor


class Case(NamedTuple):
    """A call of an op."""

    shape: str
    label: str
    arguments: tuple[Any, ...]


_CASES: list[tuple[Callable[..., Any], Callable[[], Iterator[Case]]]] = []


def cases(op: Callable[..., Any]) -> Callable[[Any], Any]:
    """Registers a function that yields an op's `Case`s."""

    def register(function: Callable[[], Iterator[Case]]) -> Callable[[], Iterator[Case]]:
        _CASES.append((op, function))
        return function

    return register


@dataclass(frozen=True)
class Variant:
    """One kernel in one form."""

    name: str  # kernel-shape-label, and where it is `tuned` @warps
    kernel: Any = field(repr=False)
    shape: str  # a key of SHAPES
    signature: Mapping[str, str]  # argument -> Triton's name of its type, or "constexpr"
    constants: Mapping[str, Any]
    multiples: tuple[str, ...]  # arguments known to be multiples of 16
    warps: int
    streams: Mapping[str, int]  # elementwise operands -> bytes of an element
    tuned: bool = False  # in a tile that only autotuning chooses
    stages: int | None = None  # of pipelined loops; None: Triton's default
    fuses: bool = False  # products and sums, into one rounding
    #: Query-key pairs that a program handles in a turn of its main loop; 0 for kernels without
    #: products, None where a turn is over another dimension.
    pairs: int | None = 0

    @property
    def walks(self) -> bool:
        """False for the second stage of a sum, which has one program an image."""
        return bool(self.streams)

    @property
    def vectorised(self) -> bool:
        """True where no access of the main loop may be narrower than `access` says."""
        return self.walks and self.shape in VECTORISED

    @property
    def elements(self) -> int:
        """Of a thread, in one turn of the main loop."""
        channels = self.constants.get("INTERLEAVED", 0)
        groups, width = self.constants["GROUPS"], self.constants["WIDTH"]
        return groups * (4 * channels or width) // (32 * self.warps)

    @property
    def loaded(self) -> tuple[str, ...]:
        """The streamed operands that are read."""
        stored = set(self.stored) - _UPDATED
        return tuple(name for name in self.streams if name not in stored)

    @property
    def stored(self) -> tuple[str, ...]:
        """Those that are written."""
        return tuple(name for name in _STORED[self.kernel.__name__] if name in self.streams)

    @property
    def bytes(self) -> int:
        """That an element costs at least, loads and stores."""
        return sum(self.streams[name] for name in (*self.loaded, *self.stored))

    @property
    def sums(self) -> bool:
        """True where the threads of a program add something up, through shared memory."""
        return not {"partials", "skipped"}.isdisjoint(self.signature)

    def access(self, operand: str) -> int:
        """Bytes that one access of a thread to a streamed operand should move."""
        run = 4 if self.constants.get("INTERLEAVED", 0) else self.constants["WIDTH"]
        return min(16, self.streams[operand] * run)


#: What each kernel that walks over images stores; `_UPDATED` is read before.
_STORED = {
    "channel_moments_kernel": (),
    "denoising_loss_kernel": ("grad",),
    "geglu_backward_kernel": ("dx", "dx_gates"),
    "geglu_kernel": ("y",),
    "gradient_square_kernel": (),
    "gradient_sums_kernel": (),
    "image_scale_kernel": ("out",),
    "input_gradient_kernel": ("dx",),
    "normalise_kernel": ("y",),
    "pgd_step_kernel": ("delta", "adv"),
    "pgd_step_multi_kernel": ("delta", "adv"),
    "q_sample_kernel": ("out", "noise_out"),
    "quantize_kernel": ("out",),
    "stepped_square_kernel": (),
}
_UPDATED = {"delta"}

#: What passes through a kernel element by element and comes without strides of its own.
_STREAMED = {
    "channel_moments_kernel": ("x",),
    "geglu_backward_kernel": ("grad", "x", "dx"),
    "geglu_kernel": ("x", "y"),
    "gradient_sums_kernel": ("grad", "x"),
    "input_gradient_kernel": ("grad", "x", "dx"),
    "normalise_kernel": ("x", "y"),
    "q_sample_kernel": ("noise_out",),
}
#: Of those the ones that hold two numbers for an element, and what the other is called.
_DOUBLE = {
    "geglu_backward_kernel": {"x": "x_gates", "dx": "dx_gates"},
    "geglu_kernel": {"x": "x_gates"},
}
_TYPES = {
    torch.float64: "*fp64",
    F32: "*fp32",
    BF16: "*bf16",
    F16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    U8: "*u8",
}


def _variant(name: str, shape: str, launch: Launch, tuned: bool) -> Variant:
    """The form that Triton's launcher would compile for these arguments."""
    signature, constants, multiples = {}, {}, []
    parameters = {p.name: p for p in launch.kernel.params}
    for key, value in launch.arguments.items():
        aligned = False
        if parameters[key].is_constexpr or value is None or (type(value) is int and value == 1):
            signature[key], constants[key] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[key] = _TYPES[value.dtype]
            aligned = value.storage_offset() * value.element_size() % 16 == 0
        elif isinstance(value, float):
            signature[key] = "fp32"
        else:
            signature[key] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0
        if aligned:
            multiples.append(key)
    for key, parameter in parameters.items():
        if key not in signature:  # left to its default
            signature[key], constants[key] = "constexpr", parameter.default
    streams = {
        key: value.element_size()
        for key, value in launch.arguments.items()
        if isinstance(value, Tensor)
        and (f"{key}_pixel" in signature or key in _STREAMED.get(launch.kernel.__name__, ()))
    }
    twice = _DOUBLE.get(launch.kernel.__name__, {})
    streams |= {other: streams[key] for key, other in twice.items()}
    # Operands that come by address in a table have their types among the constants.
    streams |= {
        key.lower(): value.primitive_bitwidth // 8
        for key, value in constants.items()
        if isinstance(value, tl.dtype)
    }
    return Variant(
        name,
        launch.kernel,
        shape,
        signature,
        constants,
        tuple(multiples),
        launch.warps,
        streams,
        tuned,
        launch.stages,
        launch.fuses,
        _pairs(launch.arguments),
    )


def _pairs(arguments: Mapping[str, Any]) -> int | None:
    """Of the attention kernels, which name their tiles alike; those of padding, too."""
    if "KEPT" in arguments or "CHUNK" in arguments:
        return None
    if "KEYS0" in arguments:
        return int(arguments["ROWS"] * (arguments["KEYS0"] + arguments["KEYS1"]))
    return int(arguments["ROWS"] * arguments["KEYS"]) if "KEYS" in arguments else 0


@cache
def variants() -> tuple[Variant, ...]:
    """Every form of every kernel, by way of `CASES`; needs Triton, but no GPU."""
    found: dict[str, Variant] = {}
    for op, function in _CASES:
        for case in function():
            with recorded() as launches:
                op(*case.arguments)
            for launch in launches:
                kernel = launch.kernel.__name__.removesuffix("_kernel")
                name = f"{kernel}-{case.shape}-{case.label}"
                # A call may launch a kernel in several forms.
                again = sum(v.name.startswith(name) for v in found.values() if not v.tuned)
                if again:
                    name = f"{name}-{again + 1}"
                for tile in (launch, *tuned(launch)):
                    of_tile = "" if tile is launch else f"@{tile.warps}"
                    new = _variant(name + of_tile, case.shape, tile, tile is not launch)
                    found.setdefault(_identity(new), new)
    missing = _kernels() - {v.kernel.__name__ for v in found.values()}
    if missing:
        raise LookupError(f"variants: no case launches {', '.join(sorted(missing))}")
    return tuple(found.values())


def _identity(v: Variant) -> str:
    form = (v.kernel.__name__, v.signature, v.constants, v.multiples, v.warps, v.stages, v.fuses)
    return repr(form)


def _kernels() -> set[str]:
    """The names of all kernels in this package."""
    package = importlib.import_module(__package__)
    modules = (
        importlib.import_module(f"{__package__}.{m.name}")
        for m in pkgutil.iter_modules(package.__path__)
    )
    return {name for module in modules for name in vars(module) if name.endswith("_kernel")}


def compile_variant(variant: Variant, cc: int) -> Any:
    """The compiled kernel (``.asm["cubin"]``, ``.asm["ptx"]`` ...) for compute capability ``cc``.

    Triton keeps results by content: the second time is quick.
    """
    names = variant.kernel.arg_names
    source = ASTSource(
        variant.kernel,
        {name: variant.signature[name] for name in names},
        constexprs=dict(variant.constants),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in variant.multiples},
    )
    options = {"num_warps": variant.warps, "enable_fp_fusion": variant.fuses}
    if variant.stages is not None:
        options["num_stages"] = variant.stages
    return triton.compile(source, target=GPUTarget("cuda", cc, 32), options=options)


def _batch(shape: str) -> int:
    return SHAPES[shape][0]


def _key(shape: str) -> Tensor:
    return torch.empty((_batch(shape), 3), dtype=torch.int64, device="meta")


def _timesteps(shape: str) -> tuple[Tensor, Tensor]:
    t = torch.empty((_batch(shape),), dtype=torch.int64, device="meta")
    return t, torch.empty((1000,), device="meta")


def _weights(shape: str) -> Tensor:
    return torch.empty((_batch(shape),), device="meta")


@cases(q_sample)
def _q_sample() -> Iterator[Case]:
    def case(shape: str, label: str, x: torch.dtype, out: torch.dtype, **options: Any) -> Case:
        noise = options.get("noise")
        drawn = (None, _key(shape)) if noise is None else (noise, None)
        path, copy = options.get("path", "diffusion"), options.get("copy", False)
        t, table = _timesteps(shape)
        return Case(shape, label, (image(shape, x), t, table, *drawn, path, copy, out))

    for dtype in (F32, BF16, F16):
        for shape in ("dense", "latent", "rgb"):
            yield case(shape, NAMES[dtype], dtype, dtype)
        yield case("dense", f"noise-{NAMES[dtype]}", dtype, dtype, noise=image("dense", dtype))
    yield case("dense", "f32-to-bf16", F32, BF16)
    yield case("dense", "bf16-to-f32", BF16, F32)
    yield case("dense", "flow-bf16", BF16, BF16, path="flow")
    yield case("dense", "noise-out-bf16", BF16, BF16, copy=True)
    for shape in ("huge", "odd", "ragged", "strided"):
        yield case(shape, "bf16", BF16, BF16)
    mixed = image("ragged", BF16).contiguous(memory_format=torch.channels_last)
    yield case("ragged", "scattered-bf16", BF16, BF16)._replace(
        arguments=(mixed, *_timesteps("ragged"), None, _key("ragged"), "diffusion", False, BF16)
    )


NEED_X = ("v_prediction", "sample", "flow")


@cases(denoising_loss)
def _denoising_loss() -> Iterator[Case]:
    def case(shape: str, label: str, target: str, dtype: torch.dtype, **options: Any) -> Case:
        given = options.get("given")
        explicit = target == "explicit"
        t, table = _timesteps(shape) if target == "v_prediction" else (None, None)
        arguments = (
            image(shape, dtype),
            given if explicit else None,
            image(shape, options.get("x", dtype)) if target in NEED_X else None,
            t,
            table,
            None if explicit else given,
            _key(shape) if given is None and target != "sample" else None,
            options.get("weight"),
            "epsilon" if explicit else target,
            options.get("with_grad", True),
            0.125,
        )
        return Case(shape, f"{label}-{NAMES[dtype]}", arguments)

    for dtype in (F32, BF16, F16):
        for shape in ("dense", "latent", "rgb"):
            yield case(shape, "epsilon", "epsilon", dtype)
        yield case("dense", "explicit", "explicit", dtype, given=image("dense", dtype))
    for target in ("v_prediction", "sample", "flow"):
        yield case("dense", target, target, BF16)
    yield case("latent", "v_prediction", "v_prediction", BF16)
    yield case("dense", "flow-x-f32", "flow", BF16, x=F32)
    yield case("dense", "flow-x-bf16", "flow", F32, x=BF16)
    yield case("dense", "flow-noise", "flow", BF16, given=image("dense", BF16))
    yield case("dense", "epsilon-weighted", "epsilon", BF16, weight=_weights("dense"))
    yield case("dense", "epsilon-no-grad", "epsilon", BF16, with_grad=False)
    for shape in ("huge", "odd", "ragged", "strided"):
        yield case(shape, "epsilon", "epsilon", BF16)


def _normed() -> Iterator[tuple[str, str, torch.dtype, Tensor | None, Tensor | None, str | None]]:
    """(shape, label, dtype, weight, bias, act)"""

    def vector(shape: str, dtype: torch.dtype) -> Tensor:
        return torch.empty((SHAPES[shape][1],), dtype=dtype, device="meta")

    for shape in ("planes", "channels"):
        for dtype in (F32, BF16, F16):
            own = vector(shape, dtype)
            yield shape, NAMES[dtype], dtype, own, own, "silu"
        yield shape, "norm-bf16", BF16, vector(shape, BF16), vector(shape, BF16), None
        yield shape, "bare-f32", F32, None, None, "silu"
    for shape in ("small", "few", "uneven", "huge", "ragged"):
        yield shape, "bf16", BF16, vector(shape, F32), vector(shape, F32), "silu"


def _groups(shape: str) -> int:
    channels = SHAPES[shape][1]
    return 32 if channels % 32 == 0 else 3


@cases(group_norm_silu)
def _group_norm_silu() -> Iterator[Case]:
    for shape, label, dtype, weight, bias, act in _normed():
        arguments = (image(shape, dtype), weight, bias, _groups(shape), 1e-5, act)
        yield Case(shape, label, arguments)


@cases(group_norm_silu_backward)
def _group_norm_silu_backward() -> Iterator[Case]:
    for shape, label, dtype, weight, bias, act in _normed():
        x, groups = image(shape, dtype), _groups(shape)
        kept = torch.empty((SHAPES[shape][0], groups), device="meta")
        needs = (True, weight is not None, bias is not None)
        yield Case(shape, label, (x, x, kept, kept, weight, bias, groups, act, needs))


@cases(geglu)
def _geglu() -> Iterator[Case]:
    for dtype in (F32, BF16, F16):
        yield Case("tokens", NAMES[dtype], (image("tokens", dtype),))
    for shape in ("huge", "narrow"):
        yield Case(shape, "bf16", (image(shape, BF16),))


@cases(geglu_backward)
def _geglu_backward() -> Iterator[Case]:
    for case in _geglu():
        (x,) = case.arguments
        grad = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
        yield case._replace(arguments=(grad, x))


@cases(quantize)
def _quantize() -> Iterator[Case]:
    eps = torch.tensor(8 / 255)
    for dtype in (F32, BF16, F16):
        value, original = image("dense", dtype), image("dense", U8)
        yield Case("dense", NAMES[dtype], (value, original, eps, None, "delta", 0.0, 1.0))
    value, original = image("dense", F32), image("dense", U8)
    key, budgets = _key("dense"), _weights("dense")
    yield Case("dense", "image-f32", (value, original, eps, None, "image", 0.0, 1.0))
    yield Case("dense", "budgets-f32", (value, original, budgets, None, "delta", 0.0, 1.0))
    for shape in ("dense", "huge", "latent", "rgb", "odd", "ragged", "strided"):
        value, original, key = image(shape, F32), image(shape, U8), _key(shape)
        yield Case(shape, "random-f32", (value, original, eps, key, "delta", 0.0, 1.0))


@cases(image_scale)
def _image_scale() -> Iterator[Case]:
    for dtype in (F32, BF16, F16):
        yield Case("dense", NAMES[dtype], (image("dense", dtype), _weights("dense")))
    for shape in ("huge", "odd", "ragged"):
        yield Case(shape, "bf16", (image(shape, BF16), _weights(shape)))


@cases(image_scale_)
def _image_scale_in_place() -> Iterator[Case]:
    for case in _image_scale():
        yield case._replace(label=f"in-place-{case.label}")


@cases(pgd_step_)
def _pgd_step() -> Iterator[Case]:
    def case(
        shape: str,
        label: str,
        dtypes: tuple[torch.dtype, torch.dtype, torch.dtype, torch.dtype],
        **options: Any,
    ) -> Case:
        delta, grad, x, out = dtypes
        alpha, eps = options.get("budget", (torch.tensor(1 / 255), torch.tensor(8 / 255)))
        step, norm = options.get("step", "sign"), options.get("norm", "linf")
        bounds = (0.0, 1.0, *options.get("out_range", (0.0, 1.0)))
        arguments = (
            torch.empty(SHAPES[shape], dtype=delta, device="meta"),
            *(image(shape, dtype) for dtype in (grad, x)),
            *(alpha, eps, options.get("mask"), step, norm, options.get("maximize", True)),
            *(*bounds, out),
        )
        return Case(shape, label, arguments)

    typical = (F16, BF16, U8, BF16)
    for label, dtypes in {
        "f32": (F32, F32, F32, F32),
        "bf16": (BF16, BF16, BF16, BF16),
        "f16": (F16, F16, F16, F16),
        "f32-u8": (F32, F32, U8, F32),
        "f32-bf16": (F32, BF16, F32, F32),
        "f32-bf16-u8": (F32, BF16, U8, BF16),
        "mixed": typical,
    }.items():
        yield case("dense", label, dtypes)
    b, _, h, w = SHAPES["dense"]
    for dtype in (U8, F32):
        mask = torch.empty((b, 1, h, w), dtype=dtype, device="meta")
        yield case("dense", f"mask-{NAMES[dtype]}", typical, mask=mask)
    last = [image("strided", dtype) for dtype in typical[:3]]  # a value for six channels
    plane = torch.empty((2, 1, 256, 256), dtype=U8, device="meta")
    budget = (torch.tensor(1 / 255), torch.tensor(8 / 255))
    arguments = (*last, *budget, plane, "sign", "linf", True, 0.0, 1.0, 0.0, 1.0, BF16)
    yield Case("strided", "mask-channels-last", arguments)
    yield case("dense", "mapped", typical, out_range=(-1.0, 1.0))
    yield case("dense", "descend", typical, maximize=False)
    yield case("dense", "budgets", typical, budget=(_weights("dense"), _weights("dense")))
    for shape in ("huge", "odd", "ragged", "strided"):
        yield case(shape, "mixed", typical)
    for dtype in (F32, BF16, F16):
        same = (dtype,) * 4
        yield case("dense", f"l2-{NAMES[dtype]}", same, step="l2", norm="l2")
    yield case("dense", "raw-mixed", typical, step="raw")
    yield case("dense", "sign-l2-mixed", typical, norm="l2")


@cases(pgd_step_multi_)
def _pgd_step_multi() -> Iterator[Case]:
    def case(shape: str, label: str, dtypes: tuple[torch.dtype, ...], **options: Any) -> Case:
        shift, out_range = options.get("shift", 0), options.get("out_range", (0.0, 1.0))
        size = SHAPES[shape][1:]

        def images(dtype: torch.dtype) -> list[Tensor]:
            whole = torch.empty(shift + math.prod(size), dtype=dtype, device="meta")
            return [whole[shift:].view(size), whole[shift:].view(size)]

        delta, grad, x, out = map(images, dtypes)
        budget = options.get("budget", (torch.tensor(1 / 255), torch.tensor(8 / 255)))
        bounds = (0.0, 1.0, *out_range)
        step = options.get("step", "sign")
        return Case(shape, label, (delta, out, grad, x, *budget, step, True, *bounds))

    typical = (F16, BF16, U8, BF16)
    yield case("dense", "f32", (F32,) * 4)
    yield case("dense", "f32-u8", (F32, F32, U8, F32))
    yield case("dense", "bf16", (BF16,) * 4)
    yield case("dense", "mixed", typical)
    yield case("dense", "mapped", typical, out_range=(-1.0, 1.0))
    yield case("dense", "raw", typical, step="raw")
    per_image = torch.empty(2, device="meta")
    yield case("dense", "budgets", typical, budget=(per_image, per_image))
    # Images that begin anywhere: one element an access.
    yield case("ragged", "mixed", typical, shift=1)


@cases(attention)
def _attention() -> Iterator[Case]:
    for dim in (40, 64, 80, 128, 160, 512):
        q, k, v = _heads(dim, 1024, BF16)
        yield Case("heads", f"{dim}-1024-bf16", (q, k, v, None, dim**-0.5, True))
    for dim, dtype in ((64, F16), (64, F32), (128, F32)):
        q, k, v = _heads(dim, 1024, dtype)
        yield Case("heads", f"{dim}-1024-{NAMES[dtype]}", (q, k, v, None, 0.125, True))
    q, k, v = _heads(64, 1024, BF16)
    for label, bias in _biases(1024).items():
        yield Case("heads", f"64-1024-{label}-bf16", (q, k, v, bias, 0.125, False))


@cases(attention_backward)
def _attention_backward() -> Iterator[Case]:
    def case(
        dim: int,
        keys: int,
        dtype: torch.dtype,
        needs: tuple[bool, bool, bool],
        label: str = "",
        bias: Tensor | None = None,
    ) -> Case:
        q, k, v = _heads(dim, keys, dtype)
        saved = None if keys <= 128 else (q, torch.empty(q.shape[:3], device="meta"))
        out, lse = saved or (None, None)
        arguments = (q, q, k, v, bias, out, lse, dim**-0.5, needs)
        return Case("heads", f"{dim}-{keys}-{label}{NAMES[dtype]}", arguments)

    image, everything = (True, False, False), (True, True, True)
    for dim in (40, 64, 80, 128):
        yield case(dim, 77, BF16, image)
    for dim in (40, 64, 80, 128, 160, 512):
        yield case(dim, 1024, BF16, everything)
    for keys in (96, 100, 128):
        yield case(64, keys, BF16, image)
    yield case(64, 77, F16, image)
    for dim, dtype in ((64, F16), (64, F32), (128, F32)):
        yield case(dim, 1024, dtype, everything)
    for label, bias in _biases(77).items():
        yield case(64, 77, BF16, image, f"{label}-", bias)
    for label, bias in _biases(1024).items():
        yield case(64, 1024, BF16, everything, f"{label}-", bias)


def _heads(dim: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k and v as a model has them: [B, N, H, D] seen as [B, H, N, D]."""
    b, h, n = SHAPES["heads"]
    sizes = ((b, rows, h, dim) for rows in (n, keys, keys))
    return [torch.empty(s, dtype=dtype, device="meta").transpose(1, 2) for s in sizes]


def _biases(keys: int) -> dict[str, Tensor]:
    b, h, n = SHAPES["heads"]
    return {
        "padding": torch.empty((b, 1, 1, keys), dtype=BF16, device="meta"),
        "bias": torch.empty((b, h, n, keys), dtype=BF16, device="meta"),
    }
