"""The zygote on its own socket, without an engine."""

import array
import errno
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import pytest

from caravela.protocol import payload
from caravela.worker import exits, wire
from caravela.worker.reaping import readable
from caravela.worker.zygote import Zygote

NOFILE = 321


@dataclass
class Worker:
    """The host's ends of one worker."""

    key: int
    orders: int
    answers: int
    pid: int = 0
    death: int = -1
    said: bytes = b""

    def order(self, text: str) -> None:
        os.write(self.orders, text.encode() + b"\n")

    def answer(self) -> Any:
        while b"\n" not in self.said:
            self.said += os.read(self.answers, 65536)
        line, self.said = self.said.split(b"\n", 1)
        return json.loads(line)


@dataclass
class Host:
    """Plays the engine, blocking."""

    control: socket.socket
    process: subprocess.Popen[bytes]
    fds: list[int] = field(default_factory=list)
    branches: list[socket.socket] = field(default_factory=list)

    def hear(self) -> tuple[list[Any], list[int]]:
        packet, ancillary, _, _ = self.control.recvmsg(4096, socket.CMSG_SPACE(4))
        fds = list(array.array("i", ancillary[0][2])) if ancillary else []
        self.fds += fds
        return msgpack.unpackb(packet), fds

    def ask(self, key: int) -> Worker:
        (reads, orders), (answers, writes), page = os.pipe(), os.pipe(), os.memfd_create("page")
        os.write(page, b"the page")
        ends = array.array("i", (reads, writes, page))
        self.control.sendmsg([msgpack.packb([wire.LAUNCH, key])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, ends)])
        for fd in ends:
            os.close(fd)
        self.fds += [orders, answers]
        return Worker(key, orders, answers)

    def launch(self, key: int) -> Worker:
        worker = self.ask(key)
        (tag, answered, worker.pid), (worker.death,) = self.hear()
        assert (tag, answered) == (wire.LAUNCHED, key)
        return worker

    def branch(self, key: int, *modules: str) -> "Host":
        """Asks for it and hears that it was forked; what it says itself the caller hears."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        setting = os.memfd_create("setting")
        environment = {
            "path": [str(Path(__file__).parent), *sys.path],
            "cwd": os.getcwd(),
            "environ": {"A": "1"},
            "argv": ["x"],
            "log_level": 30,
        }
        os.write(setting, msgpack.packb([modules, payload.encode(environment)]))
        os.lseek(setting, 0, os.SEEK_SET)
        fds = array.array("i", (theirs.fileno(), setting))
        self.control.sendmsg([msgpack.packb([wire.BRANCH, key])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        theirs.close()
        os.close(setting)
        assert self.hear()[0][:2] == [wire.LAUNCHED, key]
        self.branches.append(ours)
        return Host(ours, self.process, self.fds)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here = str(Path(__file__).parent)
    code = (
        f"import sys; sys.path[:] = {[here, *sys.path]!r}; from caravela.worker.zygote import main; "
        f"main({theirs.fileno()}, {NOFILE}, 'fake_workers:obedient')"
    )
    stray, _ = pipe = os.pipe()
    with open(tmp_path / "stderr", "wb") as stderr:
        process = subprocess.Popen([sys.executable, "-c", code], pass_fds=(theirs.fileno(), stray), stderr=stderr)
    theirs.close()
    host = Host(ours, process, [*pipe])
    assert host.hear() == ([wire.HELLO, wire.VERSION], [])
    yield host
    for control in (ours, *host.branches):
        control.close()
    assert process.wait() in (0, -signal.SIGKILL)
    for fd in host.fds:
        os.close(fd)


def gone(pidfd: int) -> bool:
    """Waits for it; pytest's timeout is the bound."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll())


def test_a_worker_finds_only_what_is_its_own(host: Host) -> None:
    host.launch(1)
    worker = host.launch(2)
    facts = worker.answer()
    assert facts["pid"] == facts["session"] == worker.pid
    assert facts["parent"] == host.process.pid
    assert facts["stdin"] == os.devnull
    assert facts["page"] == "the page"
    assert len(facts["fds"]) == 6 and facts["fds"][:3] == [0, 1, 2]
    assert facts["blocked"] == facts["caught"] == 0
    assert facts["ignored"] == sorted([signal.SIGPIPE, signal.SIGXFSZ])
    assert facts["dies_with_parent"] == signal.SIGKILL
    assert facts["nofile"] == NOFILE
    assert facts["heavy"] == []


def test_workers_draw_different_numbers(host: Host) -> None:
    draws = {host.launch(key).answer()["draw"] for key in range(4)}
    assert len(draws) == 4


