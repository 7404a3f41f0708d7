"""Workers as processes of this machine, forked from a zygote."""

import contextlib
import os
import signal
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from caravela.errors import Cause

from ...worker import zygote as wire
from ..limits import fds_of_the_host
from .base import Ends, Exited, Launched, LaunchFailed, Loop
from .deaths import cause, kill_group, readable, send_signal
from .zygote import Zygote, spawn

UNANSWERED: Final = 8
"""Requests before the zygote at once: a SEQPACKET socket holds ten packets, and fds in flight are counted too."""

STATUS_WITHIN: Final = 1.0
"""Seconds from a worker's death to the zygote's report of its status."""

GONE_WITHIN: Final = 2.0
"""Seconds that ``close`` gives the zygote to kill and reap its workers."""

ZYGOTES: Final = 3
"""So many in a row may die before they say hello."""

_LOST: Final = Cause("zygote_lost", "its zygote was lost")


@dataclass(slots=True)
class _Worker:
    """``watched``: its death was not seen yet. ``late`` cancels the timer for a status that does not come."""

    pid: int
    death: int
    zygote: Zygote
    watched: bool = True
    late: Callable[[], None] | None = None


class ProcessEngine:
    """Starts one zygote, and a new one when that is lost. Needs Linux 5.4.

    ``nofile`` is the soft RLIMIT_NOFILE that workers get; by default what this process chose for itself.
    ``worker`` names, as ``module:function``, what the zygote calls once and returns what every worker runs.
    """

    def __init__(self, *, nofile: int | None = None, worker: str = "caravela.worker.rehearsal:prepared") -> None:
        self._nofile = fds_of_the_host() if nofile is None else nofile
        self._worker = worker
        self._zygote: Zygote | None = None
        self._dying: list[Zygote] = []  # no longer answering, not yet reaped
        self._failures = 0
        self._queue: deque[tuple[int, Ends]] = deque()
        self._asked: dict[int, Ends] = {}  # sent, not answered
        self._doomed: dict[int, signal.Signals] = {}  # asked, and already to be killed
        self._workers: dict[int, _Worker] = {}

    def open(self, loop: Loop) -> None:
        self._loop = loop
        self._start_zygote()

    def launch(self, key: int, ends: Ends) -> None:
        self._queue.append((key, ends))
        if self._zygote is None:
            self._start_zygote()
        else:
            self._ask()

    def terminate(self, key: int) -> None:
        self._signal(key, signal.SIGTERM)

    def kill(self, key: int) -> None:
        self._signal(key, signal.SIGKILL)

    def close(self) -> None:
        """Waits up to ``GONE_WITHIN`` seconds for the zygote, then kills it, and with it what it could not kill."""
        for zygote in filter(None, (self._zygote, *self._dying)):
            if zygote.control_open:
                with contextlib.suppress(OSError):
                    zygote.control.shutdown(
                        socket.SHUT_RDWR
                    )  # the zygote reads the end of file although we close later
            if not readable(zygote.death, GONE_WITHIN):
                send_signal(zygote.death, signal.SIGKILL)
                for worker in self._workers.values():
                    kill_group(worker.pid)
                readable(zygote.death, GONE_WITHIN)
            zygote.reap()
            self._let_go_of_control(zygote)
            self._loop.unwatch(zygote.death, close=True)
        for worker in self._workers.values():
            if worker.late:
                worker.late()
            readable(worker.death, GONE_WITHIN)
            self._loop.unwatch(worker.death, close=True)
        for ends in self._pending_ends():
            _close(ends)
        self._clear()

    def forget(self) -> None:
        """In a forked child: closes every fd of the engine here, touching neither the loop nor a process."""
        for zygote in filter(None, (self._zygote, *self._dying)):
            zygote.control.close()
            _close_fd(zygote.death)
        for worker in self._workers.values():
            _close_fd(worker.death)
        for ends in self._pending_ends():
            _close(ends)
        self._clear()

    def _pending_ends(self) -> list[Ends]:
        return [ends for _, ends in self._queue] + list(self._asked.values())

    def _clear(self) -> None:
        self._zygote = None
        for held in (self._dying, self._queue, self._asked, self._doomed, self._workers):
            held.clear()

    # ------------------------------------------------------------------ the zygote

    def _start_zygote(self) -> None:
        try:
            self._zygote = zygote = spawn(self._nofile, self._worker)
        except OSError as error:
            self._failed_to_start(f"the zygote cannot be started: {error}")
            return
        self._loop.watch(zygote.control.fileno(), partial(self._receive, zygote))
        self._loop.watch(zygote.death, partial(self._zygote_died, zygote))

    def _receive(self, zygote: Zygote) -> None:
        """Every packet that is there; at the end of file the zygote is lost."""
        while zygote.control_open:
            try:
                heard = zygote.hear()
            except BlockingIOError:
                return
            match heard:
                case None:
                    self._lose(zygote)
                case [wire.HELLO, version], None:
                    self._greet(zygote, version)
                case [wire.LAUNCHED, key, pid], death:
                    self._launched(zygote, key, pid, death)
                case [wire.LAUNCH_FAILED, key, why], None:
                    self._fail(key, self._asked.pop(key), why)
                    self._ask()
                case [wire.EXITED, key, status], None:
                    self._exited(key, cause(status))

    def _greet(self, zygote: Zygote, version: int) -> None:
        if version != wire.VERSION:
            self._fail_all("the installed package is not the one that this process runs; restart it")
            self._lose(zygote)
            return
        self._failures = 0
        zygote.ready = True
        self._ask()

    def _zygote_died(self, zygote: Zygote) -> None:
        self._receive(zygote)  # what it still said
        if zygote.control_open:
            self._lose(zygote)
        why = zygote.reap()
        if zygote in self._dying:
            self._dying.remove(zygote)
        self._loop.unwatch(zygote.death, close=True)
        if not zygote.ready:
            self._failed_to_start(f"the zygote ended before it was ready ({why}); its stderr says more")

    def _lose(self, zygote: Zygote) -> None:
        """Its workers die with it. A request that it did not answer may have become one: it counts as one."""
        self._zygote = None
        self._dying.append(zygote)
        self._let_go_of_control(zygote)
        send_signal(zygote.death, signal.SIGKILL)
        for worker in self._workers.values():
            if worker.zygote is zygote:
                kill_group(worker.pid)  # at once, while no other process can have got this number
        for key, worker in list(self._workers.items()):
            if worker.zygote is zygote and not worker.watched:
                self._exited(key, _LOST)
        for key, ends in list(self._asked.items()):
            self._lost_in_launch(key, ends)
        if zygote.ready and self._queue and self._zygote is None:
            self._start_zygote()

    def _let_go_of_control(self, zygote: Zygote) -> None:
        if zygote.control_open:
            zygote.control_open = False
            self._loop.unwatch(zygote.control.detach(), close=True)

    def _failed_to_start(self, why: str) -> None:
        self._failures += 1
        if self._zygote is not None or not self._queue:
            return
        if self._failures < ZYGOTES:
            self._start_zygote()
            return
        self._failures = 0
        self._fail_all(why)

    def _fail_all(self, why: str) -> None:
        waiting = list(self._queue)
        self._queue.clear()  # first: who hears of it may launch again
        for key, ends in waiting:
            self._fail(key, ends, why)

    # ------------------------------------------------------------------ launching

    def _ask(self) -> None:
        """Passes on what waits, as far as the zygote keeps up; each answer makes room for the next."""
        zygote = self._zygote
        while zygote and zygote.ready and self._queue and len(self._asked) < UNANSWERED:
            key, ends = self._queue[0]
            try:
                zygote.ask(key, ends)
            except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                return  # full: an answer is under way; broken: the end of file is
            except OSError as error:
                self._queue.popleft()
                self._fail(key, ends, f"the request to the zygote: {error.strerror}")
                continue
            self._queue.popleft()
            self._asked[key] = ends

    def _launched(self, zygote: Zygote, key: int, pid: int, death: int | None) -> None:
        _close(self._asked.pop(key))
        if death is None:  # no fd left here; without it nobody sees this worker's end
            kill_group(pid)  # not reaped before the zygote has seen it die
            self._doomed.pop(key, None)
            self._loop.report(LaunchFailed(key, "no file descriptors left"))
        else:
            self._workers[key] = _Worker(pid, death, zygote)
            self._loop.watch(death, partial(self._worker_died, key))
            self._loop.report(Launched(key, pid, death))
            if doom := self._doomed.pop(key, None):
                self._signal(key, doom)
        self._ask()

    def _fail(self, key: int, ends: Ends, why: str) -> None:
        _close(ends)
        self._doomed.pop(key, None)
        self._loop.report(LaunchFailed(key, why))

    def _lost_in_launch(self, key: int, ends: Ends) -> None:
        """Not ``LaunchFailed``: nothing is wrong with this flow. Its worker is dead before it is launched."""
        del self._asked[key]
        self._doomed.pop(key, None)
        _close(ends)
        death = os.eventfd(1, os.EFD_CLOEXEC)
        self._loop.report(Launched(key, 0, death))
        self._loop.report(Exited(key, _LOST))
        self._loop.unwatch(death, close=True)

    # ------------------------------------------------------------------ dying

    def _signal(self, key: int, number: signal.Signals) -> None:
        if key in self._asked:
            if self._doomed.get(key) is not signal.SIGKILL:
                self._doomed[key] = number
            return
        for waiting in self._queue:
            if waiting[0] == key:
                self._queue.remove(waiting)
                self._fail(*waiting, "killed before it was launched")
                return
        worker = self._workers.get(key)
        if worker is None or readable(worker.death):
            return  # gone, and its group goes with it; the number may be a stranger's soon
        if number is signal.SIGKILL:
            kill_group(worker.pid)
        send_signal(worker.death, number)

    def _worker_died(self, key: int) -> None:
        """The zygote sees it too, kills the group and reports the status; it may have done so already."""
        worker = self._workers.get(key)
        if worker is None or not worker.watched:
            return
        worker.watched = False
        self._loop.unwatch(worker.death, close=False)
        if worker.zygote is not self._zygote:
            self._exited(key, _LOST)
            return
        unknown = Cause("unknown", "the zygote did not say how it ended")
        worker.late = self._loop.later(STATUS_WITHIN, partial(self._exited, key, unknown))

    def _exited(self, key: int, why: Cause) -> None:
        worker = self._workers.pop(key, None)
        if worker is None:  # was reported as unknown, or could not be watched
            return
        if worker.late:
            worker.late()
        self._loop.report(Exited(key, why))
        self._loop.unwatch(worker.death, close=True)


def _close(ends: Ends) -> None:
    for fd in (ends.reads, ends.writes, ends.page):
        _close_fd(fd)


def _close_fd(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)
