"""After every test nothing of it may be left: no process, no zombie, no descriptor, no thread.

A process counts as the test's when it began during the test and

- is a child of this one, or
- carries this session's token in its environment, as do all that were exec'ed from here, whoever is the parent now, or
- is a fork of this one that lost its parent: same command line, environment and ``auxv`` (where the kernel put things
  at the exec: another session of the same words has another one), under a parent that has not all of them.

What is on its way out gets a second. Then the test fails, and the processes are killed: the next test starts clean.

What a fixture of a module, package or session leaves is older than its last test. So the same is looked at once more
around the whole session, when all of them have ended: the error then stands at the last test that ran.

Not recognised is an orphan that was exec'ed with an empty environment: nothing of it tells it from a stranger.
"""

import faulthandler
import gc
import os
import select
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import FrameType
from typing import TypeVar

import pytest

GRACE = 1.0  # seconds
VARIABLE = "CARAVELA_TEST_TOKEN"
TOKEN = uuid.uuid4().hex

# ``python -m pytest`` puts the root on the path, where workers would find the test modules and import them by name.
# What a test wants to be importable, it says.
ROOT = Path(__file__).parents[1]
sys.path[:] = [entry for entry in sys.path if entry not in ("", str(ROOT))]

# Added to what is there: under a test that runs pytest itself, our processes are also the outer test's.
os.environ[VARIABLE] = f"{os.environ.get(VARIABLE, '')}:{TOKEN}"

Left = TypeVar("Left", bound=Collection[object])

REPORTED: set[str] = set()
"""What a test was blamed for and is still there: not to be blamed on the session again."""


PROCESSES = (
    "chaos",
    "conformance",
    "supervisor/test_branches.py",
    "supervisor/test_launch.py",
    "supervisor/test_line.py",
    "supervisor/test_process_engine.py",
    "worker/test_zygote.py",
)
"""Where real workers run, except inline ones: those tests are run again and again, ``scripts/repeat -m process``."""


def pytest_collection_finish() -> None:
    gc.freeze()  # what is there by now stays: collections need not look at it, which takes 50 ms


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        place = item.path.relative_to(Path(__file__).parent).as_posix()
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if place.startswith(PROCESSES) and "inline" not in parameters.values():
            item.add_marker("process")


@pytest.fixture(autouse=True, scope="session")
def nothing_left_behind_by_wider_fixtures() -> Iterator[None]:
    # After -x this looks when pytest, which captures the standard three during tests, has put them back.
    with nothing_left("by fixtures wider than a test", first_fd=3, besides=REPORTED):
        yield
        faulthandler.cancel_dump_traceback_later()  # the watchdog: a thread, and another one for every test


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    with nothing_left("by the test"):
        yield


@contextmanager
def nothing_left(by_whom: str, first_fd: int = 0, besides: Collection[str] = ()) -> Iterator[None]:
    """Fails for all that begins inside and is still there at the end, ``besides`` what these lines reported."""
    me = os.getpid()
    pids, fds, threads = all_pids(), open_fds(), thread_ids()
    yield
    if os.getpid() != me:
        os.write(2, b"a forked child came out of the body of its test\n")
        os._exit(70)

    def changed_fds() -> dict[int, str]:
        now = open_fds()
        closed = {fd: f"{fds[fd]}, which was closed" for fd in fds.keys() - now.keys()}
        changed = dict(now.items() - fds.items()) | closed
        return {fd: target for fd, target in changed.items() if fd >= first_fd}

    processes = after_grace(lambda: new_processes(pids), wait_for_an_end)
    descriptors = after_grace(changed_fds, wait_a_moment)
    running = after_grace(lambda: thread_ids() - threads, wait_a_moment)
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    report = [
        *(f"process {process}" for process in processes),
        *(f"descriptor {fd}: {target}" for fd, target in sorted(descriptors.items())),
        *(f"thread {tid}: {names.get(tid, 'not one of threading')}" for tid in sorted(running)),
    ]
    kill(processes)
    new = [line for line in report if line not in besides]
    REPORTED.update(new)
    if new:
        pytest.fail("\n  ".join([f"left behind {by_whom}:", *new]), pytrace=False)