@pytest.mark.parametrize(
    ("order", "code"),
    [
        ("return 0", 0),
        ("return 71", 71),
        ("exit 7", 7),
        ("die SIGKILL", -9),
        ("die SIGSEGV", -11),
        ("die SIGINT", -2),
        ("die SIGTERM", -15),
        ("raise", 70),
    ],
)
def test_how_a_worker_ended_is_reported(host: Host, order: str, code: int) -> None:
    worker = host.launch(5)
    worker.order(order)
    (tag, key, status), _ = host.hear()
    assert (tag, key, os.waitstatus_to_exitcode(status)) == (wire.EXITED, 5, code)
    assert gone(worker.death)
    assert not os.path.exists(f"/proc/{worker.pid}")


def test_what_a_worker_raised_is_on_stderr(host: Host, tmp_path: Path) -> None:
    host.launch(1).order("raise")
    host.hear()
    assert "RuntimeError: as told" in (tmp_path / "stderr").read_text()


def test_its_group_is_dead_before_a_worker_is_reported(host: Host) -> None:
    worker = host.launch(1)
    worker.answer()
    worker.order("grandchild")
    host.fds.append(grandchild := os.pidfd_open(worker.answer()["pid"]))
    worker.order("die SIGKILL")
    assert host.hear()[0][0] == wire.EXITED
    assert gone(grandchild)


def test_many_requests_in_one_go_are_answered_in_order(host: Host) -> None:
    for key in range(8):
        host.ask(key)
    assert [host.hear()[0][:2] for _ in range(8)] == [[wire.LAUNCHED, key] for key in range(8)]


def test_end_of_file_kills_every_worker_and_its_group(host: Host) -> None:
    workers = [host.launch(key) for key in range(3)]
    for worker in workers:
        worker.answer()
        worker.order("grandchild")
    grandchildren = [os.pidfd_open(worker.answer()["pid"]) for worker in workers]
    host.fds += grandchildren
    host.control.shutdown(socket.SHUT_RDWR)
    assert all(gone(fd) for fd in [worker.death for worker in workers] + grandchildren)
    assert host.process.wait() == 0


def test_workers_die_with_a_killed_zygote(host: Host) -> None:
    worker = host.launch(1)
    worker.answer()
    host.process.kill()
    assert gone(worker.death)


def test_a_request_without_its_fds_fails_alone(host: Host) -> None:
    host.control.send(msgpack.packb([wire.LAUNCH, 3]))
    (tag, key, why), _ = host.hear()
    assert (tag, key) == (wire.LAUNCH_FAILED, 3) and "descriptors" in why
    host.launch(4)


def test_the_zygote_keeps_no_fd_of_a_request_and_none_of_the_host(host: Host) -> None:
    workers = [host.launch(key) for key in range(3)]
    host.control.send(msgpack.packb([wire.LAUNCH, 3]))
    host.hear()  # it has turned to the next request, so it is done with the third
    held = f"/proc/{host.process.pid}/fd"
    links = sorted(os.readlink(f"{held}/{fd}").split(":[")[-1].rstrip("]") for fd in os.listdir(held) if int(fd) > 2)
    assert links[1:] == ["eventpoll", "pidfd", "pidfd", "pidfd"]  # and the number of the socket before them
    for worker in workers:
        worker.order("return 0")
        host.hear()
    assert len(os.listdir(held)) == 5  # 0–2, the socket, the epoll


def test_a_fork_that_fails_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", no_more)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    host = Host(ours, None)  # type: ignore[arg-type]  # the zygote is here
    zygote = Zygote(theirs, resource.getrlimit(resource.RLIMIT_NOFILE)[0], lambda reads, writes, page: 0)
    before = len(os.listdir("/proc/self/fd"))
    host.ask(1)
    assert zygote._receive()
    assert host.hear()[0] == [wire.LAUNCH_FAILED, 1, "fork: Resource temporarily unavailable"]
    assert len(os.listdir("/proc/self/fd")) == before + len(host.fds)
    zygote._kill_all()
    for fd in host.fds:
        os.close(fd)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("broken", ["register", "send"])
