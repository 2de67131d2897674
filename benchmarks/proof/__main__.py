"""Compiles every GPU kernel in every form and proves what can be proven without a GPU.

    python -m benchmarks.proof [--write docs/kernel-proof.md] [--arch 80 90] [--language CUDA] [--jobs 2]

Prints what the machine code comes to, what the ops move and launch, and every gate that is not met;
exits with 1 if there is one. What was read from a kernel is kept under .cache/proof by content, so a
second run takes a minute.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import time
from pathlib import Path

from . import counting, cuda, table
from .chips import ARCHITECTURES
from .examine import LANGUAGES, examine


def compilers() -> str:
    return f"CUDA {cuda.build().version()}, Triton {importlib.metadata.version('triton')}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.proof", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page as Markdown")
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--language", nargs="+", choices=LANGUAGES, default=LANGUAGES)
    parser.add_argument("--jobs", type=int, default=2, help="compile so many at once (default 2)")
    options = parser.parse_args()
    start = time.monotonic()
    counts: list[counting.Count] = []
    found = examine(
        options.arch,
        options.language,
        options.jobs,
        # The emulator runs on one processor, the end of which would else be waited for.
        meanwhile=lambda: counts.extend(counting.count_all()),
    )
    print(table.plain(table.summary(found)))
    counted = counting.examine(counts, found.entries)
    print(table.plain(table.counts(counted)))
    failures = [*found.failures, *counted.failures]
    for text in failures:
        print(f"FAILED: {text}")
    print(
        f"{len(found.entries)} pieces of machine code, {len(failures)} failures,"
        f" {time.monotonic() - start:.0f} s"
    )
    if options.write is not None:
        options.write.write_text(table.page(found, counted, compilers()), encoding="utf-8")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
