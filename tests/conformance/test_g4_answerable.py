"""G4: ``get_state``, ``signal``, ``update`` and ``stop`` are served whatever the flow does."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from flows_under_test import State, bump, hold, idle, is_done
from gates import pass_gate
from listening import SOON, until

from caravela import (
    Error,
    FlowState,
    FlowStopped,
    FlowTimeout,
    Ok,
    Supervisor,
    debounce,
    each,
    flow,
    parallel,
    race,
    repeat,
    run,
    set_state,
    stopping,
    wait,
    wait_until,
)
from caravela.supervisor.events import StepEntered


def fail(state: State) -> Error:
    return Error("as told")


def compute(state: State) -> Ok:
    """Keeps the interpreter busy until its result is not wanted."""
    while not stopping():
        pass
    return Ok(state)


async def compute_async(state: State) -> None:
    await asyncio.Event().wait()


def stand(state: State) -> None:
    pass_gate(state["gate"])


def stand_with(_item: Any, state: State) -> None:
    pass_gate(state["gate"])


def standing(state: State) -> list[Callable[[], Any]]:
    return [partial(pass_gate, state["gate"])] * 2


WAITING = {
    "wait": wait(600_000),
    "wait_until": wait_until(is_done),
    "debounce": debounce(600_000),
    "backoff": run(fail, retries=1, base_delay=600_000),
    "thread at a gate": run(stand),
    "thread that computes": run(compute),
    "async def": run(compute_async),
    "parallel": parallel(standing),
    "race": race(standing),
    "each": each("todo", stand_with),
    "spinning repeat": repeat(wait(0)),
    "repeat of set_state": repeat(set_state(dict)),
}


@pytest.mark.parametrize("step", WAITING.values(), ids=WAITING)
def test_everything_is_served_meanwhile(
    supervise: Callable[..., Supervisor], gate: Callable[..., Any], step: Any
) -> None:
    supervisor = supervise(shutdown=0.1)
    state = {"n": 0, "todo": [1, 2], "gate": gate().path}
    handle = supervisor.start(flow("busy", repeat(step)), initial_state=state)
    if "gate" in repr(step) or step in (WAITING["parallel"], WAITING["race"], WAITING["each"]):
        gate().meet()
    handle.signal(bump)
    assert handle.get_state()["n"] == 1
    assert handle.update(bump)["n"] == 2
    assert handle.last_state["n"] == 2
    end = handle.stop(SOON)
    assert isinstance(end, FlowStopped) and end.state["n"] == 2


def test_every_change_of_a_spinning_flow_can_be_listened_to(supervisor: Supervisor) -> None:
    handle = supervisor.start(flow("spinning", repeat(set_state(bump))), initial_state={"n": 0})
    events = handle.subscribe(maxsize=5)
    first = handle.get_state()["n"]
    while handle.get_state()["n"] == first:  # two questions may meet in one turn, when its pipe was full before
        pass
    handle.stop(SOON)
    assert isinstance(until(events)[-1], FlowStopped)


def tidy(state: State) -> Ok:
    pass_gate(state["gate"])
    while not stopping():
        threading.Event().wait(0.001)  # stands for work
    return Ok(state | {"tidy": True})


async def tidy_async(state: State) -> Ok:
    try:
        await asyncio.to_thread(pass_gate, state["gate"])
        await asyncio.Event().wait()
    finally:
        return Ok(state | {"tidy": True})  # noqa: B012 - the cancellation is what it waits for


@pytest.mark.parametrize("body", [tidy, tidy_async])
def test_what_a_body_brings_home_within_the_grace_counts(
    supervisor: Supervisor, gate: Callable[..., Any], body: Any
) -> None:
    handle = supervisor.start(flow("tidy", run(body)), initial_state={"gate": gate().path, "n": 0})
    gate().open()
    handle.update(bump)
    end = handle.stop(SOON)
    assert isinstance(end, FlowStopped)
    assert end.state == {"gate": gate().path, "n": 1, "tidy": True}


def test_a_signal_that_takes_its_time_is_named(supervisor: Supervisor, gate: Callable[..., Any]) -> None:
    handle = supervisor.start(flow("held", repeat(wait_until(is_done))), initial_state={"n": 0})
    handle.signal(bump)
    handle.signal(hold, gate().path)
    gate().meet()
    with pytest.raises(FlowTimeout) as failed:
        handle.get_state(timeout=0.05)
    assert str(failed.value) == (
        "get_state of flow 'held' not answered within 0.05 s: in repeat/wait_until, attempt 1, applying signal 2"
    )
    with pytest.raises(FlowTimeout, match="update of flow 'held'"):
        handle.update(bump, timeout=0.05)
    assert handle.last_state == {"n": 0}
    gate().open()
    assert handle.get_state()["n"] in (1, 2)


def hold_predicate(state: State) -> bool:
    pass_gate(state["gate"])
    return False


def test_a_predicate_that_takes_its_time_is_named(supervisor: Supervisor, gate: Callable[..., Any]) -> None:
    made = flow("held", wait(1), repeat(wait_until(hold_predicate)))
    handle = supervisor.start(made, initial_state={"gate": gate().path})
    gate().meet()
    with pytest.raises(FlowTimeout, match=r"in repeat\[1\]/wait_until"):
        handle.get_state(timeout=0.05)
    assert handle.last_state == {"gate": gate().path}


@pytest.mark.parametrize("engine", ["process"], indirect=True)
def test_stop_ends_what_does_not_answer(supervise: Callable[..., Supervisor], gate: Callable[..., Any]) -> None:
    handle = supervise(shutdown=0.05).start(idle)
    handle.signal(hold, gate().path)
    gate().meet()
    with pytest.raises(FlowTimeout, match="stop of flow 'idle'"):
        handle.stop(0.01)
    end = handle.stop(SOON)
    assert isinstance(end, FlowStopped) and end.state == {"n": 0, "items": []}


def take_60_ms(state: State) -> State:
    time.sleep(0.06)  # stands for work
    return bump(state)


def test_what_holds_up_the_worker_is_logged(supervisor: Supervisor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    events = supervisor.subscribe((FlowState,))
    handle = supervisor.start(flow("slow", set_state(take_60_ms), wait_until(is_done)), initial_state={"n": 0})
    until(events, FlowState)
    handle.update(take_60_ms)
    texts = [record.message for record in caplog.records if record.name == "caravela.worker"]
    assert len(texts) == 2, texts
    assert "set_state[0]" in texts[0] and "wait_until[1]" in texts[1]
    assert all("was held up for" in text for text in texts)


def test_steps_are_told_to_who_asks(supervisor: Supervisor) -> None:
    handle = supervisor.start(flow("steps", wait_until(is_done), run(fail, retries=1, base_delay=0)))
    events = handle.subscribe((StepEntered,))
    handle.get_state()
    handle.signal(lambda state: state | {"done": True})
    handle.wait(SOON)
    events.close()
    entered = [(event.path, event.attempt) for event in events if isinstance(event, StepEntered)]
    assert entered[-2:] == [("run[1]", 1), ("run[1]", 2)]
