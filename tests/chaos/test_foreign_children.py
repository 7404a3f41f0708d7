"""The children of the host are its own: it may wait for them as it likes, and we do not touch them."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from witness import parent, stat

from caravela import FlowError, FlowRestarted, Supervisor, flow, wait_until

SOON = 10.0  # seconds that never pass unless something hangs

idle = flow("idle", wait_until(lambda s: False), initial_state=lambda: {})


def restarted(events: Any) -> FlowRestarted:
    event = events.get(SOON)
    assert isinstance(event, FlowRestarted), event
    return event


@pytest.fixture
def ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.fixture
def reaped() -> Iterator[None]:
    """A host that reaps whatever ends, in a thread."""
    kept = subprocess.Popen(["cat"], stdin=subprocess.PIPE)  # so that there is always a child to wait for

    def reap() -> None:
        try:
            while os.waitpid(-1, 0)[0] != kept.pid:
                pass
        except ChildProcessError:
            pass

    thread = threading.Thread(target=reap)
    thread.start()
    yield
    assert kept.stdin
    kept.stdin.close()
    thread.join()
    kept.returncode = 0  # the thread has its status


@pytest.mark.parametrize("host", ["ignored", "reaped"])
def test_restarts_need_no_sigchld_and_no_status_of_a_child(host: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(host)
    with Supervisor(max_restarts=1000, shutdown=0.2) as supervisor:
        handle = supervisor.start(idle)
        events = handle.subscribe(kinds=(FlowRestarted, FlowError))
        for number in (signal.SIGKILL, signal.SIGSEGV):
            assert handle.pid
            os.kill(handle.pid, number)
            event = restarted(events)
            assert event.cause and event.cause.detail == number.name
        os.kill(parent(handle.pid), signal.SIGKILL)
        event = restarted(events)
        assert event.cause and event.cause.kind == "zygote_lost"
        assert handle.get_state() == {}


def test_foreign_children_keep_their_exit_codes() -> None:
    """While one flow crashes all the time."""
    over, crashes = threading.Event(), 0
    with Supervisor(max_restarts=10**6, shutdown=0.2) as supervisor:
        handle = supervisor.start(idle)
        events = handle.subscribe(kinds=(FlowRestarted, FlowError))

        def crash() -> None:
            nonlocal crashes
            while not over.is_set():
                handle.signal(lambda state: os._exit(9))
                restarted(events)
                crashes += 1

        thread = threading.Thread(target=crash)
        thread.start()
        codes = [subprocess.run(["sh", "-c", f"exit {code}"], check=False).returncode for code in range(60)]
        over.set()
        thread.join()
        assert int(stat(handle.pid or 0)[1]) != os.getpid()  # a worker is no child of the host
    assert codes == [*range(60)]
    assert crashes > 0
