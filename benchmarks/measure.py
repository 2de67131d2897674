"""Times several ways of doing one job in turn, so that what disturbs one disturbs all.

Each round calls every provider once; a ratio is the median over the rounds of the ratio within a
round. Absolute times are medians.
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

OURS = "udp_fast"
COPY = "copy"


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
    """

    op: str
    name: str
    shape: tuple[int, ...]
    providers: Mapping[str, Callable[[], object]]
    bytes_moved: int
    bars: tuple[Bar, ...] = ()

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


def keep_freed_memory() -> None:
    """Asks glibc to keep freed memory of tensors up to 32 MiB instead of giving it back.

    Otherwise every result is fresh pages, whose faults cost more than most ops here and fall on
    whichever provider comes next.
    """
    if sys.platform == "linux":
        mallopt = ctypes.CDLL(None).mallopt
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, 32 << 20)
        mallopt(m_trim_threshold, 2**31 - 1)


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


def measure(case: Case, seconds: float = 4.0) -> Result:
    """Rounds over all providers of ``case`` for about so long, at least ten, after three for warmth."""
    providers = {**case.providers, COPY: copier(case.bytes_moved)}
    for _ in range(3):
        for call in providers.values():
            call()
    result = Result(case, {name: [] for name in providers})
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(result.seconds[OURS]) < 10:
        for name, call in providers.items():
            start = time.perf_counter()
            call()
            result.seconds[name].append(time.perf_counter() - start)
    return result
