"""Ends of processes, seen and caused. A number is that of one process only until somebody reaps it."""

import contextlib
import os
import select
import signal


def readable(fd: int, seconds: float = 0.0) -> bool:
    """Within so many seconds; a pidfd is readable from the end of its process on."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(seconds, 0.0) * 1000))


def kill(pid: int, number: signal.Signals) -> None:
    """Only a child that nobody has reaped. One that became another user's is left to itself."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def kill_group(pid: int) -> None:
    """Only while its leader is known to live, or to be unreaped. It may have died before it had a group of its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def reap(pid: int) -> int:
    """Waits for a child's end, kills what is left of its group *before* the pid becomes free; returns the status."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    kill_group(pid)
    _, status = os.waitpid(pid, 0)
    return status
