"""Ends of processes: causing them by pidfd, since a number may be a stranger's, and putting them into words."""

import contextlib
import os
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


def send_signal(pidfd: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(pidfd, number)
