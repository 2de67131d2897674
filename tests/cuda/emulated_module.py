"""Stands in for udp_fast._native_cuda: the same functions, run by the emulator on CPU tensors.

So the tests call the CUDA backend itself, and everything below its Python is the .cu file as nvcc
gets it. Every launch runs under several schedules that must agree in every bit; reads of what nobody
wrote, accesses outside the operands and writes to inputs are errors.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests/emulator"))

from emulation import SEEDS, Launch, emulate  # noqa: E402

ITEM = (4, 2, 2, 1)  # bytes, by dtype number

Shape = tuple[int, int, int]
Operand = tuple[int, int, int, int, int]
Vector = tuple[int, int]
PerImage = tuple[int, int, float]


class CShape(ctypes.Structure):
    _fields_ = [
        ("images", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("pixels", ctypes.c_int64),
    ]


class CTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int),
        ("image", ctypes.c_int64),
        ("channel", ctypes.c_int64),
        ("pixel", ctypes.c_int64),
    ]


class CVector(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("type", ctypes.c_int)]


class CPerImage(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("stride", ctypes.c_int64), ("value", ctypes.c_float)]


class CSchedule(ctypes.Structure):
    _fields_ = [("t", ctypes.c_void_p), ("table", ctypes.c_void_p), ("flow", ctypes.c_int)]


class CBounds(ctypes.Structure):
    _fields_ = [(name, ctypes.c_double) for name in ("lo", "hi", "out_lo", "out_hi")]


class CAttentionShape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("batch", "heads", "queries", "keys", "dim")),
        ("type", ctypes.c_int),
        ("scale", ctypes.c_float),
    ]


class CHeads(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "head", "row")),
    ]


class CBias(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "head", "query")),
        ("key", ctypes.c_int32),
    ]


class CImage(ctypes.Structure):
    _fields_ = [
        ("delta", ctypes.c_void_p),
        ("adversarial", ctypes.c_void_p),
        ("gradient", ctypes.c_void_p),
        ("original", ctypes.c_void_p),
        ("elements", ctypes.c_int64),
    ]


Heads = tuple[int, int, int, int]
Bias = tuple[int, int, int, int, int]
AttentionShape = tuple[int, int, int, int, int, int, float]


@dataclass(frozen=True)
class Region:
    """Memory that a launcher reaches, as the emulator's driver takes an array."""

    address: int
    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def data_ptr(self) -> int:
        return self.address

    def element_size(self) -> int:
        return self.itemsize

    def stride(self) -> tuple[int, ...]:
        return self.strides


def run_of(address: int, items: int, itemsize: int) -> Region:
    return Region(address, itemsize, (items,), (1,))


def region(operand: Operand, shape: Shape) -> Region:
    address, dtype, *strides = operand
    return Region(address, ITEM[dtype], shape, tuple(strides))


def numbers(per_image: PerImage, images: int) -> list[Region]:
    address, stride, _ = per_image
    return [Region(address, 4, (images,), (stride,))] if address else []


def tensor(operand: Operand | None) -> Any:
    return ctypes.byref(CTensor(*operand)) if operand is not None else None


def vector(values: Vector | None) -> Any:
    return ctypes.byref(CVector(*values)) if values is not None else None


def channels(values: Vector | None, shape: Shape) -> list[Region]:
    return [run_of(values[0], shape[1], ITEM[values[1]])] if values is not None else []


