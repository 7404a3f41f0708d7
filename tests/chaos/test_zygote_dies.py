"""The zygote is killed: its workers go with it, and all flows that may come back do, at nobody's expense."""

import os
import signal
import threading
from typing import Any

import pytest
from witness import Watch, await_state, parent

from caravela import (
    BootError,
    Cause,
    FlowError,
    FlowRestarted,
    FlowStopped,
    Ok,
    Supervisor,
    flow,
    run,
    wait_until,
)
from caravela.supervisor.engines import process

SOON = 10.0  # seconds that never pass unless something hangs

counter = flow("counter", wait_until(lambda s: False), initial_state=lambda: {"n": 0})


def count(state: Any) -> Any:
    return state | {"n": state["n"] + 1}


def kill_zygote(handle: Any) -> None:
    os.kill(parent(handle.pid), signal.SIGKILL)


def restarts(events: Any, number: int) -> list[FlowRestarted]:
    return [events.get(SOON) for _ in range(number)]


def test_all_workers_go_and_all_flows_come_back_uncharged() -> None:
    with Supervisor(max_restarts=0) as supervisor:
        handles = [supervisor.start(counter) for _ in range(5)]
        events = supervisor.subscribe(kinds=(FlowRestarted, FlowError))
        assert handles[0].update(count) == {"n": 1}
        with Watch(handle.pid for handle in handles) as workers:
            kill_zygote(handles[0])
            assert not workers.left(SOON)
        came = restarts(events, 5)
        assert {event.flow_id for event in came} == {handle.id for handle in handles}
        assert {(event.cause.kind, event.incarnation) for event in came if event.cause} == {("zygote_lost", 2)}
        for handle in handles:  # the same handles, from the first state on
            assert handle.update(count) == {"n": 1}
            assert handle.status == "running" and handle.cause and handle.cause.kind == "zygote_lost"


def test_three_times_in_a_row() -> None:
    with Supervisor(max_restarts=0) as supervisor:
        handles = [supervisor.start(counter) for _ in range(3)]
        events = supervisor.subscribe(kinds=(FlowRestarted, FlowError))
        for incarnation in (2, 3, 4):
            kill_zygote(handles[0])
            assert [event.incarnation for event in restarts(events, 3)] == [incarnation] * 3
        assert [handle.get_state() for handle in handles] == [{"n": 0}] * 3


class Births:
    """Of zygotes; the next so many get a signal as soon as they are born."""

    def __init__(self) -> None:
        self.number = 0
        self._doomed: list[signal.Signals] = []

    def __call__(self, number: int, by: signal.Signals = signal.SIGKILL) -> None:
        self._doomed = [by] * number

    def attend(self, zygote: Any) -> Any:
        self.number += 1
        if self._doomed:
            signal.pidfd_send_signal(zygote.death, self._doomed.pop())
        return zygote


@pytest.fixture
def stillborn(monkeypatch: pytest.MonkeyPatch) -> Births:
    births, spawn = Births(), process.spawn
    monkeypatch.setattr(process, "spawn", lambda *args: births.attend(spawn(*args)))
    return births


def test_ctrl_c_does_not_reach_it_not_even_newly_born(stillborn: Births, capfd: pytest.CaptureFixture[str]) -> None:
    """Until it has a session of its own it is in the terminal's foreground group; the shutdown is the host's alone."""
    stillborn(1, by=signal.SIGINT)
    with Supervisor(max_restarts=0) as supervisor:
        handle = supervisor.start(counter)
        os.kill(parent(handle.pid), signal.SIGINT)
        assert handle.get_state() == {"n": 0}
        assert supervisor.start(counter).get_state() == {"n": 0}
        assert (handle.incarnation, stillborn.number) == (1, 1)
    assert capfd.readouterr().err == ""


