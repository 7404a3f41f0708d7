"""Ends of processes: seeing them, causing them, putting them into words. By pidfd; a number may be a stranger's."""

import contextlib
import os
import select
import signal

from caravela.errors import Cause


def cause(status: int) -> Cause:
    """What a wait status says."""
    code = os.waitstatus_to_exitcode(status)
    return Cause("signal", signal_name(-code)) if code < 0 else Cause("exit", f"exit code {code}")


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def readable(fd: int, seconds: float = 0.0) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def send_signal(pidfd: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(pidfd, number)


def kill_group(pid: int) -> None:
    """Only while its leader is known to live, or to have died just now."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
