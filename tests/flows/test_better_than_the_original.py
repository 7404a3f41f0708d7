"""Where the original runtime failed its own documentation, seven cases by name.

``tests/defects`` puts each of its defects back, one at a time, and runs these.
"""

import os
import signal
from typing import Any

from caravela import Supervisor
from caravela.flows import Ok, debounce, flow, race, run, set_state, wait_until
from caravela.supervisor.events import FlowDone, FlowError, FlowRestarted, FlowState, SignalRejected
from caravela.testing import simulate, takes


def set_key(state: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    return state | {key: value}


def mark(state: dict[str, Any]) -> dict[str, Any]:
    return state | {"settled": True}


def test_debounce_begins_anew_with_every_signal() -> None:
    """The original's fired after 200 ms although it was signalled every 80."""
    sim = simulate(flow("settle", debounce(200), set_state(mark)))
    for number in range(10):
        sim.advance(80)
        sim.signal(set_key, "n", number)
    assert sim.now == 800 and "settled" not in sim.state
    sim.advance(199)
    assert "settled" not in sim.state
    sim.advance(1)
    assert sim.state["settled"]


def test_the_timer_of_a_past_debounce_never_cuts_a_later_one() -> None:
    """The first one was set to end at 900 ms when ``max_wait`` ended it; the second one still waits its 500."""
    sim = simulate(flow("settle", debounce(500, max_wait=600), set_state(mark), debounce(500)))
    sim.advance(400)
    sim.signal(set_key, "n", 1)
    while "settled" not in sim.state:
        sim.advance(1)
    sim.advance(499)
    assert not sim.done
    sim.advance(1)
    assert sim.done


def quick() -> str:
    return "quick"


def slow() -> str:
    return "slow"


def test_race_keeps_the_quick_one_at_its_moment() -> None:
    """The original's took 1,003 ms for 10 and 1,000 ms, and kept the slow one."""
    sim = simulate(flow("race", race([slow, quick])), bodies={slow: takes(1000), quick: takes(10)})
    sim.advance(9)
    assert not sim.done
    sim.advance(1)
    assert sim.done and sim.state == {"race_winner": "quick"}
    sim.advance(2000)
    assert sim.state == {"race_winner": "quick"}


def compute(state: dict[str, Any]) -> Ok:
    return Ok(state | {"computed": True})


def test_the_state_is_answered_while_a_body_computes() -> None:
    """The original's ``get_state`` took 801 ms of a ``run`` of 800, and failed after 5 s."""
    sim = simulate(flow("busy", run(compute)), bodies={compute: takes(800)})
    sim.advance(400)
    assert sim.update(set_key, "asked", True) == {"asked": True}
    assert sim.state == {"asked": True} and sim.now == 400
    sim.advance(400)
    assert sim.done and sim.state == {"asked": True, "computed": True}


def broken(state: dict[str, Any]) -> dict[str, Any]:
    return {"n": state["missing"]}


def test_a_signal_that_raises_is_rejected_and_the_flow_lives() -> None:
    """It killed the original's flow."""
    sim = simulate(flow("alive", wait_until(lambda state: state.get("n") == 2)))
    sim.signal(set_key, "n", 1)
    sim.signal(broken)
    assert not sim.done and sim.state == {"n": 1}
    sim.signal(set_key, "n", 2)
    match sim.events:
        case [FlowState({"n": 1}), SignalRejected(error=error, late=False), FlowState({"n": 2}), FlowDone({"n": 2})]:
            assert error is not None and error.type == "KeyError"
        case events:
            raise AssertionError(events)


def never(state: dict[str, Any]) -> bool:
    return "end" in state


FOREVER = flow("forever", wait_until(never), initial_state={})


def test_after_a_restart_the_handle_works() -> None:
    """The original's caller was left with a dead pid."""
    with Supervisor() as supervisor:
        handle = supervisor.start(FOREVER)
        events = handle.subscribe()
        before = handle.pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        restarted = next(event for event in events if isinstance(event, FlowRestarted))
        assert restarted.incarnation == 2
        assert handle.pid != before
        assert handle.update(set_key, "n", 1) == {"n": 1}
        assert handle.get_state() == {"n": 1}
        events.close()


def crash_when_told(state: dict[str, Any]) -> bool:
    if "crash" in state:
        raise RuntimeError("told to")
    return False


BAD = flow("bad", wait_until(crash_when_told), initial_state={"crash": True})


def test_a_flow_that_spends_its_restarts_ends_alone() -> None:
    """One budget for all flows let one bad flow end the others."""
    with Supervisor(max_restarts=1, max_seconds=60.0) as supervisor:
        before = supervisor.start(FOREVER)
        bad = supervisor.start(BAD)
        after = supervisor.start(FOREVER)
        assert isinstance(bad.wait(timeout=5.0), FlowError)
        for handle in (before, after):
            assert handle.status == "running"
            pid = handle.pid
            assert pid is not None
            events = handle.subscribe()
            os.kill(pid, signal.SIGKILL)  # each has its own restart left
            assert next(event for event in events if isinstance(event, FlowRestarted)).incarnation == 2
            assert handle.status == "running"
            events.close()
