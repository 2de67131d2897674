"""Times calls on a GPU by its own clock, with cold caches, providers in turns.

Before each timed call a buffer larger than any second-level cache is overwritten: the call finds its
operands in memory, as an op between two passes of a model does. That also keeps the GPU busy while
the host launches the call, so that what lies between the two events is the GPU's work and not the
host's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from ..measure import COPY, Case, Result

#: Bytes; the second-level cache of a B200 has 126 MB.
FLUSHED = 512 << 20


class Timer:
    def __init__(self) -> None:
        self._flush = torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")

    def milliseconds(self, call: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


def copier(bytes_moved: int) -> Callable[[], object]:
    """A copy on the GPU that reads half of so many bytes and writes half."""
    source = torch.ones(bytes_moved // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def measure(
    case: Case, providers: Mapping[str, Callable[[], object]], timer: Timer, seconds: float
) -> Result:
    """Rounds over the providers and the copy for about so long, at least twenty."""
    everyone = {**providers, COPY: copier(case.bytes_moved)}
    for call in everyone.values():
        for _ in range(3):  # compilation, autotuning, the allocator
            call()
    torch.cuda.synchronize()
    result = Result(case, {name: [] for name in everyone})
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(result.seconds[COPY]) < 20:
        for name, call in everyone.items():
            result.seconds[name].append(timer.milliseconds(call) / 1e3)
    return result


def bandwidth(timer: Timer) -> float:
    """Bytes a second that a large copy moves, reads and writes."""
    moved = 1 << 30
    copy = copier(moved)
    copy()
    return moved / statistics.median(timer.milliseconds(copy) / 1e3 for _ in range(20))
