"""Times the ops beside eager torch, torch.compile and a plain copy, and prints the table.

    python -m benchmarks [--write docs/performance.md] [--only pgd_step] [--seconds 4]

Says which bars were missed; with --strict it exits with 1 if one was. `pytest benchmarks` runs the
same cases under pytest-benchmark.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import udp_fast
from udp_fast import _native

from .markdown import table
from .measure import COPY, EAGER, OURS, Case, Result
from .ops import cases
from .turns import GENERATIONS, MEMORY_KEPT, ROUNDS, Players
from .unet import carried_over


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), cpu)
    return {
        "date": datetime.date.today().isoformat(),
        "processor": cpu,
        "threads": torch.get_num_threads(),
        "kernels": _native.isa(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "udp_fast": udp_fast.__version__,
    }


def row(result: Result) -> list[str]:
    case = result.case
    others = [f"{name} {result.ratio(name):.2f}×" for name in case.providers if name != OURS]
    bars = [
        f"{bar.provider} ≥ {bar.at_least:g}: "
        + ("met" if result.ratio(bar.provider) >= bar.at_least else "MISSED")
        for bar in case.bars
    ]
    return [
        case.op,
        case.name,
        "×".join(map(str, case.shape)),
        f"{result.median(OURS) * 1e3:.3f}",
        "<br>".join(others),
        f"{result.ratio(COPY):.0%}",
        "<br>".join(bars),
    ]


HEADER = ["op", "form", "shape", "ms", "time of others / ours", "of copy's speed", "bars"]


def has_a_bar_on_eager(case: Case) -> bool:
    """Then what the allocator does counts: eager has more tensors than ours."""
    return any(bar.provider == EAGER for bar in case.bars)


def section_on_memory(results: list[Result], kept: list[Result]) -> str:
    """What a part of the results becomes where memory is kept."""
    default = {result.case.title: result for result in results}
    rows = [["op", "form", "shape", "ms, and where memory is kept", "eager / ours, and so"]]
    for result in kept:
        by_default = default[result.case.title]
        op, form, shape, ms, *_ = row(by_default)
        rows.append(
            [
                *(op, form, shape),
                f"{ms}, {result.median(OURS) * 1e3:.3f}",
                f"{by_default.ratio(EAGER):.2f}×, {result.ratio(EAGER):.2f}×",
            ]
        )
    return f"""
## Where memory is kept

A large result is made of memory that the process still holds or of pages that the system has yet to
find, and a fault for each page can take longer than the op. glibc decides anew at each call, by what was
freed before; eager, with more of such tensors, pays more often. So ratios to eager scatter between processes
where results are large, and part of what they show is glibc. Where nobody pays (`MALLOC_TRIM_THRESHOLD_` and
`MALLOC_MMAP_THRESHOLD_` are 4 GB; other allocators keep memory by themselves) the same cases took, with one
process for each provider:

{table(rows)}
"""


def markdown(results: list[Result], kept: list[Result], about: dict[str, Any]) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in about.items())
    data = {r.case.title: {name: r.median(name) for name in r.seconds} for r in results}
    return f"""# Performance

Written by `make bench` (`python -m benchmarks --write docs/performance.md`). {facts}.

Every figure is a median. Each provider has a process of its own, as it would be in a program that uses
it. They take turns within one run, a call to settle and a few timed ones each, and a ratio is the median
of the ratios within a round of turns, so that what disturbs the machine disturbs all of them. After each
fifth of the rounds other processes take over, for where the system puts a process's heap decides for all
its life how often large results cost page faults. "Of copy's speed": how fast this machine copies as many
bytes as the op has to read and write, over the op's time; 100 % is the limit of the memory for an op that
only streams. Calls go through `udp_fast.ops`, checks and, for the loss, autograd included.

What the others are: *eager* does the same job in torch, in place where it can; *compile* is
torch.compile of it; *unguarded* is the step without the check for gradients that are not finite, and
*unweighted* `F.mse_loss`, which does less than the op; *float32* is the op itself on float32 tensors.

{table([HEADER, *map(row, results)])}
{section_on_memory(results, kept) if kept else ""}
Medians in seconds, by provider:

```json
{json.dumps(data, indent=1, ensure_ascii=False)}
```
"""


def timed(
    only: str,
    stock: list[tuple[int, Case]],
    seconds: float,
    generations: int,
    environment: Mapping[str, str],
) -> list[Result]:
    """Each case of the stock, which knows its place among `cases(only)`; printed as they are done."""
    results = [Result(case) for _, case in stock]
    for remaining in reversed(range(generations)):
        with Players(only, environment) as players:
            for (place, _), result in zip(stock, results, strict=True):
                players.measure(place, result, seconds / generations, -(-ROUNDS // generations))
                if not remaining:
                    tell(result)
    return results


def tell(result: Result) -> None:
    *_, ms, ratios, of_copy, bars = row(result)
    print(f"{result.case.title}\n    {ms} ms, {of_copy} of copy's speed")
    for cell in (ratios, bars):
        if cell:
            print("    " + cell.replace("<br>", ", "))
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table as Markdown")
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="cases whose title has this text"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="a case, about (default 4)")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a bar is missed")
    options = parser.parse_args()
    stock = [(i, c) for i, c in enumerate(cases(options.only)) if options.only in c.title]
    results = timed(options.only, stock, options.seconds, GENERATIONS, {})
    # Bars are about programs as they are by default.
    of_eager = [(i, replace(case, bars=())) for i, case in stock if has_a_bar_on_eager(case)]
    if of_eager:
        print("\nwhere memory is kept")  # one process will do: so it is in all of them
    kept = timed(options.only, of_eager, options.seconds, 1, MEMORY_KEPT)
    if options.write is not None:
        document = markdown(results, kept, machine())
        if options.write.exists():  # what `python -m benchmarks.unet` wrote stays
            document = carried_over(options.write.read_text(), document)
        options.write.write_text(document)
    missed = [text for result in results for text in result.missed()]
    print("\n".join(missed) or "every bar is met")
    return 1 if missed and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
