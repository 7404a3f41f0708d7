"""What a branch of the zygote does before it forks workers: it imports, then looks whether forks may share what came.

What does not survive a fork whole, or must not be shared by forks, makes a module unsuitable: threads, timers,
descriptors (a connection) and a changed limit of them, child processes, ways to take signals. Such a module each worker
imports for itself.
"""

import importlib
import os
import re
import resource
import select
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..protocol import payload
from . import boot
from .reaping import kill, readable

LINGERS: Final = 0.1
"""Seconds for which a thread that was joined may still be seen."""

TRIED_WITHIN: Final = 1.0
"""Seconds that a fork has to come to its end: what a module registers with ``os.register_at_fork`` may block in it."""

_SIGNALS: Final = re.compile(r"^Sig(?:Blk|Ign|Cgt):\s*(\w+)$", re.MULTILINE)
_OF_LIBC: Final = 0b11 << 31
"""Signals 32 and 33, which the C library begins to catch at the first thread."""


@dataclass(frozen=True, slots=True)
class _Traces:
    """What an import may leave behind that is more than memory."""

    fds: frozenset[tuple[str, str]]
    """Number and file."""
    signals: tuple[int, ...]
    limit: tuple[int, int]
    timers: tuple[bool, ...]
    """Whether each is armed; how much of it is left always differs."""

    @classmethod
    def now(cls) -> "_Traces":
        signals = _SIGNALS.findall(Path("/proc/self/status").read_text())
        timers = (signal.getitimer(which) for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF))
        return cls(
            frozenset(_open_fds()),
            tuple(int(mask, 16) & ~_OF_LIBC for mask in signals),
            resource.getrlimit(resource.RLIMIT_NOFILE),
            tuple(any(timer) for timer in timers),
        )


def preload(modules: Iterable[str], environment: bytes) -> str | None:
    """Takes the host's surroundings over and imports ``modules``; returns why they are unsuitable, if they are."""
    before = _Traces.now()
    try:
        boot.adopt(payload.decode(environment))
        boot.known = environment
        for module in modules:
            importlib.import_module(module)
    except BaseException as error:  # a user's module may even ask the interpreter to exit
        return f"its import raised {type(error).__name__}: {error}"
    after = _Traces.now()
    if after.fds != before.fds:
        return "it opens or closes file descriptors when it is imported"
    if after.signals != before.signals:
        return "it changes how signals are taken when it is imported"
    if after.limit != before.limit:
        return "it changes the limit of file descriptors when it is imported"
    if after.timers != before.timers:
        return "it sets a timer when it is imported"
    if _has_children():
        return "it starts a process when it is imported"
    return _what_threads_do()


def _open_fds() -> Iterator[tuple[str, str]]:
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that listed them
            yield fd, os.readlink(f"/proc/self/fd/{fd}")


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _what_threads_do() -> str | None:
    """A native pool that knows of forks, as OpenBLAS' does, ends itself before one and is made anew later."""
    starts = "it starts a thread when it is imported"
    if len(sys._current_frames()) > 1:
        return starts
    if _tasks() == 1:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python ≥ 3.12 warns of the very thing that is tried here
        if (pid := os.fork()) == 0:
            os._exit(0)
    if not _ended(pid):
        return "a fork that has it does not get going"
    end = time.monotonic() + LINGERS
    while _tasks() > 1 and time.monotonic() < end:
        select.poll().poll(1)
    return starts if _tasks() > 1 else None


def _ended(pid: int) -> bool:
    """Whether it did so by itself, in time; it is gone either way."""
    death = os.pidfd_open(pid)
    ended = readable(death, TRIED_WITHIN)
    os.close(death)
    if not ended:
        kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return ended


def _tasks() -> int:
    return len(os.listdir("/proc/self/task"))
