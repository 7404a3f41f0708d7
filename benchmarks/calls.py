"""A call's round trip beside a bare echo, all processes on one core.

On several cores a round trip measures how deep the waiting core sleeps; on one it measures the work.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from caravela import Supervisor

from . import echo
from .flows import count, idle
from .report import Figure, Section, ratio
from .timing import Sample, Way, interleaved

AT_ONCE = 50
"""Calls in a row of one way: the caches are warm, as in a series of calls."""


def measure(n: int, order: random.Random, cpu: int) -> Section:
    with _pinned(cpu), Supervisor() as supervisor, echo.over_pipes() as pipes, echo.over_socket() as stream:
        handle = supervisor.start(idle)
        ways: dict[str, Way] = {
            "pipe": pipes,
            "socket": stream,
            "get_state": lambda: _timed(handle.get_state),
            "update": lambda: _timed(handle.update, count),
        }
        samples: dict[str, list[float]] = {name: [] for name in ways}
        rows: dict[str, Way] = {name: _row(way, samples[name]) for name, way in ways.items()}
        interleaved(rows, max(1, n // AT_ONCE), order, warm_up=0)
    found = {name: Sample(tuple(values)) for name, values in samples.items()}
    named = {"pipe": "echo over a pair of pipes", "socket": "echo over a stream socket"}
    figures = [Figure.of(name, named.get(name, f"handle.{name}"), sample, "µs", 1e6) for name, sample in found.items()]
    figures += [
        ratio(f"{call}_per_{bare}", f"{call} ÷ {bare} echo", found[call], found[bare])
        for call in ("get_state", "update")
        for bare in ("pipe", "socket")
    ]
    return Section("calls", f"Calls, all on CPU {cpu}", figures)


def _row(way: Way, into: list[float]) -> Way:
    def row() -> float:
        way()  # the first of a row finds cold caches
        took = [way() for _ in range(AT_ONCE)]
        into.extend(took)
        return sum(took)

    return row


def _timed(call: Callable[..., Any], *args: Any) -> float:
    before = time.perf_counter()
    call(*args)
    return time.perf_counter() - before


@contextmanager
def _pinned(cpu: int) -> Iterator[None]:
    """This thread, and all threads and processes that are made meanwhile."""
    usual = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, usual)
