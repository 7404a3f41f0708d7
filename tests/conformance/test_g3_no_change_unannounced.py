"""G3: equal bytes send nothing, different bytes one ``FlowState``, in order, ``seq`` contiguous in an incarnation."""

import queue
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from flows_under_test import State, append, bump, finish, idle, is_done, put
from gates import pass_gate
from listening import ENDS, SOON, states, until

from caravela import (
    Error,
    FlowDone,
    FlowError,
    FlowRestarted,
    FlowStarted,
    FlowState,
    FlowStopped,
    Ok,
    Retry,
    Skip,
    Supervisor,
    each,
    flow,
    parallel,
    race,
    run,
    set_state,
    wait,
    wait_until,
)


def same(state: State) -> State:
    return dict(state)


def again_until_two(state: State) -> Ok | Retry:
    return Ok(bump(state)) if state["n"] == 2 else Retry(bump(state))


def item(one: Any, state: State) -> Ok | Skip | None:
    match one:
        case "skip":
            return Skip("no")
        case "none":
            return None
        case _:
            return Ok(append(state, one) | {"todo": state["todo"]})


everything = flow(
    "everything",
    set_state(bump),
    set_state(same),
    run(again_until_two, retries=5, base_delay=0),
    each("todo", item),
    parallel(lambda _: [int, str], "several"),
    parallel(lambda _: [int, str], "several"),
    race([int], "first"),
    run(lambda _: None),
    wait_until(is_done),
)


def test_every_change_is_announced_once_and_nothing_else(supervisor: Supervisor) -> None:
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    start = {"n": 0, "items": [], "todo": ["a", "skip", "none", "b"]}
    handle = supervisor.start(everything, initial_state=start, notify=inbox)
    handle.update(lambda state: state)  # changes nothing
    came = until(inbox, FlowState, count=7)
    handle.signal(same)
    handle.signal(finish)
    came += until(inbox)
    changes: list[State] = [
        {"n": 1},
        {"n": 2},
        {"n": 3},
        {"items": ["a"]},
        {"items": ["a", "b"]},
        {"several": [0, ""]},
        {"first": 0},
        {"done": True},
    ]
    expected = [start := start | change for change in changes]
    assert states(came) == expected
    assert [event.seq for event in came] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert came[-1].state == expected[-1]


def test_signals_are_announced_in_their_order(supervisor: Supervisor) -> None:
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    handle = supervisor.start(idle, notify=inbox)
    for _ in range(500):
        handle.signal(bump)
        handle.signal(bump, 0)
    handle.signal(finish)
    came = until(inbox)
    assert [state["n"] for state in states(came)] == [*range(1, 501), 500]
    assert [event.seq for event in came] == list(range(1, 503))


def test_the_initial_state_is_known_but_not_delivered(supervisor: Supervisor) -> None:
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    handle = supervisor.start(idle, notify=inbox)
    assert handle.last_state == {"n": 0, "items": []}
    handle.signal(bump)
    assert inbox.get(timeout=SOON).seq == 1


def crash(state: State) -> State:
    raise RuntimeError("as told")


two_changes = flow("two_changes", set_state(bump), set_state(bump), wait_until(is_done), set_state(crash))


def test_from_the_second_incarnation_on_the_initial_state_is_number_0(supervisor: Supervisor) -> None:
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    handle = supervisor.start(two_changes, initial_state={"n": 0}, notify=inbox)
    for incarnation in (1, 2, 3):
        came = until(inbox, FlowState, count=2 if incarnation == 1 else 3)
        assert [event.incarnation for event in came] == [incarnation] * len(came)
        assert [(event.seq, event.state["n"]) for event in came] == [(0, 0), (1, 1), (2, 2)][-len(came) :]
        handle.signal(finish)
        assert inbox.get(timeout=SOON).seq == 3


def announce(state: State) -> State:
    pass_gate(state["gate"])
    return state | {"late": True}


quick_to_change = flow("quick_to_change", set_state(bump), wait(1), set_state(announce), wait_until(is_done))


def test_states_that_came_with_the_readiness_stay_behind_it(supervisor: Supervisor, gate: Callable[..., Any]) -> None:
    """The loop is held up until more than the readiness stands in the worker's pipe."""
    supervisor.start(idle)  # whatever an engine has to prepare is done
    events = supervisor.subscribe((FlowStarted, FlowState))
    handle = supervisor.start(quick_to_change, initial_state={"n": 0, "gate": gate().path}, wait=False)
    assert supervisor._household
    supervisor._household.loop.post(gate().open)
    came = until(events, FlowState, count=2)
    assert [type(event) for event in came] == [FlowStarted, FlowState, FlowState]
    assert [event.seq for event in came] == [0, 1, 2]
    assert handle.last_state["late"]


@pytest.mark.parametrize("end", ["done", "failed", "stopped"])
def test_the_terminal_event_has_the_next_number(supervisor: Supervisor, end: str) -> None:
    last = run(lambda _: Error("as told")) if end == "failed" else set_state(same)
    handle = supervisor.start(flow("ending", wait_until(is_done), last), initial_state={"n": 0})
    events = handle.subscribe()
    handle.signal(bump)
    if end == "stopped":
        handle.get_state()
        handle.stop()
    else:
        handle.signal(finish)
    came = until(events)
    assert [event.seq for event in came] == list(range(1, len(came) + 1))
    kinds: dict[str, type] = {"done": FlowDone, "failed": FlowError, "stopped": FlowStopped}
    assert isinstance(came[-1], kinds[end]) and len([event for event in came if isinstance(event, ENDS)]) == 1


def test_other_events_repeat_the_last_number(supervisor: Supervisor) -> None:
    handle = supervisor.start(two_changes, initial_state={"n": 0}, wait=False)
    events = handle.subscribe((FlowStarted, FlowState, FlowRestarted))
    handle.signal(finish)
    came = until(events, FlowRestarted)
    came += until(events, FlowState)
    for before, event in pairwise(came):
        if isinstance(event, FlowRestarted):
            assert (event.seq, event.incarnation) == (0, before.incarnation + 1)


def test_who_listens_later_sees_all_that_changes_from_then_on(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    handle.update(put, "before", 1)
    events = handle.subscribe()
    for _ in range(10):
        handle.signal(bump)
    came = until(events, FlowState, count=10)
    assert [event.seq for event in came] == list(range(2, 12))
    assert [state["n"] for state in states(came)] == list(range(1, 11))
    assert all(state["before"] == 1 for state in states(came))
