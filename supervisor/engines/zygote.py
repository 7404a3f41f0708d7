"""The host's side of a zygote: how it is made, what is said to it and heard from it, how it ends.

A *branch* is a zygote that the first one, the root, has forked, and that has imported the modules of its setting.
"""

import array
import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from ...worker import zygote as wire
from ..limits import with_enough_fds
from .base import Ends, Setting
from .deaths import signal_name

_ONE_FD: Final = socket.CMSG_SPACE(array.array("i").itemsize)


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

    ``queue`` waits to be sent; what ``asked`` holds was sent and is not answered.
    """

    control: socket.socket
    death: int
    queue: deque[Request] = field(default_factory=deque)
    asked: dict[int, Request] = field(default_factory=dict)
    ready: bool = False
    control_open: bool = True

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
            packet, ancillary, _, _ = self.control.recvmsg(wire.PACKET, _ONE_FD, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return self.hear()  # comes once, ahead of what the zygote said before it died
        return (msgpack.unpackb(packet), _passed(ancillary)) if packet else None

    def _ask(self, request: Request) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", request.fds))]
        self.control.sendmsg([msgpack.packb([request.kind, request.key])], rights, socket.MSG_NOSIGNAL)

    def reap(self) -> str:
        """How it ended, in words. The host may have reaped it before us, or have told the kernel to."""
        try:
            ended = os.waitid(os.P_PIDFD, self.death, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return "status unknown"
        if ended is None:
            return "still there"
        return f"exit code {ended.si_status}" if ended.si_code == os.CLD_EXITED else signal_name(ended.si_status)


@dataclass(slots=True, eq=False, kw_only=True)
class Branch(Zygote):
    """``setting``: what it imports. ``death`` is -1 until the root has told it; ``key`` its own there, below zero.

    ``stop_waiting`` cancels the timer after which launches do not wait for it any more.
    """

    setting: Setting
    key: int
    awaited: bool = True
    unsuitable: bool = False
    stop_waiting: Callable[[], None] = lambda: None

    @property
    def serves(self) -> bool:
        return self.control_open and (self.ready or self.awaited)


def branch(key: int, setting: Setting) -> tuple[Branch, Request]:
    """And what the root is to be asked. Raises ``OSError`` where no fds are left."""
    with contextlib.ExitStack() as undo:
        ours, theirs = with_enough_fds(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        undo.enter_context(ours)
        with theirs:
            said = os.memfd_create("setting", os.MFD_CLOEXEC)
            undo.callback(os.close, said)
            with open(said, "wb", closefd=False) as file:
                file.write(msgpack.packb([setting.modules, setting.environment]))
            os.lseek(said, 0, os.SEEK_SET)
            ours.setblocking(False)
            undo.pop_all()
            return Branch(ours, -1, setting=setting, key=key), Request(wire.BRANCH, key, (theirs.detach(), said))


def spawn(nofile: int, worker: str, queue: deque[Request]) -> Zygote:
    """One fork_exec, 1–2 ms; the new process says hello when it is ready.

    Through multiprocess's exec helper, without its preparation of ``__main__``, which fails for unguarded scripts.
    """
    if not sys.executable:
        raise OSError("sys.executable does not say where Python is")
    # Brings dill, 40 ms; a worker that imports a module with a Supervisor in it never comes here.
    from multiprocess import util

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, contextlib.ExitStack() as undo:
        undo.enter_context(ours)
        ours.setblocking(False)
        control = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 3)  # a host without stdin may have given it the number 0
        undo.callback(os.close, control)
        code = (
            f"import sys; sys.path[:] = {[entry for entry in sys.path if isinstance(entry, str)]!r}; "
            f"sys.argv[:] = {list(map(str, sys.argv))!r}; "
            f"from {wire.__name__} import main; main({control}, {nofile}, {worker!r})"
        )
        flags = util._args_from_interpreter_flags()
        # It begins in the host's group: a Ctrl-C must find it deaf before it can say so itself.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        try:
            pid = util.spawnv_passfds(os.fsencode(sys.executable), [sys.executable, *flags, "-c", code], [control])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            zygote = Zygote(ours, os.pidfd_open(pid), queue)
        except OSError:  # no fd left: without our end it finds the end of file and goes
            ours.close()
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            raise
        undo.pop_all()
        os.close(control)
        return zygote


def close_fd(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)


def _passed(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            return array.array("i", data)[0]
    return None
