"""The process engine on a loop that a test turns by hand, with workers that do as they are told."""

import errno
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest

from caravela.errors import Cause
from caravela.supervisor import limits
from caravela.supervisor.boot import environment
from caravela.supervisor.engines import branches, process
from caravela.supervisor.engines.base import Ends, Exited, Launched, LaunchFailed, Report, Setting
from caravela.supervisor.engines.process import UNANSWERED, ZYGOTES, ProcessEngine
from caravela.worker import wire

Kind = TypeVar("Kind", Launched, LaunchFailed, Exited)
LOST = Cause("zygote_lost", "its zygote was lost")


class HandLoop:
    """What the engine sees of the supervisor's loop; ``until`` turns it."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self._poll = select.poll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._between: list[Callable[[], None]] = []
        self._timers: dict[int, tuple[float, Callable[[], None]]] = {}
        self._numbers = count()

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        def add() -> None:
            self._watched[fd] = ready
            self._poll.register(fd, select.POLLIN)

        self._between.append(add)

    def unwatch(self, fd: int, *, close: bool) -> None:
        def remove() -> None:
            if self._watched.pop(fd, None):
                self._poll.unregister(fd)
            if close:
                os.close(fd)

        self._between.append(remove)

    def later(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        no = next(self._numbers)
        self._timers[no] = time.monotonic() + seconds, call
        return lambda: void(self._timers.pop(no, None))

    def report(self, report: Report) -> None:
        self.reports.append(report)

    def turn(self) -> None:
        self.settle()
        due = min((at for at, _ in self._timers.values()), default=None)
        for fd, _ in self._poll.poll(None if due is None else max(0.0, due - time.monotonic()) * 1000):
            self._watched[fd]()
        for no, (at, call) in list(self._timers.items()):
            if at <= time.monotonic():
                del self._timers[no]
                call()
        self.settle()

    def settle(self) -> None:
        between, self._between = self._between, []
        for call in between:
            call()

    def until(self, kind: type[Kind], key: int) -> Kind:
        while True:
            for report in self.reports:
                if isinstance(report, kind) and report.key == key:
                    return report
            self.turn()


def void(_: object) -> None:
    pass


class Host:
    def __init__(self, worker: str = "fake_workers:obedient") -> None:
        self.loop = HandLoop()
        self.engine = ProcessEngine(worker=worker)
        self.engine.open(self.loop)
        self.orders: dict[int, int] = {}
        self.answers: dict[int, int] = {}
        self.fds: list[int] = []

    def ask(self, key: int, *modules: str) -> None:
        (reads, self.orders[key]), (self.answers[key], writes) = os.pipe(), os.pipe()
        self.fds += [self.orders[key], self.answers[key]]
        self.engine.launch(key, Ends(reads, writes, os.memfd_create("page")), Setting(modules, environment()))

    def launch(self, key: int, *modules: str) -> Launched:
        self.ask(key, *modules)
        return self.loop.until(Launched, key)

    def order(self, key: int, text: str) -> None:
        os.write(self.orders[key], text.encode() + b"\n")

    def answer(self, key: int) -> Any:
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(self.answers[key], 1)
        return json.loads(line)

    def boot(self, key: int, *modules: str) -> None:
        """Launches it; it is as a worker whose flow is loaded."""
        self.launch(key, *modules)
        self.engine.booted(key)

    def cause(self, key: int) -> Cause:
        return self.loop.until(Exited, key).cause

    def zygote(self) -> int:
        """Its pid."""
        assert self.engine._zygote is not None
        with open(f"/proc/self/fdinfo/{self.engine._zygote.death}") as info:
            return next(int(line.split()[1]) for line in info if line.startswith("Pid:"))

    def close(self) -> None:
        self.engine.close()
        self.loop.settle()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "worker"))
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


def gone(pidfd: int) -> bool:
    """Waits for it; pytest's timeout is the bound."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll())


def test_a_worker_runs_with_its_ends_and_the_host_keeps_none_of_them(host: Host) -> None:
    launched = host.launch(1)
    assert host.answer(1)["pid"] == launched.pid
    host.order(1, "return 0")
    assert host.cause(1) == Cause("exit", "exit code 0")
    assert os.read(host.answers[1], 1) == b""  # no write end is left, here or in the zygote


