"""What may be called from where: everything from a callable, nothing that waits from a queue's own put."""

import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest
from flows_under_test import bump, give_up, idle, is_done
from listening import SOON, until

from caravela import (
    Error,
    FlowCrashed,
    FlowError,
    FlowHandle,
    FlowNotRunning,
    FlowRestarted,
    FlowStopped,
    Supervisor,
    flow,
    run,
    wait_until,
)

Supervise = Callable[..., Supervisor]
Deed = Callable[[Supervisor, FlowHandle], Any]

WAITS: dict[str, Deed] = {
    "get_state": lambda _, handle: handle.get_state(),
    "update": lambda _, handle: handle.update(bump),
    "wait": lambda _, handle: handle.wait(),
    "result": lambda _, handle: handle.result(1.0),
    "stop": lambda _, handle: handle.stop(),
    "close": lambda supervisor, _: supervisor.close(),
    "start": lambda supervisor, _: supervisor.start(idle),
    "waiting": lambda _, handle: handle.subscribe().get(),
}


class Meddling:
    """A queue whose put does something, once."""

    def __init__(self) -> None:
        self.deed: Callable[[], Any] = lambda: None
        self.outcomes: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def put_nowait(self, event: Any) -> None:
        deed, self.deed = self.deed, lambda: None
        try:
            outcome = deed()
        except BaseException as error:
            outcome = error
        self.outcomes.put((threading.current_thread(), outcome))

    def until_told_by_the_caller(self, handle: FlowHandle) -> int:
        """What comes before the loop has told of the readiness is the loop's too. Returns how often it was bumped."""
        while True:
            n: int = handle.update(bump)["n"]
            there, _ = self.outcomes.get(timeout=SOON)
            if there is threading.current_thread():
                return n


@pytest.mark.parametrize("thread", ["loop", "caller"])
@pytest.mark.parametrize("call", WAITS)
def test_what_waits_is_refused_where_it_would_wait_for_itself(supervisor: Supervisor, call: str, thread: str) -> None:
    meddling = Meddling()
    handle = supervisor.start(idle, notify=meddling)
    n = meddling.until_told_by_the_caller(handle)
    meddling.deed = lambda: WAITS[call](supervisor, handle)
    if thread == "loop":
        handle.signal(bump)
    else:
        handle.update(bump)  # reads its own answer, and the state before it
    there, outcome = meddling.outcomes.get(timeout=SOON)
    assert (there is threading.current_thread()) == (thread == "caller")
    assert isinstance(outcome, RuntimeError)
    assert "not from a queue's put, a log or signal handler amid a call: it would wait for itself" in str(outcome)
    assert str(outcome).startswith(call)
    if call == "stop":
        assert isinstance(handle.wait(SOON), FlowStopped), "it was asked for all the same"
    else:
        assert handle.update(bump)["n"] == n + 2, "nothing hangs, and this thread may wait again"


@pytest.mark.parametrize(
    "deed",
    [
        lambda _, handle: handle.signal(bump),
        lambda supervisor, _: supervisor.start(idle, wait=False),
        lambda _, handle: handle.subscribe().close(),
        lambda supervisor, _: supervisor.subscribe().close(),
        lambda supervisor, handle: supervisor.get(handle.id).last_state,
        lambda supervisor, _: [child.status for child in supervisor.children()],
    ],
    ids=["signal", "start", "subscribe", "subscribe to all", "last_state", "children"],
)
@pytest.mark.parametrize("thread", ["loop", "caller"])
def test_what_waits_for_nobody_is_free_there(supervisor: Supervisor, deed: Deed, thread: str) -> None:
    meddling = Meddling()
    handle = supervisor.start(idle, notify=meddling)
    meddling.until_told_by_the_caller(handle)
    meddling.deed = lambda: deed(supervisor, handle)
    if thread == "loop":
        handle.signal(bump)
    else:
        handle.update(bump)
    _, outcome = meddling.outcomes.get(timeout=SOON)
    assert not isinstance(outcome, BaseException)
    assert handle.update(bump)["n"] >= 2


def test_ends_that_are_there_can_be_read_there(supervise: Supervise) -> None:
    supervisor = supervise()
    meddling = Meddling()
    other, handle = supervisor.start(idle), supervisor.start(idle, notify=meddling)
    end = other.stop()
    for deed in (other.wait, other.stop, lambda: other.wait(0)):
        meddling.deed = deed
        handle.signal(bump)
        assert meddling.outcomes.get(timeout=SOON)[1] == end
    supervisor.close()
    supervisor.close()


@pytest.mark.parametrize("call", [name for name in WAITS if name not in ("wait", "result", "waiting")])
def test_a_callable_may_wait(supervise: Supervise, call: str) -> None:
    supervisor = supervise()
    deeds: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def hear(event: Any) -> None:
        if deeds.empty():
            deeds.put(WAITS[call](supervisor, handle))

    handle = supervisor.start(idle, notify=hear)
    handle.signal(bump)
    assert not isinstance(deeds.get(timeout=SOON), BaseException)


def test_a_name_that_is_none(supervisor: Supervisor) -> None:
    get: Any = supervisor.get
    for name in (None, 3, idle):
        with pytest.raises(TypeError, match=r"name_or_id=.* must be a str"):
            get(name)


# ------------------------------------------------------------------ the reason of a permanent flow


failing = flow("failing", wait_until(is_done), run(give_up), initial_state={"n": 7, "done": True})


def test_a_permanent_flow_that_keeps_failing_says_why(supervise: Supervise) -> None:
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    supervisor = supervise(max_restarts=1)
    everybody = supervisor.subscribe((FlowRestarted,))
    handle = supervisor.start(failing, restart="permanent", notify=inbox, wait=False)
    assert everybody.get(SOON).cause.reason == {"gave": "up", "n": 7}  # type: ignore[attr-defined]  # FlowRestarted
    end = until(inbox)[-1]
    assert isinstance(end, FlowError)
    assert handle.cause is not None
    for cause in (end.reason, handle.cause):
        assert (cause.kind, cause.detail, cause.path) == ("ended", "failed", "run[1]")
        assert cause.reason == {"gave": "up", "n": 7}
    why = r"failed: \{'gave': 'up', 'n': 7\} in run\[1\]; max_restarts=1 within 5 s are spent"
    with pytest.raises(FlowCrashed, match=why) as crashed:
        handle.result(SOON)
    assert crashed.value.cause and crashed.value.cause.reason == {"gave": "up", "n": 7}
    with pytest.raises(FlowNotRunning, match=why):
        handle.get_state()


class Unreadable:
    """Loads in the worker, and raises here."""

    def __reduce__(self) -> Any:
        return eval, ("__import__('threading').current_thread().name.startswith('caravela-super') and 1 / 0",)


def test_the_loop_decodes_no_reason(supervise: Supervise) -> None:
    made = flow("hostile", run(lambda _: Error(Unreadable())), initial_state={})
    handle = supervise(max_restarts=1).start(made, restart="permanent", wait=False)
    end = handle.wait(SOON)
    assert isinstance(end, FlowError) and end.reason.reason is False
