"""The host's side of a zygote: how it is made, what is said to it and heard from it, how it ends.

A *branch* is a zygote that the first one, the root, has forked, and that has imported the modules of its setting.
"""

import contextlib
import fcntl
import marshal
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from ...worker import wire
from ...worker import zygote as process
from ..limits import with_enough_fds
from .base import Ends, Setting
from .deaths import signal_name


@dataclass(frozen=True, slots=True)
class Request:
    """What a zygote is asked to fork, ``LAUNCH`` or ``BRANCH``. The fds are ours until it has answered."""

    kind: int
    key: int
    fds: tuple[int, ...]

    @classmethod
    def launch(cls, key: int, ends: Ends) -> "Request":
        return cls(wire.LAUNCH, key, (ends.reads, ends.writes, ends.page))

    def close(self) -> None:
        for fd in self.fds:
            close_fd(fd)


@dataclass(slots=True, eq=False)
class Zygote:
    """``ready``: it has said hello. ``death`` is its pidfd. ``control_open``: it was not let go of yet.

    ``queue`` waits to be sent; what ``asked`` holds was sent and is not answered. ``silent``: it owes a status.
    """

    control: socket.socket
    death: int
    queue: deque[Request] = field(default_factory=deque)
    asked: dict[int, Request] = field(default_factory=dict)
    ready: bool = False
    control_open: bool = True
    silent: bool = False

    def pass_on(self, most: int) -> list[tuple[Request, str]]:
        """Sends what waits, until ``most`` are unanswered; returns what cannot be sent, and why."""
        refused = []
        while self.control_open and self.ready and self.queue and len(self.asked) < most:
            request = self.queue[0]
            try:
                self._ask(request)
            except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                break  # full: an answer is under way; broken: the end of file is
            except OSError as error:
                refused.append((request, f"the request to the zygote: {error.strerror}"))
            else:
                self.asked[request.key] = request
            self.queue.popleft()
        return refused

    def hear(self) -> tuple[list[Any], int | None] | None:
        """The next thing that it said, and the fd that came with it; None at the end of file.

        Raises ``BlockingIOError`` when there is nothing.
        """
        with contextlib.suppress(OSError):  # an fd that finds no room is lost; at the hard limit so be it
            os.close(with_enough_fds(lambda: os.dup(self.control.fileno())))
        try:
            packet, ancillary, _, _ = self.control.recvmsg(wire.PACKET, wire.room(1), socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return self.hear()  # comes once, ahead of what the zygote said before it died
        if not packet:
            return None
        self.silent = False
        return msgpack.unpackb(packet), next(iter(wire.passed(ancillary)), None)

    def _ask(self, request: Request) -> None:
        said = msgpack.packb([request.kind, request.key])
        self.control.sendmsg([said], wire.rights(request.fds), socket.MSG_NOSIGNAL)

    def reap(self) -> str:
        """How it ended, in words. The host may have reaped it before us, or have told the kernel to."""
        try:
            ended = os.waitid(os.P_PIDFD, self.death, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return "status unknown"
        if ended is None:
            return "still there"
        return f"exit code {ended.si_status}" if ended.si_code == os.CLD_EXITED else signal_name(ended.si_status)


@dataclass(slots=True, eq=False)
class Plan:
    """What waits for a branch for ``setting``, before it is asked for and then until it is ready.

    ``first``: the worker that shows whether the modules can be imported; it comes from the root. ``awaited``: launches
    still wait; ``stop_waiting`` cancels the timer after which they do not.
    """

    setting: Setting
    first: int
    queue: deque[Request] = field(default_factory=deque)
    awaited: bool = True
    stop_waiting: Callable[[], None] = lambda: None


@dataclass(slots=True, eq=False, kw_only=True)
class Branch(Zygote):
    """``death`` is -1 until the root has told it; ``key`` is its own there, below zero. ``plan``: what it is for."""

    plan: Plan
    key: int
    unsuitable: bool = False

    @property
    def setting(self) -> Setting:
        return self.plan.setting

    @property
    def serves(self) -> bool:
        """What its import held, a port perhaps, is free when it is gone: until the root says so, launches wait."""
        return self.control_open if self.ready else self.plan.awaited


def branch(key: int, plan: Plan) -> tuple[Branch, Request]:
    """And what the root is to be asked. Raises ``OSError`` where no fds are left."""
    with contextlib.ExitStack() as undo:
        ours, theirs = with_enough_fds(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        undo.enter_context(ours)
        with theirs:
            setting = [plan.setting.modules, plan.setting.environment]
            said = _written_down("setting", msgpack.packb(setting, unicode_errors="surrogatepass"))
            ours.setblocking(False)
            undo.pop_all()
            asks = Request(wire.BRANCH, key, (theirs.detach(), said))
            return Branch(ours, -1, plan.queue, plan=plan, key=key), asks


def _written_down(what: str, data: bytes) -> int:
    """A file in memory with its position at the beginning."""
    fd = with_enough_fds(lambda: os.memfd_create(what, os.MFD_CLOEXEC))
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


_ZYGOTE: Final = """\
import sys, marshal
with open({said}, "rb") as file:
    sys.path[:], sys.argv[:] = marshal.load(file)
from {module} import main
main({control}, {nofile}, {worker!r})
"""
"""What its Python executes. Path and arguments are read, since a command line has a limit and an encoding."""


def spawn(nofile: int, worker: str, queue: deque[Request]) -> Zygote:
    """One fork_exec, 1–2 ms; the new process says hello when it is ready.

    Through multiprocess's exec helper, without its preparation of ``__main__``, which fails for unguarded scripts.
    """
    if not sys.executable:
        raise OSError("sys.executable does not say where Python is")
    # Brings dill, 40 ms; a worker that imports a module with a Supervisor in it never comes here.
    from multiprocess import util

    with contextlib.ExitStack() as undo, contextlib.ExitStack() as for_it:
        ours, theirs = with_enough_fds(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        undo.enter_context(ours)
        with theirs:
            ours.setblocking(False)
            control = _inheritable(theirs.fileno(), for_it)
        path = [str(entry) for entry in sys.path if isinstance(entry, str)]
        written = _written_down("path and argv", marshal.dumps([path, list(map(str, sys.argv))]))
        try:
            said = _inheritable(written, for_it)
        finally:
            os.close(written)
        code = _ZYGOTE.format(said=said, module=process.__name__, control=control, nofile=nofile, worker=worker)
        command = [sys.executable, *util._args_from_interpreter_flags(), "-c", code]
        # It begins in the host's group: a Ctrl-C must find it deaf before it can say so itself.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        try:
            executable = os.fsencode(sys.executable)
            pid = with_enough_fds(lambda: util.spawnv_passfds(executable, command, [control, said]))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            zygote = Zygote(ours, with_enough_fds(lambda: os.pidfd_open(pid)), queue)
        except OSError:  # no fd left: without our end it finds the end of file and goes
            ours.close()
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            raise
        undo.pop_all()
        return zygote


def _inheritable(fd: int, until: contextlib.ExitStack) -> int:
    """A duplicate that can keep its number: a host without stdin may have given ``fd`` the number 0."""
    made = with_enough_fds(lambda: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
    until.callback(os.close, made)
    return made


def close_fd(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)
