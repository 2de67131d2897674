"""Each provider of a case in a process of its own, as it would be in a program that uses it.

Within one process providers decide about each other's memory: whether a large result finds a block that
glibc still holds, or 6144 pages that the system has yet to find, depends on what another one freed
before. So every provider has its own process for all cases, and they take turns.

Within one process that is decided once for many calls: by where the system has put its heap, eager's weighted
loss takes 4 to 19 ms. So all is done anew with other processes, a few times, and all rounds count alike.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from unittest import mock

import torch

from .measure import COPY, Result, copier, turn

#: How many processes a provider has, one after the other, and rounds in all of them, at least.
GENERATIONS, ROUNDS = 5, 15
#: Seconds between two turns: threads of the last one's process wait for work by spinning, for a while.
PAUSE = 0.01
#: With which glibc keeps what is freed and maps no large block by itself: no call finds pages anew.
MEMORY_KEPT = dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(4 << 30))


def _play(connection: Connection, provider: str, only: str) -> None:
    """Answers each place of a case among `cases(only)` with the seconds of a turn, until there is None."""
    from .ops import cases

    stock = enumerate(cases(only))
    at, call = -1, None
    while (wanted := connection.recv()) is not None:
        while at < wanted:
            call = None  # its tensors are not needed any more
            if provider == "compile":  # nor what was, of which a function may have only so much
                torch.compiler.reset()
            at, case = next(stock)
            if at == wanted:
                call = copier(case.bytes_moved) if provider == COPY else case.providers[provider]
                turn(call)  # compilation and first touches
        assert call is not None
        connection.send(turn(call))


class Players:
    """The processes, begun when they are first needed, with these variables in their environment."""

    def __init__(self, only: str, environment: Mapping[str, str] | None = None) -> None:
        self._only, self._environment = only, environment or {}
        self._context = get_context("spawn")
        self._players: dict[str, tuple[BaseProcess, Connection]] = {}

    def __enter__(self) -> Players:
        return self

    def __exit__(self, *_: object) -> None:
        for process, connection in self._players.values():
            if process.is_alive():
                connection.send(None)
                process.join()

    def _connection(self, provider: str) -> Connection:
        if provider not in self._players:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(
                target=_play, args=(theirs, provider, self._only), daemon=True
            )
            with mock.patch.dict(os.environ, self._environment):
                process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            self._players[provider] = process, ours
        return self._players[provider][1]

    def measure(self, place: int, result: Result, seconds: float, rounds: int) -> None:
        """Rounds over all providers of the case at `place` of `cases(only)` for about so long, at least so
        many, added to its result."""
        providers = [*result.case.providers, COPY]

        def seconds_of(provider: str) -> float:
            connection = self._connection(provider)
            connection.send(place)
            answer: float = connection.recv()
            time.sleep(PAUSE)
            return answer

        for provider in providers:
            seconds_of(provider)
        end = time.perf_counter() + seconds
        done = 0
        while time.perf_counter() < end or done < rounds:
            for provider in providers:
                result.seconds.setdefault(provider, []).append(seconds_of(provider))
            done += 1
