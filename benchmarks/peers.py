"""The bare ways to have another process, each measured to its first byte.

They run in a small process of their own without threads, ``python -m benchmarks.peers``: a fork of a host that has
supervisor threads and fds would be slower than it need be. :class:`Peers` asks it, one line a measurement:

    "start fork"  ▶ ◀ "0.00103"     seconds from nothing to the first byte
    "restart fork" ▶ ◀ "0.00181"    seconds from SIGKILL of one to the first byte of the next
"""

import gc
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

NAMES = {
    "fork": "bare os.fork",
    "zygote": "bare zygote",
    "mp_fork": "multiprocess fork",
    "mp_forkserver": "multiprocess forkserver",
    "mp_spawn": "multiprocess spawn",
}
PATIENCE = 30.0
"""Seconds that one measurement may take."""


class Peers:
    """The asking side. Leaving it waits until the helper and all that it started are gone."""

    def __enter__(self) -> "Peers":
        self._helper = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=Path(__file__).parents[1],
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._helper as helper:
            assert helper.stdin and helper.stdout
            helper.stdin.close()
            helper.stdout.read()  # each of its children holds the other end

    def start(self, way: str) -> Callable[[], float]:
        return lambda: self._ask(f"start {way}")

    def restart(self, way: str) -> Callable[[], float]:
        return lambda: self._ask(f"restart {way}")

    def _ask(self, what: str) -> float:
        helper = self._helper
        assert helper.stdin and helper.stdout
        helper.stdin.write(f"{what}\n".encode())
        line = helper.stdout.readline() if _readable(helper.stdout.fileno(), PATIENCE) else b""
        if not line:
            raise RuntimeError(f"the process that measures the peers gave no answer to {what!r}")
        return float(line)


# ------------------------------------------------------------------ the helper


class Child(Protocol):
    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        ...


def main() -> None:
    zygote = Zygote()  # before multiprocess is imported: it stays as small as it can be
    import multiprocess

    ways: dict[str, Callable[[], Child]] = {"fork": Forked, "zygote": zygote.start}
    for method in ("fork", "forkserver", "spawn"):
        ways[f"mp_{method}"] = Multiprocess.way(multiprocess.get_context(method))
    alive: dict[str, Child] = {}
    for line in sys.stdin:
        task, name = line.split()
        start = ways[name]
        if task == "restart" and name not in alive:
            alive[name] = start()
        before = time.perf_counter()
        if task == "restart":
            alive[name].kill()
        child = start()
        took = time.perf_counter() - before
        if task == "restart":
            alive[name] = child
        else:
            child.kill()
        print(took, flush=True)
    for child in alive.values():
        child.kill()


def _hold() -> None:
    """What a child does once it has sent its byte; nobody may kill it, so it ends by itself."""
    signal.alarm(int(PATIENCE))
    signal.pause()


class Forked:
    def __init__(self) -> None:
        reads, writes = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.write(writes, b"!")
            _hold()
        os.close(writes)
        _first_byte(reads)
        os.close(reads)

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


class Zygote:
    """The least that a zygote can be: it gets a pipe's end, forks, and the child writes its pid there."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            self._control.close()
            _be_zygote(theirs)
        theirs.close()

    def start(self) -> Child:
        reads, writes = os.pipe()
        socket.send_fds(self._control, [b"!"], [writes])
        os.close(writes)
        pid = int(_first_byte(reads))
        os.close(reads)
        return _Stranger(pid)


def _be_zygote(control: socket.socket) -> None:
    import msgpack  # noqa: F401  # ours has it

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    gc.collect()
    gc.freeze()
    while True:
        asked, fds, _, _ = socket.recv_fds(control, 1, 1)
        if not asked:
            os._exit(0)
        if os.fork() == 0:
            os.write(fds[0], b"%d" % os.getpid())
            _hold()
        os.close(fds[0])


class _Stranger:
    """Not our child: only a pidfd tells its end."""

    def __init__(self, pid: int) -> None:
        self._death = os.pidfd_open(pid)

    def kill(self) -> None:
        signal.pidfd_send_signal(self._death, signal.SIGKILL)
        _readable(self._death, PATIENCE)
        os.close(self._death)


class Multiprocess:
    def __init__(self, context: Any) -> None:
        reads, writes = context.Pipe(duplex=False)
        self._process = context.Process(target=_say, args=(writes,))
        self._process.start()
        writes.close()
        if not reads.poll(PATIENCE):
            raise TimeoutError("no first byte")
        reads.recv_bytes()
        reads.close()

    @classmethod
    def way(cls, context: Any) -> Callable[[], Child]:
        return lambda: cls(context)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()


def _say(writes: Any) -> None:
    writes.send_bytes(b"!")
    _hold()


def _first_byte(reads: int) -> bytes:
    if not _readable(reads, PATIENCE):
        raise TimeoutError("no first byte")
    return os.read(reads, 16)


def _readable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


if __name__ == "__main__":
    main()
