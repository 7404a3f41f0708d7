"""G5: nothing is lost where a signal and a body overlap."""

import threading
from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest
from flows_under_test import State, append, bump, idle, is_done, put, work, working
from gates import pass_gate
from listening import SOON, states, until

from caravela import (
    Error,
    FlowBusy,
    FlowDone,
    FlowError,
    FlowHandle,
    FlowState,
    FlowTimeout,
    Ok,
    Retry,
    SignalFailed,
    SignalRejected,
    StepTimedOut,
    Supervisor,
    each,
    flow,
    parallel,
    race,
    run,
    set_state,
    wait_until,
)
from caravela.protocol import functions

Gates = Callable[..., Any]


def start(supervisor: Supervisor, gate: Gates, *steps: Any, **state: Any) -> FlowHandle:
    """A flow whose body stands at its gate."""
    made = flow("overlap", *steps, wait_until(is_done))
    handle = supervisor.start(made, initial_state={"gate": gate().path, "n": 0, "items": [], **state})
    gate().meet()
    return handle


def append_body(state: State) -> Ok:
    pass_gate(state["gate"])
    return Ok(append(state, "body"))


def test_a_signal_is_visible_at_once_and_replayed_on_what_the_body_returns(supervisor: Supervisor, gate: Gates) -> None:
    handle = start(supervisor, gate, run(append_body))
    events = handle.subscribe()
    handle.signal(append, "a")
    handle.signal(append, "b")
    assert handle.get_state()["items"] == ["a", "b"]
    gate().open()
    came = until(events, FlowState, count=3)
    assert [state["items"] for state in states(came)] == [["a"], ["a", "b"], ["body", "a", "b"]]


def take_all(state: State, items: list[str]) -> State:
    while items:
        state["items"].append(items.pop())
    return state


def test_a_replay_finds_the_arguments_as_they_came(supervisor: Supervisor, gate: Gates) -> None:
    handle = start(supervisor, gate, run(append_body))
    assert handle.update(take_all, ["b", "a"])["items"] == ["a", "b"]
    gate().open()
    handle.signal(put, "done", True)
    assert handle.result(SOON)["items"] == ["body", "a", "b"]


