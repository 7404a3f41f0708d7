"""G6: a flow's input is one FIFO over all threads; only ``stop`` overtakes."""

import os
import queue
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from flows_under_test import State, append, bump, hold, idle, put
from listening import SOON

from caravela import FlowDone, FlowNotRunning, FlowStopped, Supervisor, debounce, flow, repeat, set_state, wait


def test_a_signal_that_returned_is_seen_by_every_later_get_state(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    for number in range(1, 201):
        handle.signal(bump)
        assert handle.get_state()["n"] == number


def test_also_by_those_of_other_threads(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    turns: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    seen: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()

    def look() -> None:
        while (number := turns.get()) is not None:
            seen.put((number, handle.get_state()["n"]))

    readers = [threading.Thread(target=look) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(1, 201):
        handle.signal(bump)
        turns.put(number)
    for _ in readers:
        turns.put(None)
    for reader in readers:
        reader.join(SOON)
    for _ in range(200):
        sent, found = seen.get(timeout=SOON)
        assert found >= sent


def test_updates_and_signals_keep_their_order(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    for number in range(0, 100, 2):
        handle.signal(append, number)
        assert handle.update(append, number + 1)["items"][-2:] == [number, number + 1]
    assert handle.get_state()["items"] == list(range(100))


@pytest.mark.parametrize("engine", ["process"], indirect=True)
def test_stop_overtakes_what_is_not_yet_written(supervisor: Supervisor) -> None:
    """A process that does not read: its pipe fills, the rest waits here."""
    handle = supervisor.start(idle)
    assert handle.pid
    os.kill(handle.pid, signal.SIGSTOP)
    for number in range(100):
        handle.signal(append, f"{number} {'x' * 10_000}")
    stopper = threading.Thread(target=handle.stop)
    stopper.start()
    while handle.status != "stopping":
        pass
    os.kill(handle.pid, signal.SIGCONT)
    end = handle.wait(SOON)
    stopper.join(SOON)
    assert isinstance(end, FlowStopped)
    items = [item.partition(" ")[0] for item in end.state["items"]]
    assert 0 < len(items) < 20
    assert items == list(map(str, range(len(items))))


def mark(state: State) -> State:
    return append(state, "settled")


def test_a_signal_beats_the_debounce_that_ends_at_the_same_moment(
    supervisor: Supervisor, gate: Callable[..., Any]
) -> None:
    """The loop is held up over the deadline; when it looks again, both the deadline and a signal are there."""
    made = flow("settling", debounce(50), set_state(mark))
    handle = supervisor.start(made, initial_state={"items": []})
    handle.signal(hold, gate().path)
    gate().meet()
    handle.signal(append, "signal")
    # As long a wait that begins later: when this flow is done, the other one's time is over.
    supervisor.start(flow("as_long", wait(50)), initial_state={}).result(SOON)
    gate().open()
    assert handle.result(SOON)["items"] == ["signal", "settled"]


def test_a_flood_does_not_starve_timers(supervisor: Supervisor) -> None:
    handle = supervisor.start(flow("timed", wait(30), set_state(mark)), initial_state={"items": [], "n": 0})
    sent = 0
    with suppress(FlowNotRunning):
        while True:
            handle.signal(bump)
            sent += 1
    end = handle.wait(SOON)
    assert isinstance(end, FlowDone) and end.state["items"] == ["settled"]
    assert 0 < end.state["n"] <= sent


def test_a_flood_is_served_although_the_flow_spins(supervisor: Supervisor) -> None:
    handle = supervisor.start(flow("spinning", repeat(wait(0))), initial_state={"n": 0})
    for _ in range(2_000):
        handle.signal(bump)
    assert handle.update(put, "end", True) == {"n": 2_000, "end": True}
