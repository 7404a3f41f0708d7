"""Workers as processes of this machine, forked from a zygote, or from a branch of it that has the flow's module."""

import contextlib
import os
import signal
import socket
import sys
import time
from collections import deque
from functools import partial
from typing import Final, assert_never

from ...worker import wire
from ...worker.reaping import kill_group, readable
from ..limits import fds_of_the_host, with_enough_fds
from .base import Ends, Exited, Launched, LaunchFailed, Loop, Report, Setting
from .branches import Branches, Steering
from .deaths import cause, send_signal
from .workers import LOST, Workers
from .zygote import Branch, Plan, Request, Zygote, close_fd, spawn

UNANSWERED: Final = 8
"""Requests before a zygote at once: a SEQPACKET socket holds ten packets, and fds in flight are counted too."""

ANSWERED_WITHIN: Final = 2.0
"""Seconds that a zygote has to answer a request whose worker is to be killed; then it is lost."""

CLOSED_WITHIN: Final = 1.0
"""Seconds that ``close`` gives a root that has not failed to answer, twice what that gives its branches."""

GONE_WITHIN: Final = 2.0
"""Seconds that ``close`` waits for what it has killed: it is gone at once, unless the system holds it."""

EXEC_FAILED: Final = "exit code 255"
"""How a zygote ends that never began: the helper that executes it says no more."""

ZYGOTES: Final = 3
"""So many in a row may die before they say hello."""


