"""The CUDA kernels: all instantiations that csrc/cuda compiles to, and what is demanded of each.

A kernel is found in the machine code, its operands in its template arguments. To add one, say what
its main loop moves:

    @gate("my_op", "MyOp")
    def _my_op(layout: str, x: str, out: str) -> Gate:
        return Gate(streams(layout, loads=[x], stores=[out]))

The arguments are those of the template as they are written in C++. A kernel of the machine code
without a gate, a gate without a kernel and an op of the backend without either are errors.
"""

from __future__ import annotations

import fcntl
import importlib.util
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType

from . import cache as kept
from .chips import REGISTERS
from .form import ONLY_DQ, Form, Fused, Products, Sizes, Stream, whole_backward
from .machine_code import Code, read, run

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "csrc/cuda"

#: C++'s name of an element type -> what it is called here, and its bytes: all it may be.
TYPES: dict[str, tuple[str, Sizes]] = {
    "float": ("f32", (4,)),
    "Float16": ("f16", (2,)),
    "BFloat16": ("bf16", (2,)),
    "unsigned char": ("u8", (1,)),
    "Any<false>": ("any", (2, 4)),
    "Any<true>": ("any/u8", (1, 2, 4)),
    "__half": ("f16", (2,)),
    "__nv_bfloat16": ("bf16", (2,)),
}


# --- gates ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gate:
    stream: Stream | None = None
    instructions: float | None = None  # an element on sm_90, at most
    draws: bool = False
    #: That should fit on a multiprocessor, and with them the registers of a thread; None: 8 blocks,
    #: or 5 where types are known only at run time, as walk.cuh has it.
    blocks: int | None = None
    shared: int = 0  # bytes of a block, at most
    products: Products | None = None
    fused: Fused | None = None
    threads: int | None = None  # of a block; None: walk.cuh's
    registers: int | None = None  # in place of what blocks allow
    dynamic: int = 0  # bytes of shared memory that a launch asks for


@dataclass(frozen=True)
class _Registered:
    op: str
    make: Callable[..., Gate]


_GATES: dict[str, _Registered] = {}

#: Kernels that walk over images with an Op, and which of their template arguments that is.
WALKS = {"for_groups": 1, "over_planes": 0, "over_pixels": 0}


def gate(op: str, kernel: str) -> Callable[[Callable[..., Gate]], Callable[..., Gate]]:
    """Registers what is demanded of a kernel, or of an Op of a kernel that `WALKS` names."""

    def register(make: Callable[..., Gate]) -> Callable[..., Gate]:
        _GATES[kernel] = _Registered(op, make)
        return make

    return register


#: Bytes through which a block of four warps adds up a float64.
SUM = 4 * 8


def streams(
    layout: str, loads: Iterable[str], stores: Iterable[str], gathers: bool = False
) -> Stream | None:
    """The main loop of a layout of walk.cuh over operands of these types."""
    name, _, group = layout.rstrip(">").partition("<")
    if name == "Strided":  # an element an access, wherever it lies
        return None
    interleaved = name == "Interleaved"  # four pixels: of three channels no multiple of 16 bytes
    elements = int(group) * (4 if interleaved else 1)
    sizes = [tuple(TYPES[t][1] for t in types) for types in (loads, stores)]
    return Stream(*sizes, elements, elements, gathers, widest=8 if interleaved else 16)


@gate("q_sample", "Sample")
def _sample(layout: str, x: str, out: str, draws: str, writes_noise: str) -> Gate:
    stream = streams(
        layout,
        loads=[x] if draws == "true" else [x, x],
        stores=[out] if writes_noise == "0" else [out, out],
    )
    typical = (x, out, draws, writes_noise) == ("BFloat16", "BFloat16", "true", "0")
    return Gate(stream, 35 if typical else None, draws=draws == "true")


@gate("denoising_loss", "Loss")
def _loss(layout: str, t: str, source: str) -> Gate:
    given, noise, velocity, stored = (f"(Source){i}" for i in range(4))
    reads = {given: [t, t], noise: [t], velocity: [t, t], stored: [t, t, t]}[source]
    typical = (t, source) == ("BFloat16", noise)
    stream = streams(layout, reads, stores=[t])
    draws = source in (noise, velocity)
    return Gate(stream, 36 if typical else None, draws=draws, shared=SUM)


@gate("denoising_loss", "loss_of_images")
def _loss_of_images() -> Gate:
    return Gate(shared=SUM)


