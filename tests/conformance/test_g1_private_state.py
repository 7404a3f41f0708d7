"""G1: a user function changes the flow's state only through what it returns, as if it had its own copy."""

import queue
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from flows_under_test import State, append, finish, idle, is_done, put
from gates import pass_gate
from listening import SOON, states, until

from caravela import (
    FlowDone,
    FlowError,
    FlowRestarted,
    FlowState,
    Ok,
    SignalFailed,
    Supervisor,
    each,
    flow,
    parallel,
    race,
    run,
    set_state,
    wait_until,
)

START: State = {"items": [[1], [2]], "deep": {"list": [0]}}


def spoil(state: State) -> State:
    """What nobody may notice."""
    state["items"][0].append("!")
    state["deep"]["list"].clear()
    state["extra"] = True
    return state


def spoil_and_say_nothing(state: State) -> None:
    spoil(state)


def spoil_and_pass(state: State) -> Ok:
    spoil(state)
    return Ok()


def spoil_and_agree(state: State) -> bool:
    return bool(spoil(state))


def spoil_and_skip(item: Any, state: State) -> None:
    item.append("!")
    spoil(state)


def spoil_and_build(state: State) -> list[Callable[[], Any]]:
    spoil(state)
    return [partial(len, spoil(state))]


@pytest.mark.parametrize(
    "step",
    [
        run(spoil_and_say_nothing),
        run(spoil_and_pass),
        wait_until(spoil_and_agree),
        each("items", spoil_and_skip),
    ],
    ids=["run returning None", "run returning Ok()", "wait_until", "each"],
)
def test_what_a_step_changes_in_place_no_other_step_sees(supervisor: Supervisor, step: Any) -> None:
    handle = supervisor.start(flow("spoilt", step, wait_until(is_same)), initial_state=START)
    assert handle.result(SOON) == START


def is_same(state: State) -> bool:
    return state == START


@pytest.mark.parametrize("step", [parallel(spoil_and_build, "key"), race(spoil_and_build, "key")], ids=type)
def test_builders_and_their_tasks_change_only_their_key(supervisor: Supervisor, step: Any) -> None:
    state = supervisor.start(flow("spoilt", step), initial_state=START).result(SOON)
    assert state.pop("key") in (3, [3])
    assert state == START


def spoil_and_raise(state: State) -> Ok:
    """Its second attempt would see what the first one did."""
    if state != START:
        return Ok(state | {"leaked": True})
    spoil(state)
    raise RuntimeError("once more")


def test_a_retry_does_not_see_what_the_last_attempt_did(supervisor: Supervisor) -> None:
    made = flow("retried", run(spoil_and_raise, retries=2, base_delay=0))
    handle = supervisor.start(made, initial_state=START)
    event = handle.wait(SOON)
    assert isinstance(event, FlowError) and event.reason.attempt == 3
    assert handle.last_state == START


KEPT: list[Any] = []


def keep(state: State) -> Ok:
    KEPT.append(state)
    return Ok(state)


def spoil_what_was_kept(state: State) -> State:
    spoil(KEPT.pop())
    return state


def test_what_a_body_keeps_after_it_returned_is_no_longer_the_state(supervisor: Supervisor) -> None:
    made = flow("kept", run(keep), set_state(spoil_what_was_kept))
    assert supervisor.start(made, initial_state=START).result(SOON) == START


def spoil_and_refuse(state: State) -> State:
    spoil(state)
    raise ValueError("no")


def test_a_signal_that_raises_leaves_nothing_behind(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle, initial_state=START)
    with pytest.raises(SignalFailed):
        handle.update(spoil_and_refuse)
    assert handle.get_state() == START


def test_every_reader_has_a_copy_of_its_own(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle, initial_state=START)
    reads: list[Callable[[], Any]] = [
        handle.get_state,
        lambda: handle.last_state,
        lambda: handle.update(put, "deep", {"list": [0]}),
    ]
    for read in reads:
        spoil(read())
        assert handle.get_state() == handle.last_state == START


def test_every_subscriber_has_a_copy_of_its_own(supervisor: Supervisor) -> None:
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    everybody = supervisor.subscribe()
    handle = supervisor.start(idle, initial_state={"items": []}, notify=inbox)
    own = handle.subscribe()
    handle.signal(append, [1])
    handle.signal(finish)
    expected = [{"items": [[1]]}, {"items": [[1]], "done": True}]
    for source in (inbox, own, everybody):
        events = until(source)
        assert states(events) == expected
        assert events[-1] == handle.wait()
        for event in events:
            event.state["items"].append("!")
    assert handle.result() == expected[-1]


def test_who_asks_how_it_ended_has_a_copy_of_its_own(supervisor: Supervisor) -> None:
    handle = supervisor.start(flow("short"), initial_state=START)
    spoil(handle.result(SOON))
    event = handle.wait()
    assert isinstance(event, FlowDone)
    spoil(event.state)
    assert handle.result() == START


nested = flow("nested", run(spoil_and_pass), wait_until(is_done), initial_state={"items": [[1]], "deep": {"list": [0]}})


def test_the_flow_itself_does_not_change(supervisor: Supervisor) -> None:
    for _ in range(2):
        handle = supervisor.start(nested)
        assert handle.update(finish) == {"items": [[1]], "deep": {"list": [0]}, "done": True}
        handle.wait(SOON)
    assert nested.initial_state == {"items": [[1]], "deep": {"list": [0]}}


def raise_once_asked(state: State) -> State:
    spoil(state)
    raise RuntimeError("crash")


fragile = flow("fragile", run(spoil_and_pass), wait_until(is_done), set_state(raise_once_asked))


def test_the_next_incarnation_begins_with_what_was_given_to_start(supervisor: Supervisor) -> None:
    given: State = {"items": [[1], [2]], "deep": {"list": [0]}}
    handle = supervisor.start(fragile, initial_state=given)
    restarts = handle.subscribe((FlowRestarted, FlowState))
    spoil(given)
    handle.signal(finish)
    assert until(restarts, FlowRestarted, FlowState, count=3)[-1].state == START
    assert handle.get_state() == START


SHARED: State = {"items": [[1], [2]], "deep": {"list": [0]}}


def always_the_same_object() -> State:
    return SHARED


def test_what_a_factory_returns_is_copied(supervisor: Supervisor) -> None:
    handle = supervisor.start(fragile, initial_state=always_the_same_object)
    restarts = handle.subscribe((FlowRestarted,))
    handle.signal(finish)
    until(restarts, FlowRestarted)
    assert handle.get_state() == START


def spoil_and_pass_gate(state: State) -> Ok:
    spoil(state)
    pass_gate(state["gate"])
    return Ok()


def test_a_reader_does_not_see_what_a_body_does_meanwhile(supervisor: Supervisor, gate: Callable[..., Any]) -> None:
    state = START | {"gate": gate().path}
    handle = supervisor.start(flow("computing", run(spoil_and_pass_gate)), initial_state=state)
    gate().meet()
    assert handle.get_state() == state
    gate().open()
    assert handle.result(SOON) == state