class EmulatedModule(ModuleType):
    """The functions of csrc/bindings_cuda.cpp."""

    cuda_version, architectures = "none", "the emulator"

    def __init__(self, seeds: Sequence[int] = SEEDS) -> None:
        super().__init__("udp_fast._native_cuda")
        self.seeds = seeds
        self.launches: list[Launch] = []

    def _run(
        self,
        file: str,
        *arguments: Any,
        launcher: str = "",
        reads: list[Region],
        writes: list[Region],
        fills: list[Region],
        stream: int,
    ) -> None:
        assert stream == 0
        library = emulate(ROOT / f"csrc/cuda/{file}.cu")
        self.launches += library.run(
            f"udp_{launcher or file}",
            *arguments,
            None,
            memory=reads,
            writes=writes,
            fills=fills,
            seeds=self.seeds,
        )

    def _size(self, file: str, name: str, *arguments: Any) -> int:
        function = getattr(emulate(ROOT / f"csrc/cuda/{file}.cu").library, name)
        function.restype = ctypes.c_int64
        return int(function(*arguments))

    def pgd_step_workspace(self, shape: Shape, step: int, norm: int) -> int:
        c = ctypes.byref(CShape(*shape))
        return self._size("pgd_step", "udp_pgd_step_workspace", c, step, norm)

    def denoising_loss_workspace(self, shape: Shape) -> int:
        c = ctypes.byref(CShape(*shape))
        return self._size("denoising_loss", "udp_denoising_loss_workspace", c)

    def pgd_step_(
        self,
        shape: Shape,
        delta: Operand,
        gradient: Operand,
        original: Operand,
        mask: Operand | None,
        adversarial: Operand,
        alpha: PerImage,
        eps: PerImage,
        step: int,
        norm: int,
        maximize: bool,
        lo: float,
        hi: float,
        out_lo: float,
        out_hi: float,
        skipped: int,
        workspace: int,
        stream: int,
    ) -> None:
        images = shape[0]
        scratch = []
        if workspace:
            size = self.pgd_step_workspace(shape, step, norm)
            scratch = [run_of(workspace, size, 1)]
        reads = [region(o, shape) for o in (gradient, original, mask) if o is not None]
        self._run(
            "pgd_step",
            ctypes.byref(CShape(*shape)),
            *map(tensor, (delta, gradient, original, mask, adversarial)),
            ctypes.byref(CPerImage(*alpha)),
            ctypes.byref(CPerImage(*eps)),
            step,
            norm,
            int(maximize),
            ctypes.byref(CBounds(lo, hi, out_lo, out_hi)),
            ctypes.c_void_p(skipped),
            ctypes.c_void_p(workspace),
            reads=[*reads, *numbers(alpha, images), *numbers(eps, images)],
            writes=[region(delta, shape), run_of(skipped, images, 8)],
            fills=[region(adversarial, shape), *scratch],
            stream=stream,
        )

    def pgd_step_multi(
        self,
        images: list[tuple[int, int, int, int, int]],
        types: tuple[int, int, int, int],
        alpha: PerImage,
        eps: PerImage,
        step: int,
        maximize: bool,
        lo: float,
        hi: float,
        out_lo: float,
        out_hi: float,
        skipped: int,
        stream: int,
    ) -> None:
        count = len(images)
        table = (CImage * count)(*((d, adv, g, x, n) for d, g, x, adv, n in images))
        columns = [
            [run_of(image[i], image[4], ITEM[types[i]]) for image in images] for i in range(4)
        ]
        self._run(
            "pgd_step_multi",
            table,
            count,
            (ctypes.c_int * 4)(*types),
            ctypes.byref(CPerImage(*alpha)),
            ctypes.byref(CPerImage(*eps)),
            step,
            int(maximize),
            ctypes.byref(CBounds(lo, hi, out_lo, out_hi)),
            ctypes.c_void_p(skipped),
            reads=[*columns[1], *columns[2], *numbers(alpha, count), *numbers(eps, count)],
            writes=[*columns[0], run_of(skipped, count, 8)],
            fills=columns[3],
            stream=stream,
        )

    def q_sample(
        self,
        shape: Shape,
        x: Operand,
        t: int,
        table: int,
        flow: bool,
        noise: Operand | None,
        keys: int,
        noisy: Operand,
        noise_out: Operand | None,
        stream: int,
    ) -> None:
        self._run(
            "q_sample",
            ctypes.byref(CShape(*shape)),
            tensor(x),
            ctypes.byref(CSchedule(t, table, flow)),
            tensor(noise),
            ctypes.c_void_p(keys),
            *map(tensor, (noisy, noise_out)),
            reads=[
                *(region(o, shape) for o in (x, noise) if o is not None),
                *_schedule(t, table, shape[0]),
                *_keys(keys, shape[0]),
            ],
            writes=[],
            fills=[region(o, shape) for o in (noisy, noise_out) if o is not None],
            stream=stream,
        )

    def denoising_loss(
        self,
        shape: Shape,
        prediction: Operand,
        target: Operand | None,
        x: Operand | None,
        t: int,
        table: int,
        noise: Operand | None,
        keys: int,
        weight: PerImage,
        kind: int,
        gradient: Operand | None,
        gradient_scale: float,
        loss: int,
        workspace: int,
        stream: int,
    ) -> None:
        images = shape[0]
        scratch = run_of(workspace, self.denoising_loss_workspace(shape), 1)
        self._run(
            "denoising_loss",
            ctypes.byref(CShape(*shape)),
            *map(tensor, (prediction, target, x)),
            ctypes.byref(CSchedule(t, table, 0)),
            tensor(noise),
            ctypes.c_void_p(keys),
            ctypes.byref(CPerImage(*weight)),
            kind,
            tensor(gradient),
            ctypes.c_double(gradient_scale),
            ctypes.c_void_p(loss),
            ctypes.c_void_p(workspace),
            reads=[
                *(region(o, shape) for o in (prediction, target, x, noise) if o is not None),
                *_schedule(t, table, images),
                *_keys(keys, images),
                *numbers(weight, images),
            ],
            writes=[],
            fills=[
                run_of(loss, images, 4),
                scratch,
                *(region(o, shape) for o in (gradient,) if o is not None),
            ],
            stream=stream,
        )

    def geglu(self, shape: tuple[int, int], dtype: int, x: int, y: int, stream: int) -> None:
        size = shape[0] * shape[1]
        self._run(
            "geglu",
            *shape,
            ctypes.c_int(dtype),
            ctypes.c_void_p(x),
            ctypes.c_void_p(y),
            reads=[run_of(x, 2 * size, ITEM[dtype])],
            writes=[],
            fills=[run_of(y, size, ITEM[dtype])],
            stream=stream,
        )

    def geglu_backward(
        self, shape: tuple[int, int], dtype: int, gradient: int, x: int, dx: int, stream: int
    ) -> None:
        size = shape[0] * shape[1]
        self._run(
            "geglu",
            *shape,
            ctypes.c_int(dtype),
            *map(ctypes.c_void_p, (gradient, x, dx)),
            launcher="geglu_backward",
            reads=[run_of(gradient, size, ITEM[dtype]), run_of(x, 2 * size, ITEM[dtype])],
            writes=[],
            fills=[run_of(dx, 2 * size, ITEM[dtype])],
            stream=stream,
        )

    def group_norm_silu_workspace(self, shape: Shape, groups: int) -> int:
        c = ctypes.byref(CShape(*shape))
        return self._size(
            "group_norm_silu", "udp_group_norm_silu_workspace", c, ctypes.c_int64(groups)
        )

    def group_norm_silu(
        self,
        shape: Shape,
        groups: int,
        x: Operand,
        weight: Vector | None,
        bias: Vector | None,
        eps: float,
        silu: bool,
        y: Operand,
        mean: int,
        rstd: int,
        workspace: int,
        stream: int,
    ) -> None:
        self._run(
            "group_norm_silu",
            ctypes.byref(CShape(*shape)),
            groups,
            tensor(x),
            vector(weight),
            vector(bias),
            ctypes.c_double(eps),
            int(silu),
            tensor(y),
            *(ctypes.c_void_p(a) for a in (mean, rstd, workspace)),
            reads=[region(x, shape), *channels(weight, shape), *channels(bias, shape)],
            writes=[],
            fills=[
                region(y, shape),
                *(run_of(a, shape[0] * groups, 4) for a in (mean, rstd)),
                run_of(workspace, self.group_norm_silu_workspace(shape, groups), 1),
            ],
            stream=stream,
        )

    def group_norm_silu_backward(
        self,
        shape: Shape,
        groups: int,
        gradient: Operand,
        x: Operand,
        mean: int,
        rstd: int,
        weight: Vector | None,
        bias: Vector | None,
        silu: bool,
        dx: Operand | None,
        dweight: Vector | None,
        dbias: Vector | None,
        workspace: int,
        stream: int,
    ) -> None:
        self._run(
            "group_norm_silu",
            ctypes.byref(CShape(*shape)),
            groups,
            *map(tensor, (gradient, x)),
            *(ctypes.c_void_p(a) for a in (mean, rstd)),
            *map(vector, (weight, bias)),
            int(silu),
            tensor(dx),
            *map(vector, (dweight, dbias)),
            ctypes.c_void_p(workspace),
            launcher="group_norm_silu_backward",
            reads=[
                region(gradient, shape),
                region(x, shape),
                *(run_of(a, shape[0] * groups, 4) for a in (mean, rstd)),
                *channels(weight, shape),
                *channels(bias, shape),
            ],
            writes=[],
            fills=[
                *(region(o, shape) for o in (dx,) if o is not None),
                *channels(dweight, shape),
                *channels(dbias, shape),
                run_of(workspace, self.group_norm_silu_workspace(shape, groups), 1),
            ],
            stream=stream,
        )

    def quantize(
        self,
        shape: Shape,
        value: Operand,
        original: Operand,
        eps: PerImage,
        keys: int,
        is_image: bool,
        lo: float,
        hi: float,
        out: Operand,
        stream: int,
    ) -> None:
        self._run(
            "quantize",
            ctypes.byref(CShape(*shape)),
            *map(tensor, (value, original)),
            ctypes.byref(CPerImage(*eps)),
            ctypes.c_void_p(keys),
            int(is_image),
            ctypes.c_double(lo),
            ctypes.c_double(hi),
            tensor(out),
            reads=[
                region(value, shape),
                region(original, shape),
                *_keys(keys, shape[0]),
                *numbers(eps, shape[0]),
            ],
            writes=[],
            fills=[region(out, shape)],
            stream=stream,
        )

    def image_scale(
        self, shape: Shape, x: Operand, scale: PerImage, out: Operand, stream: int
    ) -> None:
        self._run(
            "image_scale",
            ctypes.byref(CShape(*shape)),
            tensor(x),
            ctypes.byref(CPerImage(*scale)),
            tensor(out),
            reads=[region(x, shape), *numbers(scale, shape[0])],
            writes=[],
            fills=[region(out, shape)],
            stream=stream,
        )

    def image_scale_(self, shape: Shape, x: Operand, scale: PerImage, stream: int) -> None:
        self._run(
            "image_scale",
            ctypes.byref(CShape(*shape)),
            tensor(x),
            ctypes.byref(CPerImage(*scale)),
            launcher="image_scale_in_place",
            reads=numbers(scale, shape[0]),
            writes=[region(x, shape)],
            fills=[],
            stream=stream,
        )

    def attention(
        self,
        shape: AttentionShape,
        q: Heads,
        k: Heads,
        v: Heads,
        bias: Bias | None,
        out: Heads,
        lse: int,
        stream: int,
    ) -> None:
        images, heads, queries, keys, *_ = shape
        fills = [_rows(shape, out, queries)]
        if lse:
            fills.append(run_of(lse, images * heads * queries, 4))
        kind = _kernels_for(shape)
        self._run(
            f"attention{kind}",
            ctypes.byref(CAttentionShape(*shape)),
            *map(_heads, (q, k, v)),
            _bias(bias),
            _heads(out),
            ctypes.c_void_p(lse),
            reads=[
                _rows(shape, q, queries),
                _rows(shape, k, keys),
                _rows(shape, v, keys),
                *_bias_region(shape, bias),
            ],
            writes=[],
            fills=fills,
            stream=stream,
        )

    def attention_one_tile(
        self,
        shape: AttentionShape,
        grad_out: Heads,
        q: Heads,
        k: Heads,
        v: Heads,
        bias: Bias | None,
        dq: Heads,
        stream: int,
    ) -> None:
        _, _, queries, keys, *_ = shape
        kind = _kernels_for(shape)
        self._run(
            f"attention{kind or '_one_tile'}",
            ctypes.byref(CAttentionShape(*shape)),
            *map(_heads, (grad_out, q, k, v)),
            _bias(bias),
            _heads(dq),
            launcher=f"attention{kind}_one_tile",
            reads=[
                *(_rows(shape, x, queries) for x in (grad_out, q)),
                *(_rows(shape, x, keys) for x in (k, v)),
                *_bias_region(shape, bias),
            ],
            writes=[],
            fills=[_rows(shape, dq, queries)],
            stream=stream,
        )

    def attention_backward_workspace(self, shape: AttentionShape) -> int:
        c = ctypes.byref(CAttentionShape(*shape))
        return self._size("attention_backward", "udp_attention_backward_workspace", c)

    def attention_backward(
        self,
        shape: AttentionShape,
        grad_out: Heads,
        q: Heads,
        k: Heads,
        v: Heads,
        bias: Bias | None,
        out: Heads,
        lse: int,
        dq: Heads | None,
        dk: Heads | None,
        dv: Heads | None,
        workspace: int,
        stream: int,
    ) -> None:
        images, heads, queries, keys, *_ = shape
        gradients = ((dq, queries), (dk, keys), (dv, keys))
        kind = _kernels_for(shape)
        self._run(
            f"attention{kind or '_backward'}",
            ctypes.byref(CAttentionShape(*shape)),
            *map(_heads, (grad_out, q, k, v)),
            _bias(bias),
            _heads(out),
            ctypes.c_void_p(lse),
            *map(_heads, (dq, dk, dv)),
            ctypes.c_void_p(workspace),
            launcher=f"attention{kind}_backward",
            reads=[
                *(_rows(shape, x, queries) for x in (grad_out, q, out)),
                *(_rows(shape, x, keys) for x in (k, v)),
                *_bias_region(shape, bias),
                run_of(lse, images * heads * queries, 4),
            ],
            writes=[],
            fills=[
                *(_rows(shape, x, count) for x, count in gradients if x is not None),
                run_of(workspace, self.attention_backward_workspace(shape), 1),
            ],
            stream=stream,
        )