def _channelwise(blocks: int, t: str, channels: str, loads: int, stores: int) -> Gate:
    """An Op of channels.cuh: 16 bytes of each operand at once. Where it sums, and a thread has several
    channels, each of four warps leaves two floats for each channel of eight threads, and a count."""
    stream = streams(f"Flat<{16 // TYPES[t][1][0]}>", [t] * loads, [t] * stores)
    sums = stores == 0 and channels != "1"
    shared = 4 * (8 * int(channels) * 2 * 4 + 4) if sums else 0
    return Gate(stream, blocks=8 if channels == "1" else blocks, shared=shared)


@gate("group_norm_silu", "Moments")
def _moments(t: str, channels: str) -> Gate:
    return _channelwise(8, t, channels, loads=1, stores=0)


@gate("group_norm_silu", "Normalise")
def _normalise(t: str, channels: str, silu: str) -> Gate:
    return _channelwise(6, t, channels, loads=1, stores=1)


@gate("group_norm_silu_backward", "GradientSums")
def _gradient_sums(t: str, channels: str, silu: str) -> Gate:
    return _channelwise(5, t, channels, loads=2, stores=0)


@gate("group_norm_silu_backward", "Gradient")
def _gradient(t: str, channels: str, silu: str) -> Gate:
    return _channelwise(5, t, channels, loads=2, stores=1)


@gate("group_norm_silu", "group_moments")
def _group_moments() -> Gate:
    return Gate(shared=SUM)


@gate("group_norm_silu_backward", "gradient_terms")
def _gradient_terms() -> Gate:
    return Gate(shared=SUM)


def _columns(group: str, t: str, loads: int, stores: int) -> Gate:
    """Groups of a row, or where those cannot be aligned one element at a time."""
    stream = streams(f"Flat<{group}>", [t] * loads, [t] * stores) if group != "1" else None
    return Gate(stream)


@gate("geglu", "geglu_forward")
def _geglu(t: str, group: str) -> Gate:
    return _columns(group, t, loads=2, stores=1)


@gate("geglu_backward", "geglu_backward")
def _geglu_backward(t: str, group: str) -> Gate:
    return _columns(group, t, loads=3, stores=2)


@gate("image_scale", "Scale")
def _scale(layout: str, t: str) -> Gate:
    return Gate(streams(layout, loads=[t], stores=[t]))


@gate("image_scale_", "ScaleInPlace")
def _scale_in_place(layout: str, t: str) -> Gate:
    return _scale(layout, t)


@gate("quantize", "Quantize")
def _quantize(layout: str, value: str, stochastic: str) -> Gate:
    stream = streams(layout, loads=[value, "unsigned char"], stores=["unsigned char"])
    return Gate(stream, draws=stochastic == "true")


@gate("pgd_step_", "PgdStep")
def _pgd_step(layout: str, delta: str, original: str, gradient: str, masked: str) -> Gate:
    loads, stores = [delta, original, gradient], [delta, gradient]
    if masked == "true":  # one type more to branch on
        return Gate(streams(layout, [*loads, "Any<true>"], stores, gathers=True), blocks=4)
    return Gate(streams(layout, loads, stores))


@gate("pgd_step_", "SquareSums")
def _square_sums(layout: str, of_stepped: str) -> Gate:
    stepped = of_stepped == "true"
    loads = ["Any<false>"] * (2 if stepped else 1)
    return Gate(streams(layout, loads, stores=[], gathers=stepped), blocks=5, shared=SUM)


@gate("pgd_step_", "finish_norms")
def _finish_norms(of_stepped: str) -> Gate:
    return Gate(shared=SUM)


@gate("pgd_step_multi_", "step_images")
def _step_images(delta: str, original: str, gradient: str) -> Gate:
    return Gate(streams("Flat<8>", loads=[delta, original, gradient], stores=[delta, gradient]))


