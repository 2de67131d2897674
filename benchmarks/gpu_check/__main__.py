"""Tests and times the GPU backends on this machine's GPU, and writes one report.

    python -m benchmarks.gpu_check [--dry-run] [--only q_sample] [--seconds 2] [--out gpu-report]

Runs the tests marked `gpu`, then every benchmark case on each GPU backend beside eager torch,
torch.compile and a copy of as many bytes. Writes report.md and report.json into the folder, and
exits with 1 if a test failed. Without a GPU nothing is measured and nothing is written; --dry-run
lists what would be done.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch

import udp_fast
from udp_fast.backends.registry import backend

from ..markdown import table
from ..measure import COPY, EAGER, OURS, Case, Result
from ..ops import cases, cases_16_bit
from . import timing

#: In the order of the report's columns.
BACKENDS = ("cuda", "triton")
TESTS = [sys.executable, "-m", "pytest", "-m", "gpu", "-q"]
NO_TESTS = 5  # pytest's exit status where none was collected


@contextmanager
def pinned(name: str) -> Iterator[None]:
    before = os.environ.get("UDP_FAST_BACKEND")
    os.environ["UDP_FAST_BACKEND"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["UDP_FAST_BACKEND"]
        else:
            os.environ["UDP_FAST_BACKEND"] = before


def pinned_call(name: str, call: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with pinned(name):
            return call()

    return run


def providers(case: Case) -> dict[str, Callable[[], object]]:
    """The backends that can run here in place of ours, and the case's others."""
    ours = {
        name: pinned_call(name, case.providers[OURS])
        for name in BACKENDS
        if not backend(name).missing
    }
    return {**ours, **{name: call for name, call in case.providers.items() if name != OURS}}


def all_cases(device: str, only: str) -> Iterator[Case]:
    """Their tensors are made on the device; their calls find the default device as it was."""
    some = chain(cases(), cases_16_bit())
    while True:
        with torch.device(device):
            case = next(some, None)
        if case is None:
            return
        if only in case.title:
            yield case


def machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_properties(0)
    driver = subprocess.run(
        [
            "nvidia-smi",
            "--query-gpu=driver_version,power.limit,clocks.max.sm",
            "--format=csv,noheader",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "date": datetime.date.today().isoformat(),
        "gpu": gpu.name,
        "compute_capability": f"{gpu.major}.{gpu.minor}",
        "multiprocessors": gpu.multi_processor_count,
        "memory_bytes": gpu.total_memory,
        "driver, power limit, clock limit": driver.stdout.split("\n")[0] or "unknown",
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "udp_fast": udp_fast.__version__,
        **{f"backend {name}": backend(name).missing or backend(name).status() for name in BACKENDS},
    }


def run_tests() -> dict[str, Any]:
    done = subprocess.run(TESTS, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    summary = "no test is marked gpu" if done.returncode == NO_TESTS else (lines or [""])[-1]
    return {
        "command": " ".join(["python", *TESTS[1:]]),
        "status": done.returncode,
        "summary": summary,
        "output": "" if done.returncode in (0, NO_TESTS) else done.stdout[-20000:],
    }


def row(result: Result) -> list[str]:
    def cell(name: str) -> str:
        if name not in result.seconds:
            return "–"
        share = result.median(COPY) / result.median(name)
        return f"{result.median(name) * 1e6:.1f} ({share:.0%})"

    others = [n for n in result.seconds if n not in (*BACKENDS, COPY, EAGER, "compile")]
    return [
        result.case.op,
        result.case.name,
        "×".join(map(str, result.case.shape)),
        *(cell(name) for name in (*BACKENDS, EAGER, "compile")),
        "<br>".join(f"{name} {cell(name)}" for name in others),
        f"{result.median(COPY) * 1e6:.1f}",
    ]


HEADER = ["op", "form", "shape", *BACKENDS, EAGER, "compile", "others", "copy"]


def markdown(report: dict[str, Any], results: list[Result]) -> str:
    facts = "\n".join(f"- {key}: {value}" for key, value in report["machine"].items())
    tests = report["tests"]
    output = f"\n```\n{tests['output']}\n```\n" if tests["output"] else ""
    return f"""# GPU check

Written by `make gpu-check` on the machine it describes.

{facts}

## Tests

`{tests["command"]}`: {tests["summary"]} (exit status {tests["status"]})
{output}
## Times

Medians in microseconds by the GPU's clock, second-level cache flushed before every call, providers in
turns. In brackets: as a share of the speed at which this GPU copies as many bytes as the op has to
read and write, each once. A copy of {timing.FLUSHED >> 20} MiB to as many moves \
{report["copy_bytes_a_second"] / 1e9:.0f} GB a second.

{table([HEADER, *map(row, results)])}
"""


def dry_run(only: str) -> None:
    """Lists everything, without a GPU and without compiling or timing anything."""
    print(f"1. tests: {' '.join(['python', *TESTS[1:]])}")
    print("2. backends")
    for name in BACKENDS:
        print(f"   {name}: {backend(name).missing or 'usable here'}")
    print(f"3. copy bandwidth; {timing.FLUSHED >> 20} MiB overwritten before each timed call")
    print("4. times, by CUDA events, in turns")
    for case in all_cases("meta", only):
        others = [name for name in case.providers if name != OURS]
        print(f"   {case.title}: {', '.join([*BACKENDS, *others, COPY])}")
    print("5. report.md and report.json")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--dry-run", action="store_true", help="list what would be done")
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="cases whose title has this text"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="a case, about (default 2)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", default=Path("gpu-report"))
    options = parser.parse_args()
    if options.dry_run:
        dry_run(options.only)
        return 0
    if not torch.cuda.is_available():
        print("gpu-check: no CUDA GPU found; nothing was measured, nothing is written (--dry-run)")
        return 2
    report: dict[str, Any] = {"machine": machine(), "tests": run_tests()}
    print(report["tests"]["summary"])
    timer = timing.Timer()
    report["copy_bytes_a_second"] = timing.bandwidth(timer)
    results = []
    for case in all_cases("cuda", options.only):
        results.append(timing.measure(case, providers(case), timer, options.seconds))
        print(dict(zip(HEADER, row(results[-1]), strict=True)), flush=True)
    report["seconds"] = {r.case.title: r.seconds for r in results}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False))
    (options.out / "report.md").write_text(markdown(report, results))
    print(f"written: {options.out / 'report.md'}")
    return 0 if report["tests"]["status"] in (0, NO_TESTS) else 1


if __name__ == "__main__":
    sys.exit(main())
