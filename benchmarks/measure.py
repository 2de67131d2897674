"""What is timed: several ways of doing one job, and how their times are put together.

In each round every provider has a turn: a call that is not timed, or as many as fit into `SETTLE`, which
leave the allocator, the caches and the threads as the provider itself leaves them, then timed ones, at
least `CALLS` and for as long as `LASTS`, of which the median counts. A ratio is the median over the rounds
of the ratio within a round; absolute times are medians too.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

OURS = "udp_fast"
COPY = "copy"
EAGER = "eager"

#: Timed calls in a turn, at least.
CALLS = 3
#: Seconds of a turn before and during its timed calls, at least.
SETTLE, LASTS = 0.002, 0.005


@dataclass(frozen=True)
class Bar:
    """``provider``'s time over ours must be at least this much."""

    provider: str
    at_least: float


@dataclass(frozen=True)
class Case:
    """One op on one shape and set of dtypes.

    ``providers`` maps names to calls that do the same job; `OURS` is among them. ``bytes_moved`` is
    what the op has to read and write, each once; a copy of as many bytes is added as `COPY`.
    ``slack`` is how many times that the CUDA kernels may touch, with keys, tables and partial sums.
    """

    op: str
    name: str
    shape: tuple[int, ...]
    providers: Mapping[str, Callable[[], object]]
    bytes_moved: int
    bars: tuple[Bar, ...] = ()
    slack: float = 1.025
    total: int = 0  # elements, where `shape` is not that of a tensor

    @property
    def elements(self) -> int:
        return self.total or math.prod(self.shape)

    @property
    def title(self) -> str:
        return f"{self.op}, {self.name}, {'×'.join(map(str, self.shape))}"


@dataclass
class Result:
    case: Case
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, provider: str) -> float:
        return statistics.median(self.seconds[provider])

    def ratio(self, provider: str) -> float:
        """How many times longer than ours ``provider`` takes; for the copy, 1 is the floor."""
        pairs = zip(self.seconds[provider], self.seconds[OURS], strict=True)
        return statistics.median(other / ours for other, ours in pairs)

    def missed(self) -> list[str]:
        return [
            f"{self.case.title}: {bar.provider} / ours is {self.ratio(bar.provider):.2f}, the bar"
            f" is {bar.at_least}"
            for bar in self.case.bars
            if self.ratio(bar.provider) < bar.at_least
        ]


def copier(bytes_moved: int) -> Callable[[], object]:
    """A copy that reads half of ``bytes_moved`` and writes half, the fastest way this machine has.

    That is the native kernels' own copy, past the caches where the size calls for it, as in the ops.
    """
    from udp_fast import _native

    count = bytes_moved // 8
    source, target = torch.ones(count), torch.ones(count)
    stream = count * 4 > 8 << 20

    def copy() -> None:
        _native.copy(target.data_ptr(), source.data_ptr(), count, stream, torch.get_num_threads())

    return copy


def size_of(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def named(form: str, dtype: torch.dtype) -> str:
    """A case's name; float32 is what goes without saying."""
    return form if dtype == torch.float32 else f"{form}, {str(dtype).removeprefix('torch.')}"


def turn(call: Callable[[], object]) -> float:
    """The median seconds of one turn's calls."""
    times: list[float] = []
    begin = time.perf_counter()
    call()
    settled = time.perf_counter()
    while settled - begin < SETTLE:
        call()
        settled = time.perf_counter()
    while len(times) < CALLS or time.perf_counter() - settled < LASTS:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