def _tile_bytes(rows: int, dim: int) -> int:
    """Two tensors' tiles of so many 16-bit rows, an odd number of 16-byte chunks apart."""
    return 2 * rows * 2 * (dim if dim // 8 % 2 else dim + 8)


def _steps(dim: int) -> int:
    """mma instructions of a product over the columns of a head, for 16 rows times eight."""
    return -(-dim // 16)


@gate("attention_backward", "attention_dq_one_tile")
def _dq_one_tile(t: str, dim: str, keys: str, tiles: str) -> Gate:
    """S and dP, the bias as a product, and dq from 16 keys at a time."""
    d, m, r = int(dim), int(keys), int(tiles)
    n = r * m // 8  # blocks of 16 queries and eight keys
    products = Products(
        pairs=16 * r * m,
        tensor=n * (2 * _steps(d) + 1) + n // 2 * d // 8,
        limit=ONLY_DQ.get(d),
        alike=n // r * (r - 1),  # the bias of one 16 rows and of the next
        keys=m,
    )
    return Gate(products=products, registers=255, dynamic=_tile_bytes(m, d) + 16 * m)


@gate("attention_backward", "attention_dq_one_tile_by_query")
def _dq_one_tile_by_query(t: str, dim: str) -> Gate:
    """The same of 16 queries and 128 keys; the bias comes from memory instead."""
    d, n = int(dim), 128 // 8
    products = Products(16 * 128, n * 2 * _steps(d) + n // 2 * d // 8, None)
    return Gate(products=products, registers=255, dynamic=_tile_bytes(128, d) + 16 * 128)


def _tiled(
    dim: str, tiles: int, products: int, weighted: int, limit: float | None = None, rows: int = 64
) -> Gate:
    """A loop over tiles of 64 rows, written out for so many, of so many products over columns and
    over rows."""
    d = int(dim)
    n = tiles * rows // 8
    tensor = n * products * _steps(d) + n // 2 * weighted * d // 8
    return Gate(
        products=Products(16 * tiles * rows, tensor, limit),
        registers=255,
        dynamic=2 * _tile_bytes(64, d) + 1024,
    )


@gate("attention", "attention_forward")
def _forward(t: str, dim: str, tiles: str) -> Gate:
    return _tiled(dim, int(tiles), 1, 1)


@gate("attention", "attention_forward_biased")
def _forward_biased(t: str, dim: str, tiles: str) -> Gate:
    return _tiled(dim, int(tiles), 1, 1)


#: The two kernels of dq, dk and dv together need no more than FlashAttention-2's one; dq's part of it.
_SHARE_OF_DQ = 0.43


@gate("attention_backward", "attention_dq")
def _dq(t: str, dim: str) -> Gate:
    whole = whole_backward(int(dim))
    limit = None if whole is None else _SHARE_OF_DQ * whole
    return _tiled(dim, 1, 2, 1, limit, rows=64 if int(dim) <= 128 else 32)


@gate("attention_backward", "attention_dkdv")
def _dkdv(t: str, dim: str) -> Gate:
    whole = whole_backward(int(dim))
    return _tiled(dim, 1, 2, 2, None if whole is None else (1 - _SHARE_OF_DQ) * whole)


@gate("attention_backward", "attention_dk")
def _dk(t: str, dim: str) -> Gate:
    return _tiled(dim, 1, 2, 1, rows=32)


@gate("attention_backward", "attention_dv")
def _dv(t: str, dim: str) -> Gate:
    return _tiled(dim, 1, 1, 1, rows=32)


@gate("attention_backward", "attention_dq_biased")
def _dq_biased(t: str, dim: str) -> Gate:
    return _tiled(dim, 1, 2, 1, rows=16)


@gate("attention_backward", "attention_dkdv_biased")
def _dkdv_biased(t: str, dim: str) -> Gate:
    return _tiled(dim, 1, 2, 2, rows=16)


@gate("attention_backward", "attention_dk_biased")
def _dk_biased(t: str, dim: str) -> Gate:
    return _tiled(dim, 1, 2, 1, rows=16)


@gate("attention_backward", "attention_dv_biased")
def _dv_biased(t: str, dim: str) -> Gate:
    return _tiled(dim, 1, 1, 1, rows=16)


def _blocks_bytes(columns: int, stride: int, rows: int, weights: int, parts: int) -> int:
    """Shared memory of attention_blocks.cuh: three stages, which hold 80 bytes of 64 rows and of a
    tile's columns, or so many whole rows; weights of so many bytes a row; a row's partial results; two
    numbers a row or column."""
    stages = 3 * max((64 + columns) * 80, rows * stride)
    return stages + 64 * (weights + 4 * parts) + 8 * max(64, columns)


def _wide(scores: int) -> Gate:
    """A warp's loops: 64 columns of the sums of 64 rows by 16 of the other side, of which the eight
    warps of a block do a share each; and before it 32 by 32 scores, 32 columns a turn."""
    return Gate(
        products=Products(64 * 16 // 8, tensor=32, limit=None, whole=32 + scores * 16),
        registers=255,
        threads=256,
        dynamic=_blocks_bytes(128, 1040, 16, 2 * 136, 4),
    )


@gate("attention", "attention_wide_forward")
def _wide_forward(t: str) -> Gate:
    return _wide(1)


@gate("attention_backward", "attention_wide_dq")
def _wide_dq(t: str) -> Gate:
    return _wide(2)


@gate("attention_backward", "attention_wide_dq_one_tile")
def _wide_dq_one_tile(t: str) -> Gate:
    return _wide(2)


@gate("attention_backward", "attention_wide_dk")
def _wide_dk(t: str) -> Gate:
    return _wide(2)


@gate("attention_backward", "attention_wide_dv")
def _wide_dv(t: str) -> Gate:
    return _wide(1)


def _float(dim: str, scores: int = 4) -> Gate:
    """Eight rows and so many columns of scores a thread, by the columns of a stage; or eight rows and its
    share of the columns of sums, by the rows of a stage: whichever is more."""
    d = int(dim)
    groups = 32 if d > 160 else 20 if d % 5 == 0 else 16
    columns = scores * groups
    depth, rows = 20 if d % 20 == 0 else 16, 8 if d > 256 else 16
    fma = max(8 * scores * depth, rows * 8 * d // groups)
    return Gate(
        fused=Fused(fma, share=0.7),
        registers=255,
        threads=8 * groups,
        dynamic=_blocks_bytes(columns, 4 * d, rows, 4 * (columns + 4), groups // 4),
    )


for _op, _kernel in (
    ("attention", "forward"),
    ("attention_backward", "dq"),
    ("attention_backward", "dkdv"),
    ("attention_backward", "dk"),
    ("attention_backward", "dv"),
):
    gate(_op, f"attention_float_{_kernel}")(_float)


@gate("attention_backward", "attention_float_dq_one_tile")
def _float_dq_one_tile(dim: str) -> Gate:
    return _float(dim, scores={"64": 5, "128": 5, "512": 3}.get(dim, 4))


@gate("attention_backward", "attention_delta")
def _delta(t: str) -> Gate:
    return Gate()


# --- names ----------------------------------------------------------------------------------------


def demangled(names: Iterable[str]) -> dict[str, str]:
    """By c++filt, which comes with the host compiler that nvcc needs."""
    mangled = list(names)
    done = subprocess.run(
        ["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True
    )
    return dict(zip(mangled, done.stdout.splitlines(), strict=True))


def template(signature: str) -> tuple[str, list[str]]:
    """Name and template arguments of a demangled kernel, without namespaces."""
    plain = re.sub(r"\(anonymous namespace\)::|\budp::|^void ", "", signature)
    depth, pieces = 0, [""]
    for character in plain.replace("> >", ">>").replace("> >", ">>"):
        if character == "(" and depth == 0:
            break
        depth += {"<": 1, ">": -1}.get(character, 0)
        if (character == "<" and depth == 1) or (character == "," and depth == 1):
            pieces.append("")
        elif not (character == ">" and depth == 0):
            pieces[-1] += character
    name, *arguments = (piece.strip() for piece in pieces)
    return name, arguments


@dataclass(frozen=True)
class Ungated(Exception):
    """A kernel of which nothing is demanded."""

    kernel: str

    def __str__(self) -> str:
        return (
            f"CUDA kernel {self.kernel} has no gate: benchmarks/proof/cuda.py says how to add one"
        )


@cache
def threads() -> int:
    found = re.search(r"\bkThreads = (\d+);", (SOURCES / "walk.cuh").read_text())
    assert found is not None, "csrc/cuda/walk.cuh has no kThreads"
    return int(found[1])


def form_of(signature: str) -> Form:
    """The form that a demangled kernel name stands for.

    Raises:
        Ungated: there is no gate for it.
    """
    kernel, arguments = template(signature)
    if kernel in WALKS:
        kernel, arguments = template(arguments[WALKS[kernel]])
    if kernel not in _GATES:
        raise Ungated(kernel)
    registered = _GATES[kernel]
    made = registered.make(*arguments)
    blocks = made.blocks or (5 if any(a.startswith("Any<") for a in arguments) else 8)
    label = " ".join(TYPES[a][0] if a in TYPES else a for a in arguments)
    return Form(
        language="CUDA",
        op=registered.op,
        kernel=kernel,
        label=label,
        threads=made.threads or threads(),
        shared=made.shared,
        registers=made.registers or REGISTERS // (blocks * threads()) // 8 * 8,
        stream=made.stream,
        instructions=made.instructions,
        draws=made.draws,
        products=made.products,
        dynamic=made.dynamic,
        fused=made.fused,
    )


def unused(seen: Iterable[str]) -> list[str]:
    """Gates whose kernels are nowhere in the machine code."""
    return sorted(set(_GATES) - set(seen))


# --- compiling ------------------------------------------------------------------------------------


def load_build() -> ModuleType:
    """A fresh csrc/cuda/build.py, which has the flags."""
    spec = importlib.util.spec_from_file_location("cuda_build", SOURCES / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def build() -> ModuleType:
    """The same, told to build for all architectures, as it does where nothing else is asked for."""
    module = load_build()
    everything = module.ARCHITECTURES, module.ARCHITECTURES[:1]
    module.architectures = lambda: everything  # type: ignore[attr-defined]
    return module


@dataclass(frozen=True)
class Unit:
    """One source file, for these architectures: one call of nvcc."""

    source: str
    architectures: tuple[str, ...]


def units(architectures: Iterable[str]) -> list[Unit]:
    sources = sorted(build().SOURCES, key=lambda s: -(ROOT / s).stat().st_size)
    return [Unit(source, tuple(architectures)) for source in sources]


@cache
def _compiler() -> tuple[str, bytes]:
    """nvcc's version, and the headers that any source may include."""
    command = [str(build().nvcc()), "--version"]
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    headers = [*SOURCES.glob("*.cuh"), *SOURCES.glob("*.h"), *(ROOT / "csrc/math").glob("*.h")]
    return version, b"".join(p.name.encode() + p.read_bytes() for p in sorted(headers))


def _command(source: str, architectures: Iterable[str]) -> list[str]:
    """What the build calls, but for the output; with machine code of some architectures."""
    others = {f"sm_{a}" for a in build().ARCHITECTURES} - {f"sm_{a}" for a in architectures}
    command = build().command(source, "")[:-2]
    return [part for part in command if part.rpartition("code=")[2] not in others]


def compile_unit(unit: Unit) -> dict[str, dict[str, Code]]:
    """Architecture -> demangled name -> code, from the cache as far as that is known."""
    keys = {
        a: kept.key(_compiler(), (ROOT / unit.source).read_bytes(), _command(unit.source, [a]))
        for a in unit.architectures
    }
    found = {a: known for a in unit.architectures if (known := kept.load(keys[a])) is not None}
    missing = [a for a in unit.architectures if a not in found]
    if missing:
        for a, kernels in _read(unit.source, missing).items():
            found[a] = kernels
            kept.save(keys[a], kernels)
    return found


@dataclass(frozen=True)
class Compiled:
    """An object file, as nvcc made it once."""

    object: Path
    report: str  # of nvcc and ptxas


def compiled(command: list[str]) -> Compiled:
    """Calls nvcc for the object file of a source in csrc/cuda, or finds what it made before.

    Args:
        command: as csrc/cuda/build.py has it, without the output; ptxas is made to report.
    """
    source = command[command.index("-c") + 1]
    folder = kept.FOLDER / kept.key(_compiler(), (ROOT / source).read_bytes(), command[1:])
    made, report = folder / "kernels.o", folder / "report.txt"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits for what the first compiles
        if not report.exists():
            arguments = [*command, "-Xptxas=-v", "-o", str(made)]
            done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{source} does not compile:\n{done.stderr}")
            report.write_text(done.stderr)
        return Compiled(made, report.read_text())


def _read(source: str, architectures: list[str]) -> dict[str, dict[str, Code]]:
    made = compiled(_command(source, architectures))
    with tempfile.TemporaryDirectory() as folder:
        run("cuobjdump", "-xelf", "all", str(made.object), folder=folder)
        return {
            a: _with_spills(*read(cubin.read_bytes()), made.report, a)
            for a in architectures
            for cubin in Path(folder).glob(f"*.sm_{a}.cubin")
        }


_REPORT = re.compile(
    r"Compiling entry function '(\S+)' for 'sm_(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill",
    re.S,
)


def _with_spills(kernels: dict[str, Code], report: str, architecture: str) -> dict[str, Code]:
    spilled = {
        name: int(stores) + int(loads)
        for name, target, stores, loads in _REPORT.findall(report)
        if target == architecture
    }
    names = demangled(kernels)
    return {names[n]: replace(code, spilled=spilled[n]) for n, code in kernels.items()}
