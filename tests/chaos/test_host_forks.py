"""A forked child of the host has nothing of its supervisor: no fd, and no call that does anything."""

import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import multiprocess
import pytest
from witness import own_fds

import caravela
from caravela import Supervisor, SupervisorForked, flow, run, wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # this is what is tested

HOSTS = Path(__file__).with_name("hosts")
ANSWERS = 800
"""From here on up stand the fds by which children of the tests answer."""

LOOK = """
import json, os
fds = {fd: "/proc/self/fd/" + fd for fd in os.listdir("/proc/self/fd")}
print(json.dumps({fd: os.readlink(path) for fd, path in fds.items() if os.path.exists(path)}))
"""

counter = flow("counter", wait_until(lambda s: False), initial_state=lambda: {"n": 0}, signals={"count": lambda s: s})


def count(state: Any) -> Any:
    return state | {"n": state["n"] + 1}


def swallow(path: str) -> None:
    Path(path).read_bytes()


def in_child(ask: Callable[[], Any]) -> Any:
    """The answer of a forked child, through JSON."""
    reads, low = os.pipe()
    writes = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, ANSWERS)
    os.close(low)
    if (pid := os.fork()) == 0:
        code = 1
        try:
            os.close(reads)
            os.write(writes, json.dumps(ask()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writes)
    with open(reads) as pipe:
        answer = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return json.loads(answer)


@pytest.fixture
def before() -> dict[int, str]:
    """What was open before there was a supervisor."""
    return own_fds()


def new_fds(before: dict[int, str]) -> dict[int, str]:
    """In a child of :func:`in_child`: what it has more than the test had."""
    return {fd: what for fd, what in own_fds().items() if fd < ANSWERS and before.get(fd) != what}


def refused(call: Callable[[], Any]) -> str:
    """``refused``, or what happened instead."""
    try:
        return f"returned {call()!r}"
    except SupervisorForked:
        return "refused"
    except BaseException as error:
        return repr(error)


def test_every_call_is_refused() -> None:
    with Supervisor() as supervisor:
        handle = supervisor.start(counter, name="it")
        subscription = handle.subscribe()
        calls: dict[str, Callable[[], Any]] = {
            "handle.signal": lambda: handle.signal(count),
            "handle.signal by name": lambda: handle.signal("count"),
            "handle.update": lambda: handle.update(count),
            "handle.get_state": lambda: handle.get_state(),
            "handle.subscribe": lambda: handle.subscribe(),
            "handle.wait": lambda: handle.wait(1),
            "handle.result": lambda: handle.result(1),
            "handle.stop": lambda: handle.stop(1),
            "signal": lambda: caravela.signal(handle, count),
            "get_state": lambda: caravela.get_state(handle),
            "stop": lambda: caravela.stop(handle),
            "supervisor.start": lambda: supervisor.start(counter),
            "supervisor.get": lambda: supervisor.get("it"),
            "supervisor.children": lambda: supervisor.children(),
            "supervisor.count_children": lambda: supervisor.count_children(),
            "supervisor.subscribe": lambda: supervisor.subscribe(),
            "supervisor.stop": lambda: supervisor.stop(handle),
            "supervisor.open": lambda: supervisor.open(),
            "subscription.get": lambda: subscription.get(1),
            "for _ in subscription": lambda: next(iter(subscription)),
        }
        answers = in_child(lambda: {name: refused(call) for name, call in calls.items()})
        assert answers == dict.fromkeys(calls, "refused")
        assert in_child(lambda: supervisor.close()) is None  # leaving a `with` there is nothing
        assert handle.update(count) == {"n": 1}
        assert handle.incarnation == 1
        subscription.close()


def test_what_a_with_block_leaves_in_the_child_touches_nothing() -> None:
    """The numbers of the fds that were closed at the fork may be somebody else's by now."""

    def leave() -> Any:
        pairs = [socket.socketpair() for _ in range(20)]
        subscription.close()
        common.close()
        supervisor.close()
        return [ours.fileno() for pair in pairs for ours in pair if select.select([ours], [], [], 0)[0]]

    with Supervisor() as supervisor:
        handle = supervisor.start(counter)
        with handle.subscribe() as subscription, supervisor.subscribe() as common:
            handle.update(count)  # told about the new interest
            assert in_child(leave) == []
            handle.update(count)
            assert [subscription.get(10).seq, common.get(10).seq] == [1, 1]


def test_the_child_may_have_a_supervisor_of_its_own() -> None:
    def start_and_ask() -> Any:
        with Supervisor() as own:
            return own.start(counter).update(count)

    def start_unsupervised() -> Any:
        try:
            return caravela.start(counter).update(count)
        finally:
            caravela.shutdown()

    with Supervisor() as supervisor:
        handle = supervisor.start(counter)
        assert in_child(start_and_ask) == {"n": 1}
        assert in_child(start_unsupervised) == {"n": 1}
        assert handle.get_state() == {"n": 0}


def test_no_fd_of_the_supervisor_is_open_there(before: dict[int, str]) -> None:
    with Supervisor() as supervisor:
        handles = [supervisor.start(counter) for _ in range(3)]
        handles[0].update(count)
        assert in_child(lambda: new_fds(before)) == {}
        assert len(own_fds()) > len(before)
        assert [handle.get_state()["n"] for handle in handles] == [1, 0, 0]


def test_nor_in_a_grandchild_and_what_it_opened_itself_stays_open(before: dict[int, str]) -> None:
    def open_and_fork() -> Any:
        mine = [os.open(os.devnull, os.O_RDONLY) for _ in range(50)]  # the numbers of the supervisor's
        still = in_child(lambda: [os.readlink(f"/proc/self/fd/{fd}") for fd in mine])
        return set(still) == {os.devnull} and {os.readlink(f"/proc/self/fd/{fd}") for fd in mine} == {os.devnull}

    with Supervisor() as supervisor:
        handle = supervisor.start(counter)
        assert in_child(open_and_fork)
        assert handle.get_state() == {"n": 0}


def test_a_fork_while_the_supervisor_closes(before: dict[int, str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    read = flow("read", run(swallow), initial_state=str(tmp_path / "go"))
    supervisor = Supervisor(shutdown=30).open()
    reading, quick = supervisor.start(read), supervisor.start(counter)
    with open(tmp_path / "go", "w") as go:  # when the body has opened it, too
        closing = threading.Thread(target=supervisor.close)
        closing.start()
        quick.wait()  # the shutdown is under way, and waits for the other one
        left = in_child(lambda: [*new_fds(before).keys() - {go.fileno()}])
    closing.join()
    assert reading.status == "stopped"
    assert left == []


@pytest.mark.parametrize(
    ("end", "code"), [("os._exit", 5), ("sys.exit", 5), ("raise", 1), ("return", 0), ("multiprocess", 0)]
)
def test_the_end_of_the_child_disturbs_nobody(end: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, str(HOSTS / "forking.py"), end], stdout=subprocess.PIPE, text=True, timeout=15, check=True
    )
    first, second = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert first == {"code": code, "answer": {"alive": True}, "same": True, "incarnation": 1}
    assert second == {"end": "FlowStopped", "stopped": True}


def test_subprocesses_inherit_nothing(before: dict[int, str]) -> None:
    """Not even with ``close_fds=False``: all of ours are closed on exec."""
    with Supervisor() as supervisor:
        handle = supervisor.start(counter)
        bare = [sys.executable, "-I", "-S", "-c", LOOK]
        out = subprocess.run(bare, stdout=subprocess.PIPE, close_fds=False, check=True).stdout
        found = {int(fd): what for fd, what in json.loads(out).items() if int(fd) > 2}
        assert {fd: what for fd, what in found.items() if before.get(fd) != what} == {}
        assert handle.get_state() == {"n": 0}


@pytest.fixture
def busy(before: dict[int, str]) -> Iterator[Supervisor]:
    """Threads that start, signal, crash and stop flows all the time."""
    over = threading.Event()
    errors: list[BaseException] = []

    def work(supervisor: Supervisor) -> None:
        try:
            while not over.is_set():
                handle = supervisor.start(counter, notify=lambda event: None)
                for _ in range(10):
                    handle.signal(count)
                assert handle.get_state() == {"n": 10}
                handle.stop()
        except BaseException as error:
            errors.append(error)

    with Supervisor(shutdown=1.0) as supervisor:
        threads = [threading.Thread(target=work, args=(supervisor,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        yield supervisor
        over.set()
        for thread in threads:
            thread.join()
    assert errors == []


def test_forks_while_threads_start_and_signal_and_stop(before: dict[int, str], busy: Supervisor) -> None:
    left = [in_child(lambda: new_fds(before)) for _ in range(80)]
    assert [found for found in left if found] == []


def test_a_multiprocess_child_is_a_fork_like_any_other(before: dict[int, str]) -> None:
    context = multiprocess.get_context("fork")
    ours, theirs = context.Pipe()
    with Supervisor() as supervisor:
        handle = supervisor.start(counter)
        child = context.Process(target=lambda: theirs.send(refused(handle.get_state)))
        child.start()
        assert ours.recv() == "refused"
        child.join()
        assert child.exitcode == 0
        child.close()
        assert handle.get_state() == {"n": 0}
    ours.close()
    theirs.close()