def after_grace(look: Callable[[], Left], wait: Callable[[Left], None]) -> Left:
    left = look()
    if left:
        gc.collect()  # what only a reference cycle keeps open is no leak
        end = time.monotonic() + GRACE
        while (left := look()) and time.monotonic() < end:
            wait(left)
    return left


def wait_a_moment(_: object) -> None:
    """Descriptors and the last steps of a thread cannot be waited for: let others run, then look again."""
    os.sched_yield()


# ------------------------------------------------------------------ descriptors and threads


def open_fds() -> dict[int, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that listed them
            found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def thread_ids() -> set[int]:
    """One listing may miss threads while others end: the kernel then stops short."""
    return {int(tid) for _ in range(3) for tid in os.listdir("/proc/self/task")}


# ------------------------------------------------------------------ processes


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    state: str
    command: bytes
    environment: bytes
    exec: bytes

    @classmethod
    def read(cls, pid: int) -> "Process | None":
        stat = content(pid, "stat").decode(errors="replace")
        if not stat:
            return None  # gone meanwhile
        # The name may hold spaces and brackets; what follows its last bracket does not.
        state, parent = stat.rpartition(")")[2].split()[:2]
        return cls(pid, int(parent), state, content(pid, "cmdline"), content(pid, "environ"), content(pid, "auxv"))

    def __str__(self) -> str:
        command = self.command.replace(b"\0", b" ").decode(errors="replace").strip()
        zombie = " (a zombie)" if self.state == "Z" else ""
        return f"{self.pid} of parent {self.parent}{zombie}: {command[:200] or 'no command line'}"

    def is_fork_of(self, other: "Process") -> bool:
        return (self.command, self.environment, self.exec) == (other.command, other.environment, other.exec)

    def is_ours(self) -> bool:
        if self.parent == US.pid or TOKEN.encode() in self.environment:
            return True
        if not self.is_fork_of(US):
            return False
        parent = Process.read(self.parent)
        return parent is None or not parent.is_fork_of(US)


def content(pid: int, name: str) -> bytes:
    """Empty for a process that is gone, for a zombie's memory, and for another user's."""
    try:
        return Path("/proc", str(pid), name).read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def all_pids() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}


def new_processes(before: set[int]) -> list[Process]:
    found = (Process.read(pid) for pid in sorted(all_pids() - before))
    return [process for process in found if process is not None and process.is_ours()]


def wait_for_an_end(processes: list[Process]) -> None:
    ends = []
    for process in processes:
        if process.state != "Z":  # a zombie has ended; that it is reaped cannot be waited for: look again
            with suppress(ProcessLookupError):
                ends.append(os.pidfd_open(process.pid))
    poll = select.poll()
    for end in ends:
        poll.register(end, select.POLLIN)
    poll.poll(GRACE * 1000 if ends else 0)
    for end in ends:
        os.close(end)


def kill(processes: list[Process]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(process.pid, 0)


US = Process.read(os.getpid()) or pytest.exit("these tests need Linux with a readable /proc")


# ------------------------------------------------------------------ Ctrl-C


@pytest.fixture
def interrupted() -> Callable[[int, Callable[[], object]], bool]:
    """``interrupted(moment, call)`` calls it and sends a Ctrl-C at the ``moment``-th place of our code where Python
    looks for signals: where a function begins, and behind one in C. Whether there is such a place.
    """
    return _interrupted


def _interrupted(moment: int, call: Callable[[], object]) -> bool:
    places = count(1)
    sent = False

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal sent
        ours = event in ("call", "c_return") and str(frame.f_globals["__name__"]).startswith(("caravela.", "threading"))
        if ours and next(places) == moment:
            sent = True
            signal.raise_signal(signal.SIGINT)

    sys.setprofile(profile)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    return sent