def _kernels_for(shape: AttentionShape) -> str:
    """As csrc/bindings_cuda.cpp chooses between the launchers."""
    *_, dim, dtype, _ = shape
    return "_float" if ITEM[dtype] == 4 else "_wide" if dim > 160 else ""


def _heads(tensor: Heads | None) -> Any:
    return ctypes.byref(CHeads(*(tensor or (None, 0, 0, 0))))


def _bias(bias: Bias | None) -> Any:
    return ctypes.byref(CBias(*(bias or (None, 0, 0, 0, 0))))


def _rows(shape: AttentionShape, tensor: Heads, count: int) -> Region:
    images, heads, _, _, dim, dtype, _ = shape
    return Region(tensor[0], ITEM[dtype], (images, heads, count, dim), (*tensor[1:], 1))


def _bias_region(shape: AttentionShape, bias: Bias | None) -> list[Region]:
    images, heads, queries, keys, *_ = shape
    return [] if bias is None else [Region(bias[0], 4, (images, heads, queries, keys), bias[1:])]


#: Entries of the tables that the tests use.
TABLE = 1000


def _schedule(t: int, table: int, images: int) -> list[Region]:
    return [run_of(t, images, 8), run_of(table, TABLE, 4)] if t else []


def _keys(keys: int, images: int) -> list[Region]:
    return [run_of(keys, 3 * images, 8)] if keys else []


@contextmanager
def no_stream(_tensor: Tensor) -> Iterator[int]:
    yield 0


def as_pointer(value: Tensor) -> PerImage:
    """`per_image` of a tensor on a GPU."""
    return value.data_ptr(), value.stride(0) if value.dim() else 0, 0.0


def alphas_cumprod() -> Tensor:
    return torch.linspace(0.9999, 0.005, TABLE)