def test_a_worker_that_cannot_be_handed_over_is_reaped_and_fails_alone(
    monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    host = Host(ours, None)  # type: ignore[arg-type]  # the zygote is here
    zygote = Zygote(theirs, resource.getrlimit(resource.RLIMIT_NOFILE)[0], lambda reads, writes, page: 0)
    before = len(os.listdir("/proc/self/fd"))
    send = zygote._send

    def no_more(packet: list[Any], *fds: int) -> None:
        if fds:
            raise OSError(errno.ETOOMANYREFS, "Too many references: cannot splice")
        send(packet)

    if broken == "send":
        monkeypatch.setattr(zygote, "_send", no_more)
    else:
        zygote._epoll.close()
        monkeypatch.setattr(zygote, "_epoll", Unwatching())
    host.ask(1)
    assert zygote._receive()
    (tag, key, why), _ = host.hear()
    assert (tag, key) == (wire.LAUNCH_FAILED, 1) and why.startswith("its pidfd: ")
    assert zygote._children == {}
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert len(os.listdir("/proc/self/fd")) == before + len(host.fds) - (broken == "register")
    zygote._kill_all()
    for fd in host.fds:
        os.close(fd)
    ours.close()
    theirs.close()


class Unwatching:
    def register(self, fd: int, mask: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        pass


@pytest.mark.parametrize("refused", [False, True], ids=["close_range", "without it"])
def test_all_fds_are_closed_but_those(refused: bool) -> None:
    """Without ``close_range`` Python's own way tries each number that there can be, which takes minutes."""
    code = (
        "import os, resource\n"
        "from caravela.worker import zygote\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)\n"
        "os.closerange = None\n"
        f"if {refused}: zygote._syscall = lambda *_: -1\n"
        "null, numbers = os.open(os.devnull, os.O_RDONLY), (5, 6, 9, 20, 900)\n"
        "for fd in numbers: os.dup2(null, fd)\n"
        "zygote._close_all_but((9, 5))\n"
        "print(*(fd for fd in (null, *numbers) if os.path.exists(f'/proc/self/fd/{fd}')))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.split() == ["5", "9"]


@pytest.mark.parametrize(("end", "code"), [("return 0", 0), ("raise", exits.CRASHED)])
def test_a_worker_without_streams_ends_alone(host: Host, end: str, code: int) -> None:
    others = [host.launch(1), host.launch(2)]
    worker = host.launch(3)
    worker.order("close streams")
    worker.order(end)
    (tag, key, status), _ = host.hear()
    assert (tag, key, os.waitstatus_to_exitcode(status)) == (wire.EXITED, 3, code)
    for other in others:
        other.answer()
        other.order("return 5")
        assert host.hear()[0][:2] == [wire.EXITED, other.key]


@dataclass
class Household:
    """A zygote that is here, with children that others have made."""

    zygote: Zygote
    children: list[subprocess.Popen[bytes]]

    def forks(self, tries: Callable[[], object]) -> int:
        """In a fork that comes back up to the zygote's own frames; returns its exit code."""
        if (pid := os.fork()) == 0:
            try:
                tries()
            finally:
                os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def household() -> Iterator[Household]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    zygote = Zygote(theirs, limits[0], lambda reads, writes, page: 0)
    # In sessions of their own, as workers are.
    children = [subprocess.Popen(["cat"], stdin=subprocess.PIPE, start_new_session=True) for _ in range(3)]
    zygote._children = {os.pidfd_open(child.pid): (key, child.pid) for key, child in enumerate(children)}
    yield Household(zygote, children)
    zygote._kill_all()
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for child in children:
        assert child.stdin
        child.stdin.close()
        child.wait()
    ours.close()
    theirs.close()


def test_a_fork_that_comes_back_into_the_zygote_kills_nobody(household: Household) -> None:
    household.forks(household.zygote._kill_all)
    assert not any(readable(pidfd) for pidfd in household.zygote._children)


def test_one_that_cannot_be_killed_saves_no_other(household: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    kill, foreign = os.kill, household.children[0].pid

    def refuse(pid: int, number: int) -> None:
        if pid == foreign:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        kill(pid, number)

    monkeypatch.setattr(os, "kill", refuse)
    household.zygote._kill_all()
    assert household.zygote._children == {}
    for child in household.children:
        with pytest.raises(ProcessLookupError):
            kill(child.pid, 0)


# ------------------------------------------------------------------ branches


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


@pytest.fixture
def branch(host: Host) -> Host:
    branch = host.branch(-1, "colorsys", "sched")
    assert branch.hear() == ([wire.HELLO, wire.VERSION], [])
    return branch


def test_a_worker_of_a_branch_finds_what_is_its_own_and_the_modules(host: Host, branch: Host) -> None:
    worker = branch.launch(1)
    facts = worker.answer()
    assert parent(facts["parent"]) == host.process.pid
    assert facts["pid"] == facts["session"] == worker.pid
    assert facts["page"] == "the page"
    assert len(facts["fds"]) == 6 and facts["fds"][:3] == [0, 1, 2]
    assert facts["ignored"] == sorted([signal.SIGPIPE, signal.SIGXFSZ])
    assert facts["dies_with_parent"] == signal.SIGKILL
    assert facts["nofile"] == NOFILE
    assert facts["heavy"] == []
    assert facts["preloaded"] == ["colorsys", "sched"]
    assert host.launch(2).answer()["preloaded"] == []


def test_a_branch_reports_its_workers_and_the_root_reports_the_branch(host: Host, branch: Host) -> None:
    worker = branch.launch(1)
    os.kill(pid := worker.answer()["parent"], 0)
    worker.order("exit 7")
    (tag, key, status), _ = branch.hear()
    assert (tag, key, os.waitstatus_to_exitcode(status)) == (wire.EXITED, 1, 7)
    branch.control.shutdown(socket.SHUT_RDWR)
    assert host.hear()[0] == [wire.EXITED, -1, 0]
    assert not os.path.exists(f"/proc/{pid}")


def test_the_end_of_file_of_a_branch_kills_its_workers_and_no_other(host: Host, branch: Host) -> None:
    of_root, of_branch = host.launch(1), branch.launch(2)
    of_branch.answer()
    of_branch.order("grandchild")
    host.fds.append(grandchild := os.pidfd_open(of_branch.answer()["pid"]))
    branch.control.shutdown(socket.SHUT_RDWR)
    assert gone(of_branch.death) and gone(grandchild)
    of_root.answer()
    of_root.order("return 0")
    assert host.hear()[0][1] in (1, -1)


def test_the_end_of_file_everywhere_leaves_nothing(host: Host, branch: Host) -> None:
    worker = branch.launch(1)
    worker.answer()
    worker.order("grandchild")
    host.fds.append(grandchild := os.pidfd_open(worker.answer()["pid"]))
    host.control.shutdown(socket.SHUT_RDWR)
    branch.control.shutdown(socket.SHUT_RDWR)
    assert gone(worker.death) and gone(grandchild)
    assert host.process.wait() == 0


def test_a_branch_and_its_workers_die_with_a_killed_root(host: Host, branch: Host) -> None:
    worker = branch.launch(1)
    host.fds.append(end := os.pidfd_open(worker.answer()["parent"]))
    host.process.kill()
    assert gone(end) and gone(worker.death)


def test_a_branch_says_why_its_modules_are_unsuitable(host: Host) -> None:
    branch = host.branch(-1, "no_such_module")
    (tag, why), _ = branch.hear()
    assert tag == wire.UNSUITABLE and "ModuleNotFoundError" in why
    assert host.hear()[0] == [wire.EXITED, -1, 0]
    host.launch(1)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes one that a branch can import; returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source: str) -> str:
        (tmp_path / "made_here.py").write_text(source)
        return "made_here"

    return write


def test_a_reason_that_is_no_text_is_told_all_the_same(host: Host, module: Callable[[str], str]) -> None:
    branch = host.branch(-1, module("raise OSError('no such ' + 200 * '\\udcff')"))
    (tag, why), _ = branch.hear()
    assert tag == wire.UNSUITABLE and "no such \\udcff\\udcff" in why
    assert host.hear()[0] == [wire.EXITED, -1, 0]


def test_another_file_under_the_same_number_is_seen(host: Host, module: Callable[[str], str]) -> None:
    branch = host.branch(-1, module("import os\nfd = os.open(__file__, os.O_RDONLY)\nos.dup2(fd, 0)\nos.close(fd)"))
    assert branch.hear()[0] == [wire.UNSUITABLE, "it opens or closes file descriptors when it is imported"]
    assert host.hear()[0] == [wire.EXITED, -1, 0]


def test_a_fork_that_hangs_makes_unsuitable(host: Host, module: Callable[[str], str]) -> None:
    native = (
        "import ctypes, os, signal\n"
        "libc, thread = ctypes.CDLL(None), ctypes.c_ulong()\n"
        "libc.pthread_create(ctypes.byref(thread), None, libc.pause, None)\n"
        "os.register_at_fork(after_in_child=signal.pause)"
    )
    branch = host.branch(-1, module(native))
    assert branch.hear()[0] == [wire.UNSUITABLE, "a fork that has it does not get going"]
    assert host.hear()[0] == [wire.EXITED, -1, 0]


@pytest.mark.parametrize("stub", ["", "seed = lambda number: None", "def __getattr__(name): raise RuntimeError(name)"])
def test_what_only_goes_by_the_name_of_a_generator_is_not_reseeded(
    host: Host, module: Callable[[str], str], stub: str
) -> None:
    torch = f"import sys\nimport stubs\nsys.modules['torch'] = sys.modules[__name__]\n{stub}"
    branch = host.branch(-1, module(torch) if stub else "stubs")
    assert branch.hear()[0][0] == wire.HELLO
    worker = branch.launch(1)
    assert worker.answer()["pid"] == worker.pid


def test_half_a_line_of_an_import_is_printed_once(host: Host, tmp_path: Path) -> None:
    branch = host.branch(-1, "half_a_line")
    assert branch.hear()[0][0] == wire.HELLO
    for key in range(3):
        branch.launch(key).order("return 0")
        branch.hear()
    assert (tmp_path / "stderr").read_text() == "half a line"
