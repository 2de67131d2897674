"""The examination as one table, and as a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..markdown import Row, table
from .chips import CHIPS, CLASSES, MULTIPROCESSORS, Chip, by_class
from .counting import Count, Counting
from .examine import Entry, Examination
from .expected import EXPECTED, Expected
from .form import FLASH_ATTENTION_2, pair_cost
from .machine_code import PRODUCTS


def groups(
    entries: Iterable[Entry], by: Callable[[Entry], tuple[Any, ...]]
) -> dict[tuple[Any, ...], list[Entry]]:
    found: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        found.setdefault(by(entry), []).append(entry)
    return found


def span(numbers: Iterable[float], form: str = ".0f") -> str:
    """The least and the largest of them."""
    values = sorted(format(n, form) for n in numbers)
    least, largest = min(values, key=float, default="–"), max(values, key=float, default="–")
    return least if least == largest else f"{least}–{largest}"


def worst(entries: Iterable[Entry]) -> Entry | None:
    """The one that is furthest from being bound by memory alone."""
    predicted = [e for e in entries if e.prediction is not None]
    return min(predicted, key=lambda e: (e.prediction.share, -e.instructions), default=None)


def limiter(entry: Entry | None) -> str:
    if entry is None or entry.prediction is None:
        return "–"
    others = {k: v for k, v in entry.prediction.clocks.items() if k != "memory"}
    name, memory = entry.prediction.limiter, entry.prediction.clocks["memory"]
    if name == "memory":
        busiest = max(others, key=lambda k: others[k])
        return f"memory ({busiest} {others[busiest] / memory:.0%})"
    return f"**{name}** {others[name] / memory:.0%}"


SUMMARY = (
    "op", "language", "sm", "forms", "registers", "occupancy", "shared", "spills",
    "instructions an element", "bytes / least", "predicted limiter",
)  # fmt: skip


def summary(found: Examination) -> list[Row]:
    """A row an op, language and architecture: the extremes of its forms."""
    rows: list[Row] = [SUMMARY]
    for (op, language, architecture), entries in groups(
        found.entries, lambda e: (e.form.op, e.form.language, int(e.architecture))
    ).items():
        turns = [(e.turn, e.code.turn / e.turn.elements) for e in entries if e.turn]
        rows.append(
            (
                op.rstrip("_"),
                language,
                str(architecture),
                str(len(entries)),
                span(e.code.registers for e in entries),
                span(100 * e.occupancy for e in entries) + " %",
                span(e.shared for e in entries),
                str(sum(e.code.local for e in entries)),
                span((each for _, each in turns), ".1f"),
                span((t.bytes_each / t.least for t, _ in turns), ".2f"),
                limiter(worst(entries)),
            )
        )
    return [rows[0], *sorted(rows[1:], key=lambda r: (r[0], r[1], int(r[2])))]


def limiters(found: Examination) -> list[Row]:
    """A row a kernel: its worst form on each chip."""
    rows: list[Row] = [("kernel", "language", *(chip.name for chip in CHIPS))]
    streaming = [e for e in found.entries if e.turn is not None]
    for (kernel, language), entries in groups(
        streaming, lambda e: (e.form.kernel, e.form.language)
    ).items():
        of = groups(entries, lambda e: (e.architecture,))
        rows.append(
            (
                kernel,
                language,
                *(limiter(worst(of.get((chip.architecture,), []))) for chip in CHIPS),
            )
        )
    return [rows[0], *sorted(rows[1:])]


#: Keys of a text, which cost 80.
TEXT = 77


def products(found: Examination) -> list[Row]:
    """A row a kernel of matrix products and head dim, bf16: sm_80's instructions, chips' limiters."""
    rows: list[Row] = [
        (
            "kernel", "language", "form", "instructions a pair, sm_80", "at most",
            f"over {TEXT} keys", "of them tensor", "registers", "shared", "occupancy",
            *(chip.name for chip in CHIPS),
        )
    ]  # fmt: skip
    mine = [e for e in found.entries if e.form.products is not None and "bf16" in e.form.label]
    for (kernel, language, label), entries in groups(
        mine, lambda e: (e.form.kernel, e.form.language, e.form.label)
    ).items():
        of = {e.architecture: e for e in entries}
        if "80" not in of:
            continue
        entry, wanted = of["80"], of["80"].form.products
        assert wanted is not None
        each = pair_cost(wanted, entry.code)
        text = each is not None and wanted.keys is not None and 0 <= wanted.keys - TEXT < 16
        rows.append(
            (
                kernel,
                language,
                label,
                "–" if each is None else f"{each:.3f}",
                "–" if wanted.limit is None else f"{wanted.limit:.3f}",
                f"{each * wanted.keys / TEXT:.3f}" if text else "",
                f"{entry.code.count(*PRODUCTS) / max(entry.code.turn, 1):.0%}",
                span(e.code.registers for e in entries),
                span(e.shared for e in entries),
                span(100 * e.occupancy for e in entries) + " %",
                *(_busiest(of.get(chip.architecture), chip) for chip in CHIPS),
            )
        )
    return [rows[0], *sorted(rows[1:], key=_by_numbers)]


def _by_numbers(row: Row) -> tuple[object, ...]:
    """Kernel, language, and the form with its numbers as numbers."""
    form = [(int(n or -1), text) for n, text in re.findall(r"(\d+)|([^\d]+)", row[2])]
    return row[0], row[1], form


def fused(found: Examination, architecture: str = "80") -> list[Row]:
    """A row a kernel of products without tensor cores."""
    rows: list[Row] = [
        ("kernel", "head dim", "registers", "shared", "occupancy", "fma of a turn", "of all"),
    ]
    for entry in found.entries:
        if entry.architecture != architecture or entry.form.fused is None:
            continue
        fma, turn = entry.code.count("FFMA"), entry.code.turn
        rows.append(
            (
                entry.form.kernel,
                entry.form.label,
                str(entry.code.registers),
                str(entry.shared),
                f"{entry.occupancy:.0%}",
                str(fma),
                f"{fma / turn:.0%}" if turn else "–",
            )
        )
    return [rows[0], *sorted(rows[1:], key=lambda r: (r[0], int(r[1])))]


def _busiest(entry: Entry | None, chip: Chip) -> str:
    """The limiter, and how busy it keeps the tensor cores."""
    found = None if entry is None else entry.product_prediction(chip)
    if found is None:
        return "–"
    if "tensor" not in found.clocks:
        return found.limiter
    tensor = found.clocks["tensor"] / found.clocks[found.limiter]
    return f"{found.limiter} (tensor {tensor:.0%})"


def instructions(found: Examination, architecture: str = "90") -> list[Row]:
    """A row a kernel and size of an element: instructions of its longest form by class."""
    names = [*CLASSES, "other"]
    rows: list[Row] = [("kernel", "language", "form", "bytes", "all", *names)]
    typed = [
        e
        for e in found.entries
        if e.architecture == architecture and e.turn is not None and e.form.stream.typed
    ]
    for (kernel, language, size), entries in groups(
        typed, lambda e: (e.form.kernel, e.form.language, e.turn.least)
    ).items():
        entry = max(entries, key=lambda e: e.instructions)
        counted = by_class(entry.code.loop)
        rows.append(
            (
                kernel,
                language,
                entry.form.label,
                f"{size:g}",
                f"{entry.instructions:.1f}",
                *(f"{counted[n] / entry.turn.elements:.1f}" if counted[n] else "" for n in names),
            )
        )
    return [rows[0], *sorted(rows[1:], key=lambda r: (r[0].lower(), r[1], float(r[3])))]


COUNTS = (
    "op", "form", "least", "CUDA", "launches", "Triton's", "FLOP", "kept", "eager", "operators",
    "kept", "eager / CUDA",
)  # fmt: skip


def _with_all(own: str, everything: str) -> str:
    return own if own == everything else f"{own} ({everything})"


def _count(c: Count) -> Row:
    own, ours = c.own, c.ours
    return (
        c.case.op,
        c.case.name,
        f"{c.each(c.case.bytes_moved):g}",
        _with_all(f"{c.each(own.bytes):.2f}", f"{c.each(ours.bytes):.2f}"),
        _with_all(str(own.launches), str(ours.launches)),
        str(len(own.triton)),
        "–" if c.operations is None else f"{c.operations:.1f}",
        f"{c.each(c.saved):.2g}" if c.saved else "",
        f"{c.each(c.eager.bytes):.4g}",
        str(len(c.eager.names)),
        f"{c.each(c.eager_saved):.2g}" if c.eager_saved else "",
        f"{c.eager.bytes / ours.bytes:.1f}",
    )


def counts(found: Counting) -> list[Row]:
    """A row a call of the benchmarks; bytes and operations are for an element."""
    return [COUNTS, *map(_count, found.counts)]


def plain(rows: Sequence[Row]) -> str:
    rows = [[cell.replace("*", "") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{c:{w}}" for c, w in zip(r, widths, strict=True)).rstrip() for r in rows
    )


def _chip(chip: Chip) -> Row:
    rates = MULTIPROCESSORS[chip.architecture].rates
    return (
        chip.name,
        f"sm_{chip.architecture}",
        str(chip.multiprocessors),
        f"{chip.gigahertz:.2f} GHz",
        f"{chip.gigabytes:.0f} GB/s",
        f"{chip.bytes_a_clock:.1f}",
        *(str(rates[name]) for name in rates),
    )


def _most(expected: Expected) -> str:
    chips = ", ".join(f"{chip} up to {most:.0%}" for chip, most in expected.most.items())
    return f"{chips} ({' or '.join(sorted(expected.limiters))})"


def page(found: Examination, counting: Counting, compilers: str) -> str:
    """docs/kernel-proof.md."""
    forms = {e.form.title for e in found.entries}
    architectures = sorted({int(e.architecture) for e in found.entries})
    rates = MULTIPROCESSORS["90"].rates
    chips = [("chip", "code", "SMs", "clock", "memory", "bytes a clock and SM", *rates)]
    chips += [_chip(chip) for chip in CHIPS]
    failed = [*found.failures, *counting.failures]
    failures = "\n".join(f"- {text}" for text in failed) or "None."
    accepted, left = (
        "\n".join(f"- **{_most(e)}:** {e.reason}" for e in EXPECTED if e.is_open is is_open)
        for is_open in (False, True)
    )
    return f"""# What is proven of the GPU kernels without a GPU

