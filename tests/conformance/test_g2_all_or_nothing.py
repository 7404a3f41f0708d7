"""G2: a signal or an attempt that raises, or returns what cannot be encoded, leaves the state as it was."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from flows_under_test import State, finish, idle, put, refuse
from listening import SOON, states, until

from caravela import (
    Error,
    FlowDone,
    FlowError,
    FlowState,
    LimitExceeded,
    NotPortable,
    Ok,
    Retry,
    SignalFailed,
    SignalRejected,
    StepRaised,
    Supervisor,
    each,
    flow,
    parallel,
    race,
    run,
)


def return_a_lock(state: State) -> State:
    return state | {"n": -1, "lock": threading.Lock()}


def return_nothing(state: State) -> None:
    state["n"] = -1


def return_a_cycle(state: State) -> State:
    state["self"] = state
    return state


def exit_there(state: State) -> State:
    raise SystemExit(3)


def interrupt_there(state: State) -> State:
    raise KeyboardInterrupt


BAD_SIGNALS = [refuse, return_a_lock, return_nothing, return_a_cycle, exit_there, interrupt_there]


@pytest.mark.parametrize("bad", BAD_SIGNALS)
def test_a_bad_signal_changes_and_announces_nothing(supervisor: Supervisor, bad: Callable[..., Any]) -> None:
    handle = supervisor.start(idle)
    events = handle.subscribe((SignalRejected, FlowState, FlowDone))
    before = handle.get_state()
    handle.signal(bad)
    with pytest.raises(SignalFailed):
        handle.update(bad)
    assert handle.get_state() == before
    handle.signal(finish)
    came = until(events)
    assert [type(event).__name__ for event in came] == ["SignalRejected", "FlowState", "FlowDone"]
    assert came[0].late is False
    assert states(came) == [before | {"done": True}]
    assert handle.incarnation == 1


def attempt(state: State) -> Any:
    """Every attempt but the last one spoils its copy; the last one tells what it found."""
    if state["tries"] == 0:
        return Retry(state | {"tries": 1})
    state["n"] = -1
    match state["how"]:
        case "raise":
            raise ValueError("as told")
        case "lock":
            return Ok(state | {"lock": threading.Lock()})
        case "cycle":
            return Retry(return_a_cycle(state))
        case "error":
            return Error("as told")


@pytest.mark.parametrize(
    ("how", "reason"),
    [("raise", StepRaised), ("lock", NotPortable), ("cycle", LimitExceeded), ("error", str)],
)
def test_a_failing_attempt_changes_nothing(supervisor: Supervisor, how: str, reason: type) -> None:
    made = flow("trying", run(attempt, retries=2, base_delay=0))
    handle = supervisor.start(made, initial_state={"n": 0, "tries": 0, "how": how})
    events = handle.subscribe()
    end = handle.wait(SOON)
    assert isinstance(end, FlowError) and isinstance(end.reason, reason)
    assert states(until(events)) in ([], [{"n": 0, "tries": 1, "how": how}])
    assert handle.last_state["n"] == 0


def failing_item(item: Any, state: State) -> Any:
    state["n"] += 1
    if item == "lock":
        return Ok(state | {"lock": threading.Lock()})
    if item == "raise":
        raise ValueError("as told")
    return Ok(state)


@pytest.mark.parametrize("bad", ["lock", "raise"])
def test_a_failing_item_leaves_what_those_before_it_made(supervisor: Supervisor, bad: str) -> None:
    state = {"n": 0, "items": ["fine", "fine", bad, "never"]}
    inbox = supervisor.subscribe((FlowState, FlowError))
    handle = supervisor.start(flow("items", each("items", failing_item)), initial_state=state)
    came = until(inbox)
    assert [each["n"] for each in states(came)] == [1, 2]
    assert isinstance(came[-1], FlowError)
    assert handle.last_state == state | {"n": 2}


def a_lock() -> Any:
    return threading.Lock()


def locks(_state: State) -> list[Any]:
    return [a_lock, int]


@pytest.mark.parametrize(
    ("step", "reason"),
    [(parallel(locks), NotPortable), (race([a_lock], "items"), Exception)],
    ids=["parallel", "race"],
)
def test_results_that_cannot_be_kept_change_nothing(supervisor: Supervisor, step: Any, reason: type) -> None:
    handle = supervisor.start(flow("several", step), initial_state={"n": 0})
    end = handle.wait(SOON)
    assert isinstance(end, FlowError) and isinstance(end.reason, reason)
    assert handle.last_state == {"n": 0}


def test_a_refused_signal_is_followed_by_good_ones(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    for number in range(20):
        handle.signal(refuse)
        handle.signal(put, number, number)
    assert handle.get_state() == {"n": 0, "items": []} | {number: number for number in range(20)}
