"""What a bystander sees of processes: who carries a token, who is whose child, who has ended. Waits on pidfds."""

import os
import select
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path


def carriers(token: str) -> set[int]:
    """The live processes that were exec'ed, or are forks of such, with ``token`` in their environment."""
    return {pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if token.encode() in environment(pid)}


def environment(pid: int) -> bytes:
    """Empty for a process that is gone and for a zombie."""
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


def stat(pid: int) -> list[str]:
    """State, parent, group, session … as in proc(5), from the third field on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def parent(pid: int | None) -> int:
    """Of a worker: its zygote."""
    assert pid
    return int(stat(pid)[1])


def await_state(pid: int | None, state: str) -> None:
    """Only a parent can wait for this; everybody else looks again."""
    assert pid
    while stat(pid)[0] != state:
        os.sched_yield()


class Watch:
    """Some processes, held by pidfds: none of their numbers can become a stranger's meanwhile."""

    def __init__(self, pids: Iterable[int | None]) -> None:
        self._held = ExitStack()
        self._fds: dict[int, int] = {}
        for pid in pids:
            assert pid
            with suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                self._held.callback(os.close, fd)
                self._fds[fd] = pid

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def left(self, seconds: float) -> set[int]:
        """Those that still live after ``seconds``; returns as soon as there are none."""
        alive, deadline = dict(self._fds), time.monotonic() + seconds
        poll = select.poll()
        for fd in alive:
            poll.register(fd, select.POLLIN)
        while alive:
            wait = max(deadline - time.monotonic(), 0.0)
            ended = poll.poll(wait * 1000)
            for fd, _ in ended:
                poll.unregister(fd)
                del alive[fd]
            if not ended and wait == 0.0:
                break
        return set(alive.values())


def own_fds() -> dict[int, str]:
    found = {}
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(FileNotFoundError):  # the one that listed them
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found