Written by `make prove` (`python -m benchmarks.proof`); [architecture.md](architecture.md) says how.
Nothing on this page was timed. {len(forms)} forms of {len({(e.form.language, e.form.kernel) for e in found.entries})} kernels, for sm_{", sm_".join(map(str, architectures))}:
{len(found.entries)} pieces of machine code. {compilers}.

## Failures

{failures}

## Summary

The extremes over an op's forms. *Instructions an element* are those of one turn of the main loop, by
its longest way, over the elements it handles; *bytes / least* what its global accesses move over what
the operands hold: 1.00 means that each is read or written once. *Predicted limiter*, of the chip with
that architecture, is a prediction: the form furthest from being bound by memory, and in brackets the
busiest other unit in % of the time that memory takes. sm_86 stands for no chip of the table below.

{table(summary(found))}

## What bounds them: a prediction

Every unit is taken to be busy all the time, none to wait for another: what takes longest is the
limiter. In bold what is not memory, and its time in % of memory's.

{table(limiters(found))}

Kernels of matrix products: warp instructions of the main loop on sm_80 for a pair of a query and a key,
the largest number allowed, and what bounds them, with the share of that time for which the tensor cores
are busy. Pairs are counted as they are computed, in both languages: by whole tiles, which is how
FlashAttention-2's are counted. Where all keys are one tile, 77 keys of a text cost 80; the next column
divides by the 77. FlashAttention-2's backward needs {FLASH_ATTENTION_2[64]:g} for dq, dk and dv at head
dim 64, to which it pads 40, {FLASH_ATTENTION_2[96]:g} at 96, to which it pads 80, and
{FLASH_ATTENTION_2[128]:g} at 128: `attention_dq` and `attention_dkdv` share that. Tiles that every block
of a head reads again are not counted as memory's. Demanded besides: as many instructions of the tensor
cores as the products need and no more, no local memory, at most 255 registers and 99 KB of shared memory.