def test_opening_does_not_wait_for_the_zygote(host: Host) -> None:
    host.ask(1)
    assert host.loop.reports == []
    assert host.loop.until(Launched, 1).pid > 0


@pytest.mark.parametrize(
    ("order", "cause"),
    [
        ("return 71", Cause("exit", "exit code 71")),
        ("exit 7", Cause("exit", "exit code 7")),
        ("die SIGSEGV", Cause("signal", "SIGSEGV")),
        ("die SIGABRT", Cause("signal", "SIGABRT")),
        ("die SIGRTMIN", Cause("signal", "SIGRTMIN")),
    ],
)
def test_the_cause_names_the_signal_or_the_exit_code(host: Host, order: str, cause: Cause) -> None:
    host.launch(1)
    host.order(1, order)
    assert host.cause(1) == cause


def test_death_is_readable_once_the_worker_is_gone(host: Host) -> None:
    death = host.launch(1).death
    host.order(1, "exit 0")
    assert gone(death)


def test_terminate_and_kill(host: Host) -> None:
    host.launch(1)
    host.launch(2)
    host.engine.terminate(1)
    host.engine.kill(2)
    assert host.cause(1) == Cause("signal", "SIGTERM")
    assert host.cause(2) == Cause("signal", "SIGKILL")
    host.engine.terminate(1)
    host.engine.kill(2)
    host.engine.kill(3)


def test_a_kill_takes_the_group_and_a_death_does_so_too(host: Host) -> None:
    for key, end in enumerate((lambda: host.engine.kill(0), lambda: host.order(1, "die SIGSEGV"))):
        host.launch(key)
        host.answer(key)
        host.order(key, "grandchild")
        host.fds.append(grandchild := os.pidfd_open(host.answer(key)["pid"]))
        end()
        host.cause(key)
        assert gone(grandchild)


def test_a_worker_killed_before_it_was_launched(host: Host) -> None:
    host.ask(1)
    host.engine.kill(1)
    assert "killed before" in host.loop.until(LaunchFailed, 1).why
    host.launch(2)  # the zygote is ready: the next request is under way at once
    host.ask(3)
    host.engine.terminate(3)
    host.engine.kill(3)
    assert host.cause(3) == Cause("signal", "SIGKILL")


def test_more_launches_at_once_than_the_socket_holds(host: Host) -> None:
    keys = range(4 * UNANSWERED)
    for key in keys:
        host.ask(key)
    assert len({host.loop.until(Launched, key).pid for key in keys}) == len(keys)
    for key in keys:
        host.engine.kill(key)
    assert {host.cause(key) for key in keys} == {Cause("signal", "SIGKILL")}


def test_every_worker_is_reported_when_the_zygote_is_lost_and_a_new_one_serves(host: Host) -> None:
    deaths = [host.launch(key).death for key in range(3)]
    os.kill(host.zygote(), signal.SIGKILL)
    assert all(gone(death) for death in deaths)
    assert {host.cause(key) for key in range(3)} == {LOST}
    host.launch(3)
    host.order(3, "exit 7")
    assert host.cause(3) == Cause("exit", "exit code 7")
    assert len([report for report in host.loop.reports if isinstance(report, Exited)]) == 4


def test_a_lost_zygote_takes_the_groups_of_its_workers(host: Host) -> None:
    host.launch(1)
    host.answer(1)
    host.order(1, "grandchild")
    host.fds.append(grandchild := os.pidfd_open(host.answer(1)["pid"]))
    os.kill(host.zygote(), signal.SIGKILL)
    assert host.cause(1) == LOST
    assert gone(grandchild)


def test_launches_wait_for_the_next_zygote_when_one_is_lost_before_it_is_ready(host: Host) -> None:
    host.ask(1)
    os.kill(host.zygote(), signal.SIGKILL)
    host.ask(2)
    assert host.loop.until(Launched, 1).pid and host.loop.until(Launched, 2).pid


def test_a_request_that_a_lost_zygote_did_not_answer_is_a_worker_lost(host: Host) -> None:
    host.launch(1)
    zygote = host.zygote()
    os.kill(zygote, signal.SIGSTOP)
    for key in range(2, 3 + UNANSWERED):
        host.ask(key)
    os.kill(zygote, signal.SIGKILL)
    for key in range(2, 2 + UNANSWERED):
        assert host.cause(key) == LOST
        assert [type(report) for report in host.loop.reports if report.key == key] == [Launched, Exited]
    assert host.loop.until(Launched, 2 + UNANSWERED).pid  # never sent: the new zygote has it