class ProcessEngine:
    """Starts one zygote, and a new one when that is lost. Needs Linux 5.4.

    ``nofile`` is the soft RLIMIT_NOFILE that workers get; by default what this process chose for itself.
    ``worker`` names, as ``module:function``, what the zygote calls once and returns what every worker runs.
    ``preload``: modules that every branch imports; None: no branches, each worker imports for itself.
    """

    def __init__(
        self,
        *,
        nofile: int | None = None,
        worker: str = "caravela.worker.rehearsal:prepared",
        preload: tuple[str, ...] | None = (),
    ) -> None:
        self._nofile = fds_of_the_host() if nofile is None else nofile
        self._worker = worker
        self._zygote: Zygote | None = None
        self._dying: list[Zygote] = []  # no longer answering, not yet reaped
        self._failures = 0
        self._queue: deque[Request] = deque()  # of the zygote that there is, or will be
        self._doomed: dict[int, signal.Signals] = {}  # asked, and already to be killed
        self._workers = Workers()
        self._branches = Branches(preload, self._queue, self._workers)

    def open(self, loop: Loop) -> None:
        self._loop = loop
        self._workers.open(loop, self._receive, self._report)
        self._start_zygote()
        self._branches.open(loop, Steering(self._receive, self._lose, self._ask_the_root))

    def launch(self, key: int, ends: Ends, setting: Setting) -> None:
        request = Request.launch(key, ends)
        match self._branches.place(key, setting):
            case None:
                self._queue.append(request)
                self._ask_the_root()
            case Plan() as plan:
                plan.queue.append(request)
            case Branch() as branch:
                branch.queue.append(request)
                self._ask(branch)
            case other:
                assert_never(other)

    def booted(self, key: int) -> None:
        """Was it the first of its setting, then a branch is to import for all that come later."""
        self._branches.booted(key)

    def terminate(self, key: int) -> None:
        self._signal(key, signal.SIGTERM)

    def kill(self, key: int) -> None:
        self._signal(key, signal.SIGKILL)

    def close(self) -> None:
        """Waits up to ``CLOSED_WITHIN`` seconds for the root, then kills it, and with it what it could not kill.

        One that has nothing to reap, or has already failed to answer, is killed at once.
        """
        for zygote in self._zygotes():
            if zygote.silent:
                self._kill(zygote)
            elif zygote.control_open:
                with contextlib.suppress(OSError):  # it reads the end of file although we close later
                    zygote.control.shutdown(socket.SHUT_RDWR)
        for root in filter(None, (self._zygote, *self._dying)):
            if not readable(root.death, CLOSED_WITHIN if self._has_to_reap(root) and not root.silent else 0.0):
                for zygote in (*self._branches, root):
                    self._kill(zygote)
        end = time.monotonic() + GONE_WITHIN
        for zygote in self._zygotes():
            if not isinstance(zygote, Branch):
                readable(zygote.death, end - time.monotonic())
                zygote.reap()
            self._let_go_of_control(zygote)
            if zygote.death >= 0:
                self._loop.unwatch(zygote.death, close=True)
        self._workers.close(end - time.monotonic())
        self._clear()

    def _has_to_reap(self, root: Zygote) -> bool:
        return root.ready and bool(root.asked or self._workers.any_of(root) or list(self._branches))

    def forget(self) -> None:
        """In a forked child: closes every fd of the engine here, touching neither the loop nor a process."""
        for zygote in self._zygotes():
            zygote.control.close()
            close_fd(zygote.death)
        self._workers.forget()
        self._clear()

    def _zygotes(self) -> list[Zygote]:
        """Whether they live or not; the root before its branches."""
        return [*filter(None, (self._zygote, *self._dying)), *self._branches]

    def _queues(self) -> list[deque[Request]]:
        return [self._queue, *self._branches.queues()]

    def _clear(self) -> None:
        asked = [request for zygote in self._zygotes() for request in zygote.asked.values()]
        for request in (*asked, *(request for queue in self._queues() for request in queue)):
            request.close()
        self._branches.clear()
        self._zygote = None
        for held in (self._dying, self._queue, self._doomed):
            held.clear()

    def _report(self, report: Report) -> None:
        if not isinstance(report, Launched):
            self._branches.gone(report.key)  # first: who hears of it may launch again
        self._loop.report(report)

    # ------------------------------------------------------------------ the zygote

    def _start_zygote(self) -> None:
        try:
            self._zygote = zygote = spawn(self._nofile, self._worker, self._queue)
        except Exception as error:  # it imports multiprocess, which imports dill: whichever of that name is found
            self._failed_to_start(f"the zygote cannot be started: {type(error).__name__}: {error}")
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
                    self._refused(zygote, zygote.asked.pop(key), why)
                case [wire.UNSUITABLE, why], None:
                    assert isinstance(zygote, Branch)
                    self._branches.condemn(zygote, why)
                case [wire.EXITED, key, status], None if key < 0:
                    self._branches.exited(key, cause(status))
                case [wire.EXITED, key, status], None:
                    self._workers.exited(key, cause(status))

    def _greet(self, zygote: Zygote, version: int) -> None:
        if version != wire.VERSION:
            self._fail_all("the installed package is not the one that this process runs; restart it")
            self._lose(zygote)
            return
        if isinstance(zygote, Branch):
            self._branches.greeted(zygote)
        else:
            self._failures = 0
        zygote.ready = True
        self._ask(zygote)

    def _zygote_died(self, zygote: Zygote) -> None:
        self._receive(zygote)  # what it still said
        if zygote.control_open:
            self._lose(zygote)
        why = zygote.reap()
        if why == EXEC_FAILED:
            why += f": {sys.executable} cannot be executed"
        if zygote in self._dying:
            self._dying.remove(zygote)
        self._loop.unwatch(zygote.death, close=True)
        if not zygote.ready:
            self._failed_to_start(f"the zygote ended before it was ready ({why}); its stderr says more")

    def _lose(self, zygote: Zygote) -> None:
        """Its workers die with it. A request that it did not answer may have become one: it counts as one."""
        self._let_go_of_control(zygote)
        self._kill(zygote)
        if not isinstance(zygote, Branch):
            for branch in self._branches:
                self._lose(branch)
                self._branches.drop(branch)
            self._zygote = None
            self._dying.append(zygote)
        elif zygote.ready:  # else only the root can say what became of it; until then nobody asks for another one
            self._branches.drop(zygote)
        self._workers.lost_by(zygote)
        lost = list(zygote.asked.values())
        zygote.asked.clear()
        for request in lost:
            self._lost_in_launch(request)
        if zygote.ready or isinstance(zygote, Branch):
            self._ask_the_root()

    def _kill(self, zygote: Zygote) -> None:
        if zygote.death >= 0:
            send_signal(zygote.death, signal.SIGKILL)
        self._workers.kill_of(zygote)

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
        self._branches.hand_over()
        waiting = list(self._queue)
        self._queue.clear()  # first: who hears of it may launch again
        for request in waiting:
            self._fail(request, why)

    # ------------------------------------------------------------------ launching

    def _ask_the_root(self) -> None:
        if self._zygote is not None:
            self._ask(self._zygote)
        elif self._queue:
            self._start_zygote()

    def _ask(self, zygote: Zygote) -> None:
        """Passes on what waits, as far as the zygote keeps up; each answer makes room for the next."""
        for request, why in zygote.pass_on(UNANSWERED):
            self._fail(request, why)

    def _launched(self, zygote: Zygote, key: int, pid: int, death: int | None) -> None:
        zygote.asked.pop(key).close()
        if key < 0:
            self._branches.made(key, death)
        elif death is None:  # no fd left here; without it nobody sees this worker's end
            kill_group(pid)  # not reaped before the zygote has seen it die
            self._doomed.pop(key, None)
            self._report(LaunchFailed(key, "no file descriptors left"))
        else:
            self._workers.add(key, pid, death, zygote)
            self._report(Launched(key, pid, death))
            if doom := self._doomed.pop(key, None):
                self._workers.signal(key, doom)
        self._ask(zygote)

    def _refused(self, zygote: Zygote, request: Request, why: str) -> None:
        self._fail(request, why)
        self._ask(zygote)

    def _fail(self, request: Request, why: str) -> None:
        request.close()
        if request.kind == wire.BRANCH:
            branch = self._branches.with_key(request.key)
            if branch is not None:
                self._lose(branch)
                self._branches.drop(branch)
            return
        self._doomed.pop(request.key, None)
        self._report(LaunchFailed(request.key, why))

    def _lost_in_launch(self, request: Request) -> None:
        """Not ``LaunchFailed``: nothing is wrong with this flow. Its worker is dead before it is launched."""
        request.close()
        if request.kind == wire.BRANCH:
            return
        self._doomed.pop(request.key, None)
        try:
            death = with_enough_fds(lambda: os.eventfd(1, os.EFD_CLOEXEC))
        except OSError as error:
            self._report(LaunchFailed(request.key, f"{LOST}; {error.strerror}"))
            return
        self._report(Launched(request.key, 0, death))
        self._report(Exited(request.key, LOST))
        self._loop.unwatch(death, close=True)

    # ------------------------------------------------------------------ dying

    def _signal(self, key: int, number: signal.Signals) -> None:
        for zygote in self._zygotes():
            if key in zygote.asked:
                if self._doomed.get(key) is not signal.SIGKILL:
                    self._doomed[key] = number
                    if number is signal.SIGKILL:
                        self._loop.later(ANSWERED_WITHIN, partial(self._overdue, zygote, key))
                return
        for queue in self._queues():
            for request in queue:
                if request.key == key:
                    queue.remove(request)
                    self._fail(request, "killed before it was launched")
                    return
        self._workers.signal(key, number)

    def _overdue(self, zygote: Zygote, key: int) -> None:
        """A zygote that lives and does not answer would hold up everybody who waits for the end of such a worker."""
        self._receive(zygote)  # perhaps it was we who were late
        if not zygote.control_open or key not in zygote.asked:
            return
        if isinstance(zygote, Branch):
            self._branches.condemn(zygote, "it does not answer")
        self._lose(zygote)