def test_a_replay_finds_what_the_worker_was_told_to_forget(
    supervisor: Supervisor, gate: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def adding(item: int) -> Callable[[State], State]:
        class Step:
            adds = item

        return lambda state: append(state, Step.adds)

    monkeypatch.setattr(functions, "NUMBERED", 1)
    handle = start(supervisor, gate, run(append_body))
    steps = [adding(n) for n in range(3)]  # inline, the classes are the host's own: it must keep them
    for step in steps:
        handle.signal(step)
    assert handle.get_state()["items"] == [0, 1, 2]
    gate().open()
    handle.signal(put, "done", True)
    assert handle.result(SOON)["items"] == ["body", 0, 1, 2]


def test_an_imported_flow_works_alike(supervisor: Supervisor, gate: Gates) -> None:
    handle = supervisor.start(working, initial_state={"gate": gate().path, "n": 0})
    gate().meet()
    handle.signal(bump)
    gate().open()
    assert handle.result(SOON) == {"gate": gate().path, "n": 1, "worked": True}


def once_more(state: State) -> Ok | Retry:
    if state["n"] >= 100:
        return Ok()
    pass_gate(state["gate"])
    return Retry(state | {"n": 100})


def test_a_retry_is_rebased_too(supervisor: Supervisor, gate: Gates) -> None:
    handle = start(supervisor, gate, run(once_more, retries=1, base_delay=0))
    events = handle.subscribe()
    handle.signal(bump)
    handle.get_state()
    gate().open()
    assert [state["n"] for state in states(until(events, FlowState, count=2))] == [1, 101]
    assert handle.get_state()["n"] == 101


def bring(state: State) -> Any:
    pass_gate(state["gate"])
    state["n"] = -1
    match state["how"]:
        case "None":
            return None
        case "Ok":
            return Ok()
        case "Error":
            return Error("as told")
        case "raise":
            raise ValueError("as told")


@pytest.mark.parametrize("how", ["None", "Ok", "Error", "raise"])
def test_a_body_that_brings_no_state_leaves_the_visible_one(supervisor: Supervisor, gate: Gates, how: str) -> None:
    handle = start(supervisor, gate, run(bring), how=how)
    events = handle.subscribe()
    handle.signal(bump)
    handle.signal(bump)
    gate().open()
    if how in ("Error", "raise"):
        assert isinstance(handle.wait(SOON), FlowError)
    else:
        handle.signal(put, "done", True)
        assert isinstance(handle.wait(SOON), FlowDone)
    assert handle.last_state["n"] == 2
    assert [state["n"] for state in states(until(events))][:2] == [1, 2]


def test_a_body_that_is_late_leaves_the_visible_state(supervisor: Supervisor, gate: Gates) -> None:
    handle = start(supervisor, gate, run(work, timeout=300))
    events = handle.subscribe()
    handle.signal(bump)
    end = until(events)[-1]
    assert isinstance(end, FlowError) and isinstance(end.reason, StepTimedOut)
    assert handle.last_state == {"gate": gate().path, "n": 1, "items": []}


# ------------------------------------------------------------------ verdicts


def needs_key(state: State) -> State:
    return state | {"n": state["key"] + 1}


def lose_key(state: State) -> Ok:
    pass_gate(state["gate"])
    return Ok({key: value for key, value in state.items() if key != "key"})


def gain_key(state: State) -> Ok:
    pass_gate(state["gate"])
    return Ok(state | {"key": 10})


def test_one_that_works_only_before_the_replay_is_rejected_late(supervisor: Supervisor, gate: Gates) -> None:
    handle = start(supervisor, gate, run(lose_key), key=10)
    events = handle.subscribe((SignalRejected, FlowState))
    handle.signal(needs_key)
    assert handle.get_state()["n"] == 11
    gate().open()
    came = until(events, SignalRejected)
    assert came[-1].late and came[-1].error.type == "KeyError"
    assert until(events, FlowState)[-1].state["n"] == 0
    assert "key" not in handle.get_state()


def test_one_that_works_only_at_the_replay_counts_as_applied(supervisor: Supervisor, gate: Gates) -> None:
    handle = start(supervisor, gate, run(gain_key))
    events = handle.subscribe((SignalRejected, FlowState))
    handle.signal(needs_key)
    assert handle.get_state()["n"] == 0
    gate().open()
    assert [type(event) for event in until(events, FlowState)] == [FlowState]
    assert handle.get_state()["n"] == 11


def test_one_that_works_never_is_rejected_once(supervisor: Supervisor, gate: Gates) -> None:
    for body in (append_body, bring):
        name = body.__name__
        made = flow(name, run(body), wait_until(is_done))
        state = {"gate": gate(name).path, "n": 0, "items": [], "how": "Ok"}
        handle = supervisor.start(made, initial_state=state)
        events = handle.subscribe((SignalRejected, FlowDone))
        gate(name).meet()
        handle.signal(needs_key)
        handle.get_state()
        gate(name).open()
        assert until(events, SignalRejected)[-1].late
        handle.signal(put, "done", True)
        assert isinstance(until(events)[0], FlowDone)


def test_an_update_is_answered_at_its_first_success(supervisor: Supervisor, gate: Gates) -> None:
    handle = start(supervisor, gate, run(append_body))
    assert handle.update(append, "now")["items"] == ["now"]
    gate().open()
    handle.signal(put, "done", True)
    assert handle.result(SOON)["items"] == ["body", "now"]


@pytest.mark.parametrize(("body", "works"), [(gain_key, True), (append_body, False), (bring, False)])
def test_an_update_that_raises_meanwhile_is_answered_at_the_replay(
    supervisor: Supervisor, gate: Gates, body: Any, works: bool
) -> None:
    handle = start(supervisor, gate, run(body), how="Ok")
    answers: list[Any] = []

    def update() -> None:
        try:
            answers.append(handle.update(needs_key))
        except SignalFailed as error:
            answers.append(error)

    thread = threading.Thread(target=update)
    thread.start()
    with pytest.raises(FlowTimeout):
        handle.update(needs_key, timeout=0.05)
    assert thread.is_alive()
    gate().open()
    thread.join(SOON)
    if works:
        assert answers[0]["n"] == 11
    else:
        assert answers[0].remote.type == "KeyError"


# ------------------------------------------------------------------ the other steps


def standing(state: State) -> list[Callable[[], Any]]:
    path = state["gate"]

    def task() -> str:
        pass_gate(path)
        return "done"

    return [task]


@pytest.mark.parametrize("step", [parallel(standing, "key"), race(standing, "key")], ids=["parallel", "race"])
def test_parallel_and_race_set_only_their_key(supervisor: Supervisor, gate: Gates, step: Any) -> None:
    handle = start(supervisor, gate, step)
    events = handle.subscribe()
    handle.signal(bump)
    handle.signal(put, "key", "overwritten")
    assert handle.get_state()["n"] == 1
    gate().open()
    assert until(events, FlowState, count=3)[-1].state["key"] in ("done", ["done"])
    assert handle.get_state()["n"] == 1


def take_item(item: str, state: State) -> Ok:
    if item == "first":
        pass_gate(state["gate"])
    return Ok(append(state, item))


def test_each_walks_a_snapshot_and_rebases_per_item(supervisor: Supervisor, gate: Gates) -> None:
    handle = start(supervisor, gate, each("todo", take_item), todo=["first", "second"])
    events = handle.subscribe()
    handle.signal(put, "todo", ["others"])
    handle.signal(append, "signal")
    handle.get_state()
    gate().open()
    handle.signal(put, "done", True)
    assert handle.result(SOON)["items"] == ["first", "signal", "second"]
    announced = [items for items, _ in groupby(state["items"] for state in states(until(events)))]
    assert announced == [[], ["signal"], ["first", "signal"], ["first", "signal", "second"]]


# ------------------------------------------------------------------ the log is bounded


def test_beyond_the_log_the_worker_reads_no_more_until_the_body_ends(supervisor: Supervisor, gate: Gates) -> None:
    handle = start(supervisor, gate, run(append_body))
    for _ in range(9_999):
        handle.signal(bump)
    assert handle.get_state(timeout=SOON)["n"] == 9_999
    handle.signal(bump)
    handle.signal(bump)
    with pytest.raises(FlowTimeout, match=r"in run\[0\], attempt 1"):
        handle.get_state(timeout=0.1)
    gate().open()
    assert handle.get_state(timeout=SOON)["n"] == 10_001
    handle.signal(put, "done", True)
    assert handle.result(SOON)["items"] == ["body"]


def test_nothing_is_lost_of_what_the_flow_was_too_busy_for(supervisor: Supervisor, gate: Gates) -> None:
    handle = start(supervisor, gate, run(append_body))
    megabyte = "x" * 2**20
    taken = 0

    def flood() -> None:
        nonlocal taken
        while True:
            handle.signal(append, f"{taken} {megabyte}", timeout=0.1)
            taken += 1

    with pytest.raises(FlowBusy, match=r"flow 'overlap' does not read its signals, [\d,]+ bytes wait: in run\[0\]"):
        flood()
    assert 15 <= taken <= 18
    gate().open()
    handle.signal(put, "done", True, timeout=SOON)
    items = handle.result(SOON)["items"]
    assert [item.partition(" ")[0] for item in items] == ["body", *map(str, range(taken))]


def test_a_set_state_step_sees_what_was_signalled_before(supervisor: Supervisor, gate: Gates) -> None:
    handle = start(supervisor, gate, run(append_body), set_state(lambda state: state | {"seen": state["n"]}))
    handle.update(bump)
    gate().open()
    handle.signal(put, "done", True)
    assert handle.result(SOON)["seen"] == 1


def test_idle_flows_log_nothing(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    for _ in range(12_000):
        handle.signal(bump)
    assert handle.get_state(timeout=SOON)["n"] == 12_000
