"""The zygote: a small process without threads that forks workers on request, reaps them and reports how they ended.

What it is asked and says is in :mod:`.wire`. It lives as long as its host: the end of file on its socket makes it kill
every worker with its group, reap them and go. It is forked from for each worker, so what it imports every worker has
for nothing, and what it does not import it cannot break.

A *branch* is a child zygote: it imports the modules that its setting names, then serves LAUNCH on a control socket of
its own, or says why it is unsuitable and goes. The first zygote, the root, reaps it and reports its end like that of a
worker; when the root is lost its branches die with it, and their workers with them.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from _signal import signal as _set_disposition  # type: ignore[import-not-found]  # typeshed has no private modules
from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn

import msgpack

from . import exits
from .preloading import preload
from .reaping import kill, kill_group, readable, reap
from .wire import (
    BRANCH,
    EXITED,
    FDS,
    HELLO,
    LAUNCH,
    LAUNCH_FAILED,
    LAUNCHED,
    PACKET,
    UNSUITABLE,
    VERSION,
    passed,
    rights,
    room,
)

BRANCHES_GONE_WITHIN: Final = 0.5
"""Seconds that branches have, after the end of file, to kill and reap their workers; then they are killed."""

_PR_SET_PDEATHSIG: Final = 1
_CLOSE_RANGE: Final = 436  # on every architecture
_LAST_FD: Final = 2**31 - 1

_POOL: Final = 16 * 2**10
_POOL_HEADER: Final = 48
_IN_A_ROW: Final = 6
_HOLES: Final = 64 * 2**10
"""Bytes that are filled of one size at most. Found in a root zygote of Python 3.11: 27 KiB of one size, 270 KiB of
all."""

_fillings: Final[list[bytes]] = []

Run = Callable[[int, int, int], int]
"""Reads messages, writes messages, status page → exit code."""

# In each worker the enumerations of `signal.signal` would copy thirty pages, to look up `prctl` twenty: hence
# `_set_disposition` with bare numbers, and the look-ups here once.
_SIGINT, _SIG_DFL = int(signal.SIGINT), int(signal.SIG_DFL)
_prctl = ctypes.PyDLL(None).prctl
_prctl.argtypes = ctypes.c_int, ctypes.c_ulong
_syscall = ctypes.PyDLL(None).syscall
_syscall.argtypes = (ctypes.c_long,) * 4

_exit = os._exit  # also where a worker has put something else in its place


def main(control: int, nofile: int, worker: str) -> NoReturn:
    """Entry of the process. ``nofile`` is the soft RLIMIT_NOFILE of workers.

    ``worker`` names, as ``module:function``, what is called once in here and returns what every worker runs.
    """
    _leave_the_host(control)
    module, _, function = worker.partition(":")
    run: Run = getattr(importlib.import_module(module), function)()
    _freeze()
    with socket.socket(fileno=control) as host:
        Zygote(host, nofile, run).serve()
    os._exit(0)


def _freeze() -> None:
    gc.collect()
    _fill_the_holes()
    gc.freeze()  # a worker's own collections then leave these pages shared


def _fill_the_holes() -> None:
    """What a worker makes then lies on pages of its own, close together, not scattered over shared ones.

    CPython's allocator takes small objects of one size from pools of 16 KiB, whose first 48 bytes are a header. Where
    several stand in a row from its beginning, the pool is a fresh one: the others are full. Under another allocator
    nothing is gained.
    """
    empty = sys.getsizeof(b"")
    for size in range(48, 512 + 1, 16):
        row: list[bytes] = []
        for _ in range(_HOLES // size):
            block = bytes(size - empty)
            if id(block) % _POOL != _POOL_HEADER + len(row) * size:
                _fillings.extend(row)
                row.clear()
            if row or id(block) % _POOL == _POOL_HEADER:
                row.append(block)
            else:
                _fillings.append(block)
            if len(row) == _IN_A_ROW:
                break
        else:
            _fillings.extend(row)


def _leave_the_host(control: int) -> None:
    """What the host left to us through exec is not ours: fds, session, ignored signals, a low limit of fds."""
    _close_all_but((control,))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    for fd in (1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.dup2(null, fd)  # else the next fd would take the number, and a worker would print into it
    if null > 2:
        os.close(null)
    os.setsid()
    _reset_signals()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            # Whole lines, also with PYTHONUNBUFFERED, and none of a killed worker is lost.
            stream.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]  # a TextIOWrapper


def _reset_signals() -> None:
    """As in a fresh interpreter, except that SIGINT is ignored: Ctrl-C is the host's, also one that came before now.

    What the host ignores survives exec, and an ignored SIGCHLD eats the statuses.
    """
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        # Python makes OSErrors of the first two.
        ignored = number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT)
        with contextlib.suppress(OSError):  # the C library keeps two real-time signals
            signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _close_all_but(kept: Iterable[int]) -> None:
    """By the system's own call: where Python has it not, ``os.closerange`` tries each number there can be."""
    low = 3
    for fd in (*sorted(kept), _LAST_FD):
        if low < fd and _syscall(_CLOSE_RANGE, low, fd - 1, 0):
            _close_one_by_one(low, fd)
        low = fd + 1


