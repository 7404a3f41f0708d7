"""Steps nest to any depth: also where a flow travels, runs, waits inside, and comes out again."""

from typing import Any

from flows_under_test import bump, finish, is_done, put
from listening import SOON, states, until

from caravela import Supervisor, flow, sequence, set_state, wait_until

LEVELS = 10_000


def arrive(state: Any) -> Any:
    return put(state, "arrived", True)


def come_out(state: Any) -> Any:
    return put(state, "out", True)


def test_ten_thousand_levels_run(supervisor: Supervisor) -> None:
    step: Any = sequence(set_state(arrive), wait_until(is_done))
    for _ in range(LEVELS):
        step = sequence(step)
    events = supervisor.subscribe()
    handle = supervisor.start(flow("deep", step, set_state(come_out)), initial_state={"n": 0})
    assert handle.update(bump, timeout=SOON)["n"] == 1
    handle.signal(finish)
    end = {"n": 1, "arrived": True, "done": True, "out": True}
    assert handle.result(SOON) == end
    assert states(until(events))[-1] == end