Those of `attention_wide_…` are of the loop over the sums alone, half of the products or a third.

{table(products(found))}

In float32, without tensor cores, on sm_80: fused multiply-adds of a turn of the main loop, exactly as
many as its product needs, and their share of all instructions, of which 70 % are demanded.

{table(fused(found))}

Accepted, with the reason:

{accepted}

Left to be worked on:

{left}

Anything else that is not bound by memory is among the failures above.

## Where the instructions go

On sm_90, an element, by class: of each kernel and sum of bytes the form with the most.

{table(instructions(found))}

## What is moved, done and launched

Counted in the calls of the benchmarks, for an element; nothing is estimated but where it says so.

- *Least*: bytes of the operands, each read or written once. *CUDA*: bytes of global memory that the
  op's kernels touch, each once a launch, by the emulator's count, and those of the few operators of
  torch that the backend calls. In brackets the whole call where it is more: forward and backward, with
  all that autograd starts in between, a second op included.
- *Launches* are counted likewise, *Triton's* those of the same op on that backend.
- *FLOP*: floating-point operations of the main loops on sm_90, by their disassembly: a fused
  multiply-add is two, an approximate function one; conversions, comparisons and integers are none.
- *Kept*: bytes that autograd saves for backward.
- *Eager*: what torch dispatches for the benchmarks' eager form of the call. Each operator is a launch;
  it reads what goes in and writes what comes out.

