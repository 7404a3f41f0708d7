"""Calls in the caller's thread, where a Ctrl-C may come at any moment: it ends the call, and nothing else."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from caravela import FlowState, Supervisor, flow, repeat, wait_until

Interrupted = Callable[[int, Callable[[], object]], bool]

idle = flow("idle", repeat(wait_until(lambda s: False)), initial_state={"n": 0})


def bump(state: dict[str, int]) -> dict[str, int]:
    return {"n": state["n"] + 1}


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    with Supervisor(preload=False, shutdown=1.0) as supervisor:
        yield supervisor


@pytest.mark.parametrize("kind", ["update", "get_state", "signal"])
def test_whatever_ctrl_c_interrupts_the_flow_lives_and_answers(
    supervisor: Supervisor, interrupted: Interrupted, kind: str
) -> None:
    handle = supervisor.start(idle)
    call: dict[str, Callable[[], Any]] = {
        "update": lambda: handle.update(bump),
        "get_state": handle.get_state,
        "signal": lambda: handle.signal(bump),
    }
    call[kind]()
    with handle.subscribe() as events:
        moment, known = 0, handle.get_state()["n"]
        while interrupted(moment := moment + 1, call[kind]):
            now = handle.get_state()["n"]
            assert now - known in (0, 1), moment
            known = now
        handle.update(bump)
        assert moment > 20
        assert (handle.incarnation, handle.status) == (1, "running")
        handle.stop(5.0)
        states = {event.seq: event.state["n"] for event in events if isinstance(event, FlowState)}  # some come twice
    assert list(states) == list(range(min(states), min(states) + len(states)))
    assert all(seq == n for seq, n in states.items())
