"""The workers that run, whichever zygote has forked them: signals to them, their deaths and how they ended."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from caravela.errors import Cause

from ...worker.reaping import kill_group, readable
from .base import Exited, Loop
from .deaths import send_signal
from .zygote import Zygote, close_fd

STATUS_WITHIN: Final = 1.0
"""Seconds from a worker's death to the zygote's report of its status."""

LOST: Final = Cause("zygote_lost", "its zygote was lost")


@dataclass(slots=True)
class _Worker:
    """``watched``: its death was not seen yet. ``late`` cancels the timer for a status that does not come."""

    pid: int
    death: int
    zygote: Zygote
    watched: bool = True
    late: Callable[[], None] = lambda: None


class Workers:
    def __init__(self) -> None:
        self._all: dict[int, _Worker] = {}

    def open(self, loop: Loop, hear: Callable[[Zygote], None], report: Callable[[Exited], None]) -> None:
        self._loop, self._hear, self._report = loop, hear, report

    def add(self, key: int, pid: int, death: int, zygote: Zygote) -> None:
        self._all[key] = _Worker(pid, death, zygote)
        self._loop.watch(death, partial(self._died, key))

    def any_of(self, zygote: Zygote) -> bool:
        return any(worker.zygote is zygote for worker in self._all.values())

    def signal(self, key: int, number: signal.Signals) -> None:
        worker = self._all.get(key)
        if worker is None or readable(worker.death):
            return  # gone, and its group goes with it; the number may be a stranger's soon
        if number is signal.SIGKILL:
            kill_group(worker.pid)
        send_signal(worker.death, number)

    def kill_of(self, zygote: Zygote) -> None:
        """Of one that will reap no more, at once, while no other process can have got their numbers."""
        for worker in self._all.values():
            if worker.zygote is zygote:
                kill_group(worker.pid)

    def lost_by(self, zygote: Zygote) -> None:
        """Nobody will say how those ended that are dead; the others are heard of at their deaths."""
        for key, worker in list(self._all.items()):
            if worker.zygote is zygote and not worker.watched:
                self.exited(key, LOST)

    def exited(self, key: int, why: Cause) -> None:
        worker = self._all.pop(key, None)
        if worker is None:  # was reported as unknown, or could not be watched
            return
        worker.late()
        self._report(Exited(key, why))
        self._loop.unwatch(worker.death, close=True)

    def close(self, seconds: float) -> None:
        """Waits so long for those that were killed."""
        end = time.monotonic() + seconds
        for worker in self._all.values():
            worker.late()
            readable(worker.death, end - time.monotonic())
            self._loop.unwatch(worker.death, close=True)
        self._all.clear()

    def forget(self) -> None:
        for worker in self._all.values():
            close_fd(worker.death)
        self._all.clear()

    def _died(self, key: int) -> None:
        """The zygote sees it too, kills the group and reports the status; it may have done so already."""
        worker = self._all.get(key)
        if worker is None or not worker.watched:
            return
        worker.watched = False
        self._loop.unwatch(worker.death, close=False)
        if worker.zygote.control_open:
            worker.late = self._loop.later(STATUS_WITHIN, partial(self._status_is_late, key))
        else:
            self.exited(key, LOST)

    def _status_is_late(self, key: int) -> None:
        """A zygote kills the group before it reaps; one that has not reaped has left us the number, and the group."""
        worker = self._all[key]
        self._hear(worker.zygote)  # perhaps it was we who were late
        if key not in self._all:
            return
        worker.zygote.silent = True
        kill_group(worker.pid)
        self.exited(key, Cause("unknown", "the zygote did not say how it ended"))