def test_zygotes_that_never_get_ready_fail_the_launch() -> None:
    host = Host("no_such_module:run")
    host.ask(1)
    host.ask(2)
    assert "exit code 1" in host.loop.until(LaunchFailed, 1).why
    host.loop.until(LaunchFailed, 2)
    assert len(host.loop.reports) == 2
    assert ZYGOTES == 3
    host.close()


def test_a_python_that_cannot_be_executed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path))
    host = Host()
    host.ask(1)
    assert f"exit code 255: {tmp_path} cannot be executed" in host.loop.until(LaunchFailed, 1).why
    host.close()


def test_whatever_keeps_a_zygote_from_being_made_fails_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file of the user's does that has the name of one of ours."""
    monkeypatch.setitem(sys.modules, "multiprocess", None)
    host = Host()
    host.ask(1)
    assert "cannot be started: ModuleNotFoundError: import of multiprocess" in host.loop.until(LaunchFailed, 1).why
    monkeypatch.undo()
    host.close()


def test_arguments_may_be_longer_than_a_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["script", "x" * 2**18, "caf\udce9"])
    monkeypatch.setattr(sys, "path", [*sys.path, "/" + "y" * 2**18])
    host = Host()
    assert host.launch(1).pid
    host.close()


ELSEWHERE = """
import sys
from caravela import Supervisor, flow, wait_until
sys.argv.append("caf\\u00e9")
with Supervisor(shutdown=0.2) as supervisor:
    print(sys.getfilesystemencoding(), supervisor.start(flow("f", wait_until(len), initial_state={})).get_state())
"""


def test_arguments_need_no_encoding() -> None:
    ascii_only = {**os.environ, "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-X", "utf8=0", "-c", ELSEWHERE]
    done = subprocess.run(command, env=ascii_only, capture_output=True, text=True, timeout=15, check=False)
    assert done.stdout == "ascii {}\n", done.stderr


@pytest.mark.parametrize("room", range(8))
def test_the_soft_limit_is_raised_for_a_zygote(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    monkeypatch.setattr(limits, "_raised", None)  # put back in the end: other tests' workers get what it says
    importlib.import_module("multiprocess.util")  # without any room an import finds nothing
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(free := os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + room, hard))
    try:
        host = Host()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert soft > free + room
    assert host.engine._zygote
    assert host.launch(1).pid
    host.close()


