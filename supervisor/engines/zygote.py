"""The host's side of a zygote: how it is made, what is said to it and heard from it, how it ends."""

import array
import contextlib
import fcntl
import os
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from ...worker import zygote as wire
from ..limits import with_enough_fds
from .base import Ends
from .deaths import signal_name

_ONE_FD: Final = socket.CMSG_SPACE(array.array("i").itemsize)


@dataclass(slots=True)
class Zygote:
    """``ready``: it has said hello. ``death`` is its pidfd. ``control_open``: it was not let go of yet."""

    control: socket.socket
    death: int
    ready: bool = False
    control_open: bool = True

    def ask(self, key: int, ends: Ends) -> None:
        """Raises ``BlockingIOError`` when it has enough to do, another ``OSError`` when it is gone or nothing goes."""
        fds = array.array("i", (ends.reads, ends.writes, ends.page))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        self.control.sendmsg([msgpack.packb([wire.LAUNCH, key])], rights, socket.MSG_NOSIGNAL)

    def hear(self) -> tuple[list[Any], int | None] | None:
        """The next thing that it said, and the fd that came with it; None at the end of file.

        Raises ``BlockingIOError`` when there is nothing.
        """
        with contextlib.suppress(OSError):  # an fd that finds no room is lost; at the hard limit so be it
            os.close(with_enough_fds(lambda: os.dup(self.death)))
        try:
            packet, ancillary, _, _ = self.control.recvmsg(wire.PACKET, _ONE_FD, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return self.hear()  # comes once, ahead of what the zygote said before it died
        return (msgpack.unpackb(packet), _passed(ancillary)) if packet else None

    def reap(self) -> str:
        """How it ended, in words. The host may have reaped it before us, or have told the kernel to."""
        try:
            ended = os.waitid(os.P_PIDFD, self.death, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return "status unknown"
        if ended is None:
            return "still there"
        return f"exit code {ended.si_status}" if ended.si_code == os.CLD_EXITED else signal_name(ended.si_status)


def spawn(nofile: int, worker: str) -> Zygote:
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
            zygote = Zygote(ours, os.pidfd_open(pid))
        except OSError:  # no fd left: without our end it finds the end of file and goes
            ours.close()
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            raise
        undo.pop_all()
        os.close(control)
        return zygote


def _passed(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            return array.array("i", data)[0]
    return None
