"""Handlers of Python's signals may call in: they run where the main thread waits in here, never amid a step."""

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flows_under_test import State, bump, idle
from gates import pass_gate
from listening import SOON

from caravela import FlowDone, FlowHandle, FlowStopped, Supervisor, flow, set_state, wait_until

Handle = Callable[[Callable[[], Any]], list[Any]]


@pytest.fixture
def handler() -> Iterator[Handle]:
    """Makes a call the handler of SIGUSR1; in the list is what it returned or raised."""
    before = signal.getsignal(signal.SIGUSR1)

    def handler(call: Callable[[], Any]) -> list[Any]:
        outcome: list[Any] = []

        def handle(*_: object) -> None:
            try:
                outcome.append(call())
            except Exception as error:
                outcome.append(error)

        signal.signal(signal.SIGUSR1, handle)
        return outcome

    yield handler
    signal.signal(signal.SIGUSR1, before)


def strike() -> None:
    """From another thread: the main one waits by then, or will."""
    threading.Thread(target=strike_the_main_thread).start()


def strike_the_main_thread() -> None:
    ident = threading.main_thread().ident
    assert ident
    signal.pthread_kill(ident, signal.SIGUSR1)


def finish(state: State) -> State:
    return state | {"done": True}


quick = flow("quick", wait_until(lambda s: s.get("done")), set_state(bump), initial_state={"n": 0})


def test_while_the_main_thread_waits_for_an_end(supervisor: Supervisor, handler: Handle) -> None:
    handle = supervisor.start(quick)
    outcome = handler(lambda: handle.update(finish))
    strike()
    assert handle.wait(SOON) == FlowDone({"n": 1, "done": True}, flow_id=handle.id, seq=3)
    assert outcome == [{"n": 0, "done": True}]


def test_while_it_waits_for_an_event(supervisor: Supervisor, handler: Handle) -> None:
    handle = supervisor.start(idle)
    outcome = handler(handle.stop)
    with handle.subscribe() as events:
        strike()
        assert [type(event) for event in events] == [FlowStopped]
    assert [type(end) for end in outcome] == [FlowStopped]


def passes(state: State, path: str) -> State:
    pass_gate(path)
    return state | {"n": state["n"] + 1}


def test_amid_an_update_what_waits_is_refused(
    supervisor: Supervisor, handler: Handle, gate: Callable[..., Any]
) -> None:
    """It would wait for the call that it interrupts. What does not wait goes on."""
    handle, keeper = supervisor.start(idle), gate()

    def call() -> FlowHandle:
        handle.signal(bump)
        keeper.open()
        handle.get_state()
        return handle

    def strike_at_the_gate() -> None:
        keeper.meet()
        strike_the_main_thread()

    outcome = handler(call)
    other = threading.Thread(target=strike_at_the_gate)
    other.start()
    assert handle.update(passes, keeper.path, timeout=SOON)["n"] == 1
    other.join()
    assert "not from a queue's put, a log or signal handler amid a call" in str(outcome[0])
    assert handle.get_state()["n"] == 2