def test_a_status_that_does_not_come_is_unknown(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.launch(1)
    monkeypatch.setattr("caravela.supervisor.engines.workers.STATUS_WITHIN", 0.01)
    zygote = host.zygote()
    os.kill(zygote, signal.SIGSTOP)
    host.order(1, "exit 7")
    assert host.cause(1).kind == "unknown"
    os.kill(zygote, signal.SIGCONT)
    host.launch(2)
    assert len([report for report in host.loop.reports if report.key == 1]) == 2  # the late one is dropped


def test_a_host_that_reaps_or_ignores_its_children_still_hears_of_every_death() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        host = Host()
        host.launch(1)
        host.order(1, "exit 7")
        assert host.cause(1) == Cause("exit", "exit code 7")
        host.launch(2)
        os.kill(host.zygote(), signal.SIGKILL)
        assert host.cause(2) == LOST
        host.launch(3)
        host.close()
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_close_leaves_nothing(host: Host) -> None:
    workers = [host.launch(key).pid for key in range(3)]
    host.answer(0)
    host.order(0, "grandchild")
    pids = [*workers, host.answer(0)["pid"], host.zygote()]
    pidfds = [os.pidfd_open(pid) for pid in pids]
    host.fds += pidfds
    host.engine.close()
    assert all(gone(fd) for fd in pidfds)


def test_close_does_not_wait_for_ever_for_a_stopped_zygote(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caravela.supervisor.engines.process.CLOSED_WITHIN", 0.05)
    host.fds.append(worker := os.pidfd_open(host.launch(1).pid))
    os.kill(host.zygote(), signal.SIGSTOP)
    host.engine.close()
    assert gone(worker)


def test_a_forked_child_forgets_without_hurting_anybody(host: Host) -> None:
    host.launch(1)
    report, tell = os.pipe()
    if (child := os.fork()) == 0:
        try:
            before = len(os.listdir("/proc/self/fd"))
            host.engine.forget()
            os.write(tell, bytes([before - len(os.listdir("/proc/self/fd"))]))
        finally:
            os._exit(0)
    assert os.read(report, 1) == bytes([3])  # control socket, zygote's pidfd, worker's pidfd
    os.waitpid(child, 0)
    os.close(report)
    os.close(tell)
    host.order(1, "exit 7")
    assert host.cause(1) == Cause("exit", "exit code 7")


HOST = """
import select, os, sys
sys.path.insert(0, {tests!r})
from caravela.supervisor.boot import environment
from caravela.supervisor.engines.base import Ends, Setting
from caravela.supervisor.engines.process import ProcessEngine
class Loop:
    def __init__(self): self.watched, self.reports = {{}}, []
    def watch(self, fd, ready): self.watched[fd] = ready
    def unwatch(self, fd, *, close): self.watched.pop(fd, None)
    def later(self, seconds, call): return lambda: None
    def report(self, report): self.reports.append(report)
loop, engine = Loop(), ProcessEngine(worker="fake_workers:obedient")
engine.open(loop)
(reads, orders), (answers, writes) = os.pipe(), os.pipe()
engine.launch(1, Ends(reads, writes, os.memfd_create("page")), Setting((), environment()))
while not loop.reports:
    for fd in select.select(list(loop.watched), [], [])[0]: loop.watched[fd]()
os.read(answers, 1)
print(loop.reports[0].pid, flush=True)
sys.stdin.read()
"""


def test_nothing_is_left_of_a_host_that_is_killed() -> None:
    code = HOST.format(tests=str(Path(__file__).parents[1] / "worker"))
    # Unguarded, from -c: nothing of it may run again in the zygote.
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    worker = os.pidfd_open(int(process.stdout.readline()))
    process.kill()
    assert gone(worker)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    os.close(worker)


def test_another_version_of_the_zygote_is_refused() -> None:
    host = Host()
    host.ask(1)
    assert host.engine._zygote is not None
    host.engine._greet(host.engine._zygote, wire.VERSION + 1)
    assert "restart" in host.loop.until(LaunchFailed, 1).why
    host.launch(2)
    host.close()


# ------------------------------------------------------------------ zygotes that live and do not answer


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ANSWERED_WITHIN", 0.05)


def stop(pid: int) -> None:
    """Returns when it stands still."""
    os.kill(pid, signal.SIGSTOP)
    while Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"T":
        os.sched_yield()


@pytest.mark.usefixtures("impatient")
def test_a_root_that_does_not_answer_is_lost_when_a_worker_must_die(host: Host) -> None:
    host.launch(1)
    stop(host.zygote())
    for key in range(2, 4 + UNANSWERED):
        host.ask(key)
    host.engine.terminate(2)
    host.engine.kill(2)
    host.engine.kill(2)
    assert {host.cause(key) for key in range(1, 2 + UNANSWERED)} == {LOST}
    for key in range(2 + UNANSWERED, 4 + UNANSWERED):
        assert host.loop.until(Launched, key).pid  # from the next one


@pytest.mark.usefixtures("impatient")
def test_a_branch_that_does_not_answer_is_lost_and_no_other_follows(host: Host) -> None:
    stop(branched(host, 2))
    for key in (3, 4):
        host.ask(key, "colorsys")
    host.engine.kill(3)
    assert {host.cause(key) for key in (2, 3, 4)} == {LOST}
    host.boot(5, "colorsys")
    host.launch(6, "colorsys")
    assert parent_of(host, 5) == parent_of(host, 6) == host.zygote()
    host.order(1, "exit 7")
    assert host.cause(1) == Cause("exit", "exit code 7")


@pytest.mark.usefixtures("impatient")
def test_one_that_answers_late_is_kept(host: Host) -> None:
    host.launch(1)
    zygote = host.zygote()
    stop(zygote)
    host.ask(2)
    host.engine.kill(2)
    os.kill(zygote, signal.SIGCONT)
    poll = select.poll()
    assert host.engine._zygote
    poll.register(host.engine._zygote.control, select.POLLIN)
    poll.poll()
    host.engine._overdue(host.engine._zygote, 2)
    assert host.cause(2) == Cause("signal", "SIGKILL")
    assert host.zygote() == zygote


def test_the_group_of_a_worker_whose_status_does_not_come_is_killed(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caravela.supervisor.engines.workers.STATUS_WITHIN", 0.01)
    host.launch(1)
    host.answer(1)
    host.order(1, "grandchild")
    host.fds.append(grandchild := os.pidfd_open(host.answer(1)["pid"]))
    stop(host.zygote())
    host.order(1, "exit 7")
    assert host.cause(1).kind == "unknown"
    assert gone(grandchild)


@pytest.mark.parametrize("of", ["root", "branch"])
def test_closing_waits_for_no_zygote_that_owes_a_status(host: Host, monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    monkeypatch.setattr("caravela.supervisor.engines.workers.STATUS_WITHIN", 0.01)
    monkeypatch.setattr(process, "CLOSED_WITHIN", 60)
    branch = branched(host, 2)
    key, zygote = (1, host.zygote()) if of == "root" else (2, branch)
    host.fds.append(other := os.pidfd_open(host.launch(3, "colorsys").pid))
    stop(zygote)
    host.order(key, "exit 7")
    assert host.cause(key).kind == "unknown"
    before = time.monotonic()
    host.engine.close()
    assert time.monotonic() - before < 0.45  # less than a root gives its branches
    assert gone(other)


def test_closing_waits_for_no_zygote_that_has_nothing_to_reap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "CLOSED_WITHIN", 60)
    Host("fake_workers:unfinished").close()
    host = Host()
    host.launch(1)
    host.order(1, "return 0")
    host.cause(1)
    stop(host.zygote())
    host.close()


def test_at_the_hard_limit_of_fds_a_lost_request_is_a_failed_launch(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.launch(1)
    zygote = host.zygote()
    stop(zygote)
    host.ask(2)

    def no_more(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(process, "with_enough_fds", no_more)
    os.kill(zygote, signal.SIGKILL)
    assert "Too many open files" in host.loop.until(LaunchFailed, 2).why
    assert [type(report) for report in host.loop.reports if report.key == 2] == [LaunchFailed]


# ------------------------------------------------------------------ branches


def parent_of(host: Host, key: int) -> int:
    return int(host.answer(key)["parent"])


def branched(host: Host, key: int) -> int:
    """Launches ``key`` from the branch of colorsys; returns the branch's pid."""
    host.boot(key - 1, "colorsys")
    host.answer(key - 1)
    host.launch(key, "colorsys")
    return parent_of(host, key)


def test_the_first_launch_is_the_roots_and_the_next_the_branchs(host: Host) -> None:
    branch = branched(host, 2)
    assert branch != host.zygote()
    host.launch(3)
    assert parent_of(host, 3) == host.zygote()
    host.order(2, "exit 7")
    assert host.cause(2) == Cause("exit", "exit code 7")


def test_a_branch_is_asked_for_when_the_first_worker_has_loaded_its_flow(host: Host) -> None:
    host.launch(1, "colorsys")
    host.ask(2, "colorsys")
    host.launch(3)  # what the root was asked before, it has answered
    assert list(host.engine._branches) == [] and not any(report.key == 2 for report in host.loop.reports)
    host.engine.booted(1)
    host.loop.until(Launched, 2)
    assert parent_of(host, 2) != host.zygote()
    host.engine.booted(2)
    assert len(list(host.engine._branches)) == 1


def test_what_waits_is_the_roots_when_the_first_worker_ends_before_it_is_ready(host: Host) -> None:
    host.launch(1, "colorsys")
    host.ask(2, "colorsys")
    host.order(1, "exit 7")
    host.loop.until(Launched, 2)
    assert parent_of(host, 2) == host.zygote()
    host.boot(3, "colorsys")  # the first of a new plan
    host.launch(4, "colorsys")
    assert parent_of(host, 3) == host.zygote() != parent_of(host, 4)


def test_what_waits_is_the_roots_when_the_first_worker_is_not_launched(host: Host) -> None:
    host.ask(1, "colorsys")
    host.ask(2, "colorsys")
    host.engine.kill(1)
    host.loop.until(LaunchFailed, 1)
    host.loop.until(Launched, 2)
    assert parent_of(host, 2) == host.zygote()


def test_nobody_waits_long_for_a_branch_that_is_planned(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "AWAITED", 0.01)
    host.launch(1, "colorsys")
    host.ask(2, "colorsys")
    host.loop.until(Launched, 2)
    host.launch(3, "colorsys")
    assert parent_of(host, 2) == parent_of(host, 3) == host.zygote()
    host.engine.booted(1)
    (branch,) = host.engine._branches
    while not branch.ready:
        host.loop.turn()
    host.launch(4, "colorsys")
    assert parent_of(host, 4) != host.zygote()


def test_a_lost_root_drops_the_plans(host: Host) -> None:
    host.launch(1, "colorsys")
    host.ask(2, "colorsys")
    os.kill(host.zygote(), signal.SIGKILL)
    assert host.cause(1) == LOST
    host.loop.until(Launched, 2)
    assert parent_of(host, 2) == host.zygote()


def test_a_launch_that_waits_at_a_plan_can_be_killed_and_closing_closes_its_fds(host: Host) -> None:
    host.launch(1, "colorsys")
    host.ask(2, "colorsys")
    host.ask(3, "colorsys")
    host.engine.kill(2)
    assert "killed before" in host.loop.until(LaunchFailed, 2).why


def test_requests_wait_for_a_branch_in_order_and_beyond_what_its_socket_holds(host: Host) -> None:
    keys = range(4 * UNANSWERED)
    for key in keys:
        host.ask(key, "colorsys")
    host.loop.until(Launched, 0)
    host.engine.booted(0)
    assert all(host.loop.until(Launched, key).pid for key in keys)
    assert len({parent_of(host, key) for key in keys[1:]}) == 1


def test_a_launch_that_waits_for_a_branch_can_be_killed(host: Host) -> None:
    host.launch(1)
    host.ask(2, "colorsys")
    host.ask(3, "colorsys")
    host.engine.kill(3)
    assert "killed before" in host.loop.until(LaunchFailed, 3).why


def test_a_lost_branch_is_reported_by_its_workers_alone(host: Host) -> None:
    branch = branched(host, 2)
    os.kill(branch, signal.SIGSTOP)
    for key in range(3, 4 + UNANSWERED):
        host.ask(key, "colorsys")
    os.kill(branch, signal.SIGKILL)
    assert {host.cause(key) for key in range(2, 3 + UNANSWERED)} == {LOST}
    assert host.loop.until(Launched, 3 + UNANSWERED).pid  # never sent: the root has it
    host.order(1, "exit 7")
    assert host.cause(1) == Cause("exit", "exit code 7")
    assert branched(host, 90) != branch


def test_root_and_branch_killed_together_lose_every_worker_once(host: Host) -> None:
    for first, second in ((0, 1), (1, 0)):
        before = 100 * first
        branch = branched(host, before + 2)
        pids = (host.zygote(), branch)
        host.fds.append(root := os.pidfd_open(pids[0]))
        os.kill(pids[first], signal.SIGKILL)
        os.kill(pids[second], signal.SIGKILL)
        assert gone(root)  # what is asked of it from now on waits for the next one
        for key in (before + 1, before + 2):
            assert host.cause(key) == LOST
        host.launch(before + 3, "colorsys")
        assert parent_of(host, before + 3) == host.zygote()
        exits = [report.key for report in host.loop.reports if isinstance(report, Exited)]
        assert len(exits) == len(set(exits))


def test_a_forked_child_forgets_the_branches_too(host: Host) -> None:
    branched(host, 2)
    report, tell = os.pipe()
    if (child := os.fork()) == 0:
        try:
            before = len(os.listdir("/proc/self/fd"))
            host.engine.forget()
            os.write(tell, bytes([before - len(os.listdir("/proc/self/fd"))]))
        finally:
            os._exit(0)
    assert os.read(report, 1) == bytes([6])  # two control sockets, their pidfds, two workers' pidfds
    os.waitpid(child, 0)
    os.close(report)
    os.close(tell)


def test_closing_leaves_no_branch(host: Host) -> None:
    host.fds += [branch := os.pidfd_open(branched(host, 2)), worker := os.pidfd_open(host.launch(3, "colorsys").pid)]
    host.engine.close()
    assert gone(branch) and gone(worker)


def test_closing_while_requests_wait_for_a_branch_closes_their_fds() -> None:
    host = Host()
    host.boot(1, "colorsys")
    for key in range(2, 6):
        host.ask(key, "colorsys")
    host.close()