def _close_one_by_one(low: int, high: int) -> None:
    """Linux before 5.9 has no ``close_range``, and some containers refuse it."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        if low <= fd < high:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(fd)


class Zygote:
    def __init__(self, host: socket.socket, nofile: int, run: Run) -> None:
        self._host = host
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # one pidfd a worker
        self._limits = nofile, hard  # of workers
        self._run = run
        self._pid = os.getpid()
        self._children: dict[int, tuple[int, int]] = {}  # pidfd → (key, pid): workers and branches
        self._branches: set[int] = set()  # pidfds
        self._epoll = select.epoll()
        self._epoll.register(host, select.EPOLLIN)

    def serve(self) -> None:
        """Until the host is gone; then nothing of its workers is left either."""
        try:
            self._send([HELLO, VERSION])
            while True:
                for fd, _ in self._epoll.poll():
                    if fd != self._host.fileno():
                        self._bury(fd)
                    elif not self._receive():
                        return
        except (BrokenPipeError, ConnectionResetError):
            return
        finally:
            self._kill_all()

    # ------------------------------------------------------------------ launching

    def _receive(self) -> bool:
        packet, ancillary, _, _ = self._host.recvmsg(PACKET, room(max(FDS.values())), socket.MSG_CMSG_CLOEXEC)
        if not packet:
            return False
        kind, key = msgpack.unpackb(packet)
        fds = passed(ancillary)
        try:
            if len(fds) == FDS[kind]:
                self._launch(kind, key, fds)
            else:
                self._send([LAUNCH_FAILED, key, "the zygote has no file descriptors left"])
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _launch(self, kind: int, key: int, fds: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError as error:  # EAGAIN: limit of processes; ENOMEM
            self._send([LAUNCH_FAILED, key, f"fork: {error.strerror}"])
            return
        if pid == 0:
            _live(self._become_worker if kind == LAUNCH else self._become_branch, fds)
        pidfd = -1
        try:
            pidfd = os.pidfd_open(pid)  # only this thread reaps: the pid is still the child's
            self._epoll.register(pidfd, select.EPOLLIN)
            self._send([LAUNCHED, key, pid], pidfd)
        except OSError as error:  # no fds or watches left, too many on their way; if the host is gone, so says `_send`
            kill(pid, signal.SIGKILL)
            reap(pid)
            if pidfd >= 0:
                os.close(pidfd)
            self._send([LAUNCH_FAILED, key, f"its pidfd: {error.strerror}"])
            return
        self._children[pidfd] = key, pid
        if kind == BRANCH:
            self._branches.add(pidfd)

    def _become_worker(self, fds: list[int]) -> int:
        self._leave_the_zygote(fds)
        _reseed()
        return self._run(*fds)

    def _become_branch(self, fds: list[int]) -> int:
        """It imports as a worker would: SIGINT kills it there, which is how the root ends one that still imports."""
        self._leave_the_zygote(fds)
        control, setting = fds
        with open(setting, "rb") as file:
            modules, environment = msgpack.unpackb(file.read(), unicode_errors="surrogatepass")
        with socket.socket(fileno=control) as host:
            if why := preload(modules, environment):
                host.send(_packed([UNSUITABLE, why[: PACKET // 8]]))
                return exits.ENDED
            _flush()  # half a line would come out of every worker
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.set_wakeup_fd(-1)
            _freeze()
            Zygote(host, self._limits[0], self._run).serve()
        return exits.ENDED

    def _leave_the_zygote(self, kept: list[int]) -> None:
        _arm_parent_death_signal(self._pid)
        os.setsid()
        _set_disposition(_SIGINT, _SIG_DFL)
        _close_all_but(kept)
        resource.setrlimit(resource.RLIMIT_NOFILE, self._limits)

    # ------------------------------------------------------------------ dying

    def _bury(self, pidfd: int) -> None:
        """A readable pidfd is a zombie. Until it is reaped its pid, which is its group's number, is nobody else's."""
        key, pid = self._children.pop(pidfd)
        self._branches.discard(pidfd)
        self._epoll.unregister(pidfd)
        os.close(pidfd)
        self._send([EXITED, key, reap(pid)])

    def _kill_all(self) -> None:
        """Branches read an end of file of their own; one that cannot, since it still imports, is ended by SIGINT."""
        if os.getpid() != self._pid:
            return  # a fork of it that came as far as here; these are its brothers
        for pidfd, (_, pid) in self._children.items():
            if pidfd in self._branches:
                kill(pid, signal.SIGINT)
            else:
                kill(pid, signal.SIGKILL)
                kill_group(pid)
        end = time.monotonic() + BRANCHES_GONE_WITHIN
        for pidfd, (_, pid) in self._children.items():
            if pidfd in self._branches and not readable(pidfd, end - time.monotonic()):
                kill(pid, signal.SIGKILL)
            reap(pid)
            os.close(pidfd)
        self._children.clear()
        self._epoll.close()

    def _send(self, packet: list[Any], *fds: int) -> None:
        self._host.sendmsg([_packed(packet)], rights(fds))


def _packed(packet: list[Any]) -> bytes:
    return msgpack.packb(packet, unicode_errors="backslashreplace")  # a reason may name a file whose name is no text


def _live(life: Callable[[list[int]], int], fds: list[int]) -> NoReturn:
    """The rest of a forked process; it ends with the code that ``life`` returns.

    Nothing leaves it: above it on the stack is the zygote's own work. A worker may have left anything behind, also no
    ``sys.stdout``, or a signal handler that raises just before the end: hence the second ``finally``.
    """
    code = exits.CRASHED
    try:
        code = life(fds)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            _flush()
            os._exit(code)
        finally:
            _exit(code)


def _flush() -> None:
    for name in ("stdout", "stderr"):
        with contextlib.suppress(BaseException):  # there may be none, or one of the user's
            getattr(sys, name).flush()


def _arm_parent_death_signal(parent: int) -> None:
    """Not inherited by fork, so at every fork. The zygote has one thread, whose end is the end of the process."""
    if _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL):
        raise OSError("prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the signal was armed
        os._exit(exits.HOST_GONE)


def _reseed() -> None:
    """Workers must not draw the same numbers. ``random`` reseeds itself after a fork; these two do not.

    NumPy itself loads ``numpy.random`` late; and what goes by these names may be somebody's stub, which raises.
    """
    for name in ("numpy.random", "torch"):
        try:
            seed = getattr(sys.modules.get(name), "seed", None)
            if callable(seed):
                seed()
        except Exception:
            pass
