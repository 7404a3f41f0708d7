"""Workers as processes of this machine, forked from a zygote, or from a branch of it that has the flow's module."""

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
from ..boot import environment
from ..limits import fds_of_the_host
from .base import Ends, Exited, Launched, LaunchFailed, Loop, Setting
from .branches import Branches
from .deaths import cause, kill_group, readable, send_signal
from .zygote import Branch, Request, Zygote, close_fd, spawn

UNANSWERED: Final = 8
"""Requests before a zygote at once: a SEQPACKET socket holds ten packets, and fds in flight are counted too."""

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
        self._branches = Branches(preload, self._queue)
        self._doomed: dict[int, signal.Signals] = {}  # asked, and already to be killed
        self._workers: dict[int, _Worker] = {}

    def open(self, loop: Loop) -> None:
        self._loop = loop
        self._branches.open(loop, self._receive, self._await_no_longer)
        self._start_zygote()
        if preloaded := self._branches.setting(Setting((), environment())):
            self._branch_out(preloaded)

    def launch(self, key: int, ends: Ends, setting: Setting) -> None:
        """The first of its modules goes to the zygote at once, with a request for a branch to follow."""
        request = Request.launch(key, ends)
        preloaded = self._branches.setting(setting)
        branch = self._branches.use(preloaded) if preloaded else None
        if branch is not None and branch.serves:
            branch.queue.append(request)
            self._ask(branch)
            return
        self._queue.append(request)
        if preloaded and branch is None:
            self._branch_out(preloaded)
        self._ask_the_root()

    def terminate(self, key: int) -> None:
        self._signal(key, signal.SIGTERM)

    def kill(self, key: int) -> None:
        self._signal(key, signal.SIGKILL)

    def close(self) -> None:
        """Waits up to ``GONE_WITHIN`` seconds for the zygote, then kills it, and with it what it could not kill."""
        for zygote in self._zygotes():
            if zygote.control_open:
                with contextlib.suppress(OSError):  # it reads the end of file although we close later
                    zygote.control.shutdown(socket.SHUT_RDWR)
        for zygote in filter(None, (self._zygote, *self._dying)):
            if not readable(zygote.death, GONE_WITHIN):
                for other in (*self._branches, zygote):
                    if other.death >= 0:
                        send_signal(other.death, signal.SIGKILL)
                for worker in self._workers.values():
                    kill_group(worker.pid)
                readable(zygote.death, GONE_WITHIN)
            zygote.reap()
        for zygote in self._zygotes():
            self._let_go_of_control(zygote)
            if zygote.death >= 0:
                self._loop.unwatch(zygote.death, close=True)
        for worker in self._workers.values():
            if worker.late:
                worker.late()
            readable(worker.death, GONE_WITHIN)
            self._loop.unwatch(worker.death, close=True)
        self._clear()

    def forget(self) -> None:
        """In a forked child: closes every fd of the engine here, touching neither the loop nor a process."""
        for zygote in self._zygotes():
            zygote.control.close()
            close_fd(zygote.death)
        for worker in self._workers.values():
            close_fd(worker.death)
        self._clear()

    def _zygotes(self) -> list[Zygote]:
        """Whether they live or not; the root before its branches."""
        return [*filter(None, (self._zygote, *self._dying)), *self._branches]

    def _clear(self) -> None:
        asked = [request for zygote in self._zygotes() for request in zygote.asked.values()]
        for request in (*asked, *self._queue, *(it for branch in self._branches for it in branch.queue)):
            request.close()
        self._branches.clear()
        self._zygote = None
        for held in (self._dying, self._queue, self._doomed, self._workers):
            held.clear()

    # ------------------------------------------------------------------ the zygote

    def _start_zygote(self) -> None:
        try:
            self._zygote = zygote = spawn(self._nofile, self._worker, self._queue)
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
                    self._refused(zygote, zygote.asked.pop(key), why)
                case [wire.UNSUITABLE, why], None:
                    assert isinstance(zygote, Branch)
                    zygote.unsuitable = True
                    self._branches.condemn(zygote, why)
                case [wire.EXITED, key, status], None if key < 0:
                    self._branch_exited(key, cause(status))
                case [wire.EXITED, key, status], None:
                    self._exited(key, cause(status))

    def _greet(self, zygote: Zygote, version: int) -> None:
        if version != wire.VERSION:
            self._fail_all("the installed package is not the one that this process runs; restart it")
            self._lose(zygote)
            return
        if isinstance(zygote, Branch):
            zygote.stop_waiting()
        else:
            self._failures = 0
        zygote.ready = True
        self._ask(zygote)

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
        self._let_go_of_control(zygote)
        if zygote.death >= 0:
            send_signal(zygote.death, signal.SIGKILL)
        for worker in self._workers.values():
            if worker.zygote is zygote:
                kill_group(worker.pid)  # at once, while no other process can have got this number
        if isinstance(zygote, Branch):
            zygote.stop_waiting()
            self._hand_over(zygote)
            if zygote.ready:  # else only the root can say what became of it; until then nobody asks for another one
                self._branches.drop(zygote)
        else:
            for branch in self._branches:
                self._lose(branch)
                self._branches.drop(branch)
            self._zygote = None
            self._dying.append(zygote)
        for key, worker in list(self._workers.items()):
            if worker.zygote is zygote and not worker.watched:
                self._exited(key, _LOST)
        lost = list(zygote.asked.values())
        zygote.asked.clear()
        for request in lost:
            self._lost_in_launch(request)
        if zygote.ready or isinstance(zygote, Branch):
            self._ask_the_root()

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
        for branch in self._branches:
            self._hand_over(branch)
        waiting = list(self._queue)
        self._queue.clear()  # first: who hears of it may launch again
        for request in waiting:
            self._fail(request, why)

    # ------------------------------------------------------------------ branches

    def _branch_out(self, setting: Setting) -> None:
        """A branch for it, if there is room."""
        superfluous = self._branches.superfluous(setting, self._idle)
        if superfluous is None:
            return
        for other in superfluous:
            self._lose(other)
            self._branches.drop(other)
        self._branches.make(setting)
        self._ask_the_root()

    def _idle(self, branch: Branch) -> bool:
        return not (branch.queue or branch.asked or any(it.zygote is branch for it in self._workers.values()))

    def _await_no_longer(self, branch: Branch) -> None:
        branch.awaited = False
        if not branch.ready:
            self._hand_over(branch)
            self._ask_the_root()

    def _hand_over(self, branch: Branch) -> None:
        """What waits for it is the root's."""
        self._queue.extend(branch.queue)
        branch.queue.clear()

    def _branch_exited(self, key: int, why: Cause) -> None:
        branch = self._branches.with_key(key)
        if branch is None:
            return
        self._receive(branch)  # what it still said
        if branch.control_open:
            self._lose(branch)
        if not branch.ready:
            if not branch.unsuitable:
                self._branches.condemn(branch, f"their import ended the process: {why}")
            self._branches.drop(branch)

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
            self._loop.report(LaunchFailed(key, "no file descriptors left"))
        else:
            self._workers[key] = _Worker(pid, death, zygote)
            self._loop.watch(death, partial(self._worker_died, key))
            self._loop.report(Launched(key, pid, death))
            if doom := self._doomed.pop(key, None):
                self._signal(key, doom)
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
        self._loop.report(LaunchFailed(request.key, why))

    def _lost_in_launch(self, request: Request) -> None:
        """Not ``LaunchFailed``: nothing is wrong with this flow. Its worker is dead before it is launched."""
        request.close()
        if request.kind == wire.BRANCH:
            return
        self._doomed.pop(request.key, None)
        death = os.eventfd(1, os.EFD_CLOEXEC)
        self._loop.report(Launched(request.key, 0, death))
        self._loop.report(Exited(request.key, _LOST))
        self._loop.unwatch(death, close=True)

    # ------------------------------------------------------------------ dying

    def _signal(self, key: int, number: signal.Signals) -> None:
        if any(key in zygote.asked for zygote in self._zygotes()):
            if self._doomed.get(key) is not signal.SIGKILL:
                self._doomed[key] = number
            return
        for queue in (self._queue, *(branch.queue for branch in self._branches)):
            for request in queue:
                if request.key == key:
                    queue.remove(request)
                    self._fail(request, "killed before it was launched")
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
        if not worker.zygote.control_open:
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
