"""The guarantees where users get them by default: in workers forked from a branch, which has imported their flow.

One short test each; that whole guarantees hold is shown by the modules that are named after them, whose workers are
the root's.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flows_under_test import State, append, bump, finish, idle, put, refuse, working
from listening import SOON, states, until

from caravela import (
    Flow,
    FlowHandle,
    FlowRestarted,
    FlowState,
    FlowStopped,
    SignalFailed,
    SignalRejected,
    Supervisor,
)
from caravela.supervisor import boot, runner
from caravela.supervisor.engines import branches

START: State = {"n": 0, "items": [[1]]}

Gates = Callable[..., Any]
Start = Callable[..., FlowHandle]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


def worker(handle: FlowHandle) -> int:
    """A worker may be ready before its zygote has said who it is."""
    while (pid := handle.pid) is None:
        os.sched_yield()
    return pid


def in_a_branch(handle: FlowHandle) -> bool:
    """Host → root → branch → worker."""
    return parent(parent(parent(worker(handle)))) == os.getpid()


@pytest.fixture
def engine() -> str:
    return "process"


@pytest.fixture(scope="module", autouse=True)
def processes() -> Iterator[Supervisor]:
    """In place of the one without branches. pytest writes each test's name into the environment, and in other
    surroundings a module may be another one: so that one branch serves all tests, workers get one environment."""
    with pytest.MonkeyPatch.context() as patch, closing(Supervisor(shutdown=0.1).open(private=True)) as shared:
        patch.syspath_prepend(str(Path(__file__).parent))
        here = boot.environment()
        patch.setattr(runner, "environment", lambda: here)
        patch.setattr(branches, "AWAITED", SOON)
        for _ in range(2):  # the first asks for the branch, the second waits for it
            shared.start(idle).stop()
        yield shared


@pytest.fixture
def start(supervisor: Supervisor) -> Start:
    def start(flow: Flow, **options: Any) -> FlowHandle:
        handle = supervisor.start(flow, **options)
        assert in_a_branch(handle)
        return handle

    return start


KEPT: list[State] = []


def keep(state: State) -> State:
    KEPT.append(state)
    return state


def spoil(state: State) -> State:
    """What another one returned, and what the flow has, which the branch made for all workers."""
    for spoilt in (KEPT.pop(), __import__("flows_under_test").idle.initial_state):
        spoilt["items"].append("!")
    return state | {"n": 1}


def test_g1_private_state(start: Start) -> None:
    handle = start(idle, initial_state=START)
    handle.get_state()["items"][0].append("!")
    handle.last_state["items"][0].append("!")
    assert handle.update(keep) == START
    assert handle.update(spoil) == handle.get_state() == START | {"n": 1}
    assert start(idle).get_state() == {"n": 0, "items": []} == idle.initial_state


def test_g2_all_or_nothing(start: Start) -> None:
    handle = start(idle, initial_state=START)
    events = handle.subscribe((SignalRejected, FlowState))
    handle.signal(refuse)
    with pytest.raises(SignalFailed, match="as told"):
        handle.update(refuse)
    assert handle.get_state() == START
    handle.signal(bump)
    assert [type(event) for event in until(events, FlowState)] == [SignalRejected, FlowState]


def test_g3_no_change_unannounced(start: Start) -> None:
    handle = start(idle)
    events = handle.subscribe()
    for by in (1, 0, 2, 0):
        handle.signal(bump, by)
    handle.signal(finish)
    came = until(events)
    assert [state["n"] for state in states(came)] == [1, 3, 3]
    assert [event.seq for event in came] == [1, 2, 3, 4]


def test_g4_answerable(start: Start, gate: Gates) -> None:
    handle = start(working, initial_state={"gate": gate().path, "n": 0})
    gate().meet()
    handle.signal(bump)
    assert handle.get_state()["n"] == 1
    assert handle.update(bump)["n"] == 2
    assert handle.last_state["n"] == 2
    end = handle.stop(SOON)
    assert isinstance(end, FlowStopped) and end.state["n"] == 2


def test_g5_nothing_lost_by_overlap(start: Start, gate: Gates) -> None:
    handle = start(working, initial_state={"gate": gate().path, "n": 0, "items": []})
    events = handle.subscribe()
    gate().meet()
    handle.signal(bump)
    handle.signal(append, "while it works")
    assert handle.get_state()["items"] == ["while it works"]
    gate().open()
    assert handle.result(SOON) == {"gate": gate().path, "n": 1, "items": ["while it works"], "worked": True}
    assert [state["n"] for state in states(until(events))][:2] == [1, 1]


def test_g6_order(start: Start) -> None:
    handle = start(idle)

    def send(thread: int) -> None:
        for number in range(0, 100, 2):
            handle.signal(append, (thread, number))
            assert (thread, number) in handle.update(append, (thread, number + 1))["items"]

    threads = [threading.Thread(target=send, args=(thread,)) for thread in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    items = handle.get_state()["items"]
    for thread in range(3):
        assert [number for by, number in items if by == thread] == list(range(100))


def test_a_crash_and_the_restart(start: Start) -> None:
    handle, other = start(idle, initial_state=START), start(idle)
    events = handle.subscribe((FlowRestarted, FlowState))
    branch, before = parent(worker(handle)), worker(handle)
    handle.update(put, "n", 7)
    other.update(bump)
    os.kill(before, signal.SIGSEGV)
    came = until(events, FlowRestarted)
    assert came[-1].cause.detail == "SIGSEGV"
    assert handle.get_state() == START
    assert handle.update(bump)["n"] == 1
    assert (parent(worker(handle)), handle.incarnation) == (branch, 2) and handle.pid != before
    assert (other.get_state()["n"], other.incarnation) == (1, 1)