def test_its_successors_die_too_before_they_can_speak(stillborn: Births) -> None:
    with Supervisor(max_restarts=0) as supervisor:
        handle = supervisor.start(counter)
        events = handle.subscribe(kinds=(FlowRestarted, FlowError))
        stillborn(process.ZYGOTES - 1)
        kill_zygote(handle)
        assert [event.incarnation for event in restarts(events, 1)] == [2]
        assert handle.get_state() == {"n": 0}


def test_a_machine_on_which_no_zygote_lives_is_a_failed_boot_and_not_a_hot_loop(
    stillborn: Births,
) -> None:
    stillborn(process.ZYGOTES)
    with Supervisor() as supervisor:
        with pytest.raises(BootError, match="zygote ended before it was ready"):
            supervisor.start(counter)
        assert supervisor.start(counter).get_state() == {"n": 0}  # the next one lives


def test_killed_while_flows_start() -> None:
    with Supervisor(max_restarts=0) as supervisor:
        first = supervisor.start(counter)
        handles = [supervisor.start(counter, wait=False) for _ in range(20)]
        with Watch([parent(first.pid), first.pid]) as lost:
            kill_zygote(first)
            assert not lost.left(SOON)
        assert [handle.get_state(SOON) for handle in [first, *handles]] == [{"n": 0}] * 21
        assert all(handle.status == "running" for handle in handles)


def test_killed_while_start_waits() -> None:
    """The request is sent, and nobody knows what became of it."""
    with Supervisor(max_restarts=0) as supervisor:
        other = supervisor.start(counter)
        zygote = parent(other.pid)
        os.kill(zygote, signal.SIGSTOP)
        await_state(zygote, "T")
        started: list[Any] = []
        thread = threading.Thread(target=lambda: started.append(supervisor.start(counter)))
        thread.start()
        os.kill(zygote, signal.SIGKILL)
        thread.join(SOON)
        assert [handle.get_state() for handle in [*started, other]] == [{"n": 0}] * 2


def test_temporary_flows_end_with_the_cause() -> None:
    with Supervisor(restart="temporary") as supervisor:
        handles = [supervisor.start(counter) for _ in range(3)]
        kept = supervisor.start(counter, restart="permanent")
        kill_zygote(kept)
        for handle in handles:
            match handle.wait(SOON):
                case FlowError(Cause() as cause):
                    assert cause.kind == "zygote_lost"
                case other:
                    pytest.fail(f"{other}")
            assert handle.status == "failed"
        assert kept.get_state(SOON) == {"n": 0}
        assert supervisor.count_children() == 1


def test_killed_while_a_flow_stops() -> None:
    hanging = flow("hanging", run(lambda s: threading.Event().wait()))
    with Supervisor(shutdown=30) as supervisor:
        handle = supervisor.start(hanging)
        thread = threading.Thread(target=handle.stop)
        thread.start()
        kill_zygote(handle)
        assert isinstance(handle.wait(SOON), FlowStopped)
        thread.join()


def test_signals_wait_for_the_next_incarnation(stillborn: Births) -> None:
    with Supervisor(max_restarts=0) as supervisor:
        handle = supervisor.start(counter)
        stillborn(1)
        kill_zygote(handle)
        with Watch([handle.pid] if handle.pid else []) as worker:
            assert not worker.left(SOON)
        before = handle.incarnation
        handle.signal(count)
        assert handle.update(count, timeout=SOON)["n"] in (1, 2)
        assert before <= handle.incarnation == 2


def test_a_body_that_holds_the_interpreter_dies_with_it_too() -> None:
    def spin(state: Any) -> Ok:
        import re

        re.match(r"(a+)+$", "a" * 60 + "b")
        return Ok()

    with Supervisor(restart="temporary", shutdown=0.1) as supervisor:
        handle = supervisor.start(flow("spinner", run(spin)))
        with Watch([handle.pid]) as worker:
            kill_zygote(handle)
            assert not worker.left(1.0)
        assert isinstance(handle.wait(SOON), FlowError)