{table(counts(counting))}

Attention's rows are for an element of q. Its forward and backward are counted together, for so few rows
that keys and values weigh more than they do in a model; its operations are those of the products alone,
as carried out: with padding (77 keys are 128 in the forward's tiles, 80 in the backward's), and with what
is computed again (backward for dq, dk and dv seven products in two kernels, where five would be the least
in one; three for dq alone). `scaled_dot_product_attention` would move what
CUDA's column says for the text, and out and a logarithm a row more; *eager* has scores in memory.
group_norm_silu reads x twice forward, and x and the gradient twice backward, since sums come first: 8
passes where 5 would be the least. Of torch's normalisation one reading is counted, though it has two.

The gradient of a loss is written by the forward. Whether the factor that autograd brings to the backward is
one stands in the GPU's memory, where the host does not look: a launch is left (`image_scale_`), which moves
nothing if it is, and 4 bytes of a bfloat16 element if it is not.

## Rates

Threads' instructions a clock and multiprocessor. Limits: NVIDIA, *CUDA Programming Guide*, "Compute
Capabilities"; rates: *CUDA C++ Best Practices Guide*, "Throughput of Native Arithmetic Instructions";
where that is silent or kinder than what others have measured, the measurement. Chips: NVIDIA's A100
datasheet, *Ada GPU Architecture* and *H100 Tensor Core GPU Architecture*; the clock is the one that the
stated float32 peak implies. Of a B200, NVIDIA states neither multiprocessors nor clock: both, and the
bandwidth, are what drivers report. `benchmarks/proof/chips.py` has the references.

{table(chips)}
"""
