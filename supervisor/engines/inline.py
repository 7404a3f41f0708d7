"""Workers as threads of this process: for tests, debuggers and places without processes.

No isolation: they share the interpreter, its modules and its fate. A worker that runs a function of the user's on its
loop (a signal, a predicate) cannot be ended from outside; a body on a thread is given up, and ends when it ends.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterable
from functools import partial
from typing import Final

from caravela.errors import Cause

from ...worker import exits
from ...worker.main import run
from ..limits import with_enough_fds
from .base import Ends, Exited, Launched, LaunchFailed, Loop, Setting

OWN: Final = 4
"""Fds that a worker opens for itself: its page, what wakes it, and a module while it is imported."""

GONE_WITHIN: Final = 2.0
"""Seconds that ``close`` waits for all workers together."""


class _Worker(threading.Thread):
    """``death`` becomes readable at its end; ``halt`` asks for it."""

    def __init__(self, key: int, ends: Ends, halt: int, death: int) -> None:
        super().__init__(name=f"caravela worker {key}", daemon=True)
        self.ends, self.halt, self.death = ends, halt, death
        self.code = exits.CRASHED
        self.told: signal.Signals | None = None

    def run(self) -> None:
        try:
            self.code = run(self.ends.reads, self.ends.writes, self.ends.page, home=True, halt=self.halt)
        finally:
            os.eventfd_write(self.death, 1)

    def tell(self, number: signal.Signals) -> None:
        self.told = number
        os.eventfd_write(self.halt, 1)

    @property
    def cause(self) -> Cause:
        if self.code == exits.HALTED and self.told is not None:
            return Cause("signal", self.told.name)
        return Cause("exit", f"exit code {self.code}")

    def fds(self) -> tuple[int, ...]:
        """Those that no loop watches."""
        return self.ends.reads, self.ends.writes, self.ends.page, self.halt


def _halt_and_death() -> tuple[int, int]:
    """Raises ``OSError`` also when only these two can be had: the worker could not tell its lack of others."""
    made: list[int] = []
    try:
        while len(made) < 2 + OWN:
            made.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
    except OSError:
        _close(made)
        raise
    halt, death, *spare = made
    _close(spare)
    return halt, death


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


class InlineEngine:
    """``terminate`` and ``kill`` both end a worker's loop; its cause then names the signal, as if it were a process."""

    def __init__(self) -> None:
        self._workers: dict[int, _Worker] = {}

    def open(self, loop: Loop) -> None:
        self._loop = loop

    def launch(self, key: int, ends: Ends, setting: Setting) -> None:
        try:
            halt, death = with_enough_fds(_halt_and_death)
        except OSError as error:
            _close((ends.reads, ends.writes, ends.page))
            self._loop.report(LaunchFailed(key, f"{error.strerror}"))
            return
        worker = _Worker(key, ends, halt, death)
        try:
            worker.start()
        except RuntimeError as error:  # the system has no more threads
            _close((*worker.fds(), worker.death))
            self._loop.report(LaunchFailed(key, str(error)))
            return
        self._workers[key] = worker
        self._loop.watch(worker.death, partial(self._ended, key))
        self._loop.report(Launched(key, os.getpid(), worker.death))

    def booted(self, key: int) -> None:
        """What it imported this process has."""

    def terminate(self, key: int) -> None:
        if worker := self._workers.get(key):
            worker.tell(signal.SIGTERM)

    def kill(self, key: int) -> None:
        if worker := self._workers.get(key):
            worker.tell(signal.SIGKILL)

    def close(self) -> None:
        """A worker that does not end within ``GONE_WITHIN`` seconds keeps its thread and its fds, and nobody else."""
        for worker in self._workers.values():
            worker.tell(signal.SIGKILL)
        for worker in self._workers.values():
            worker.join(GONE_WITHIN / len(self._workers))
            if not worker.is_alive():
                self._release(worker)
        self._workers.clear()

    def forget(self) -> None:
        """In a forked child, where the threads are not."""
        for worker in self._workers.values():
            for fd in (*worker.fds(), worker.death):
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._workers.clear()

    def _ended(self, key: int) -> None:
        if (worker := self._workers.pop(key, None)) is None:
            return
        worker.join()  # its last act was to make `death` readable
        self._loop.report(Exited(key, worker.cause))
        self._release(worker)

    def _release(self, worker: _Worker) -> None:
        _close(worker.fds())
        self._loop.unwatch(worker.death, close=True)
