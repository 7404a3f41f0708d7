"""The table "what ends how", end to end; real deaths only where there are processes."""

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from flows_under_test import State, append, bump, finish, hold, idle, is_done
from listening import ENDS, SOON, until

from caravela import (
    BootError,
    Error,
    FlowCrashed,
    FlowDone,
    FlowError,
    FlowFailed,
    FlowHandle,
    FlowRestarted,
    FlowStarted,
    FlowState,
    FlowStopped,
    Retry,
    StepRaised,
    Supervisor,
    flow,
    run,
    set_state,
    wait_until,
)
from caravela.protocol import functions
from caravela.supervisor import restarts
from caravela.supervisor.events import Event

PROCESS = pytest.mark.parametrize("engine", ["process"], indirect=True)
RESTART = pytest.mark.parametrize("restart", ["temporary", "transient", "permanent"])
EVERYTHING: tuple[type[Event], ...] = (FlowStarted, FlowState, FlowRestarted, *ENDS)


@pytest.fixture
def history(supervisor: Supervisor) -> Iterator[Any]:
    """All events of all flows; whatever the test was about, they are in order at its end."""
    subscription = supervisor.subscribe(EVERYTHING, maxsize=100_000)
    seen: list[Any] = []

    class History:
        def until(self, *kinds: type[Event], count: int = 1) -> list[Any]:
            came = until(subscription, *kinds, count=count)
            seen.extend(came)
            return came

    yield History()
    for child in supervisor.children():
        child.stop()
    subscription.close()
    seen.extend(subscription)
    for flow_id in {event.flow_id for event in seen}:
        in_order([event for event in seen if event.flow_id == flow_id])


def in_order(events: list[Any]) -> None:
    """One start, one end, incarnations that increase by one, and numbers that do within each."""
    ends = [event for event in events if isinstance(event, ENDS)]
    assert len(ends) == 1 and events[-1] is ends[0]
    started = [event for event in events if isinstance(event, FlowStarted)]
    assert started == events[:1]
    assert events[0].incarnation == 1 and events[0].pid
    for before, event in pairwise(events):
        if isinstance(event, FlowRestarted):
            assert (event.incarnation, event.seq) == (before.incarnation + 1, 0)
        elif isinstance(before, FlowRestarted):
            assert isinstance(event, FlowState), "the first state of a later incarnation"
            assert (event.incarnation, event.seq) == (before.incarnation, 0)
        else:
            assert (event.incarnation, event.seq) == (before.incarnation, before.seq + 1)


# ------------------------------------------------------------------ ways to end


def complete(state: State) -> State:
    return state


def fail(state: State) -> Error:
    return Error("as told")


def retry_for_ever(state: State) -> Retry:
    return Retry()


def return_nonsense(state: State) -> int:
    return 42


def leave(state: State) -> None:
    sys.exit(9)


def raise_there(state: State) -> State:
    raise ValueError("as told")


def segfault(state: State) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def kill(state: State) -> State:
    os.kill(os.getpid(), signal.SIGKILL)
    return state


def leave_with_0(state: State) -> None:
    os._exit(0)


def leave_with_7(state: State) -> None:
    os._exit(7)


def ending(*steps: Any) -> Any:
    return flow("ending", wait_until(is_done), *steps, initial_state={"n": 0})


FINISHES = ending(set_state(complete))
FAILS = {
    "Error": ending(run(fail)),
    "retries spent": ending(run(retry_for_ever, retries=1, base_delay=0)),
    "InvalidOutcome": ending(run(return_nonsense)),
    "sys.exit in a body": ending(run(leave)),
}
RAISES = {
    "set_state": (ending(set_state(raise_there)), "set_state[1]"),
    "predicate": (ending(wait_until(raise_there)), "wait_until[1]"),
}
DIES = {
    "SIGKILL": (ending(run(kill)), "signal", "SIGKILL"),
    "SIGSEGV": (ending(run(segfault)), "signal", "SIGSEGV"),
    "os._exit(0)": (ending(run(leave_with_0)), "exit", "exit code 0"),
    "os._exit(7)": (ending(run(leave_with_7)), "exit", "exit code 7"),
}


@RESTART
def test_finishing(supervisor: Supervisor, history: Any, restart: Any) -> None:
    handle = supervisor.start(FINISHES, restart=restart)
    handle.signal(bump)
    handle.signal(finish)
    if restart == "permanent":
        restarted = history.until(FlowRestarted)[-1]
        assert (restarted.cause.kind, restarted.cause.detail) == ("ended", "finished")
        assert handle.get_state() == {"n": 0} and handle.incarnation == 2 and handle.cause == restarted.cause
    else:
        assert isinstance(history.until()[-1], FlowDone)
        assert handle.result() == {"n": 1, "done": True}


@RESTART
@pytest.mark.parametrize("how", FAILS)
def test_failing(supervisor: Supervisor, history: Any, restart: Any, how: str) -> None:
    handle = supervisor.start(FAILS[how], restart=restart)
    handle.signal(bump)
    handle.signal(finish)
    if restart == "permanent":
        restarted = history.until(FlowRestarted)[-1]
        assert (restarted.cause.kind, restarted.cause.detail) == ("ended", "failed")
        assert handle.get_state() == {"n": 0}
        return
    assert isinstance(history.until()[-1], FlowError)
    with pytest.raises(FlowFailed) as failed:
        handle.result()
    assert handle.incarnation == 1
    if how == "sys.exit in a body":
        assert isinstance(failed.value.reason, StepRaised) and failed.value.reason.type == "SystemExit"


@RESTART
@pytest.mark.parametrize("where", RAISES)
def test_raising_outside_of_a_body(supervisor: Supervisor, history: Any, restart: Any, where: str) -> None:
    made, path = RAISES[where]
    handle = supervisor.start(made, restart=restart)
    handle.signal(bump)
    handle.signal(finish)
    came = history.until(FlowError if restart == "temporary" else FlowRestarted)[-1]
    cause = came.reason if restart == "temporary" else came.cause
    assert (cause.kind, cause.detail, cause.path) == ("raised", "ValueError: as told", path)
    assert "in raise_there" in cause.error.traceback
    after_a_crash(handle, restart, cause)


@PROCESS
@RESTART
@pytest.mark.parametrize("how", DIES)
def test_dying(supervisor: Supervisor, history: Any, restart: Any, how: str) -> None:
    made, kind, detail = DIES[how]
    handle = supervisor.start(made, restart=restart)
    handle.signal(bump)
    handle.signal(finish)
    came = history.until(FlowError if restart == "temporary" else FlowRestarted)[-1]
    cause = came.reason if restart == "temporary" else came.cause
    assert (cause.kind, cause.detail, cause.path, cause.attempt) == (kind, detail, "run[1]", 1)
    assert str(cause) == f"{detail} in run[1]"
    after_a_crash(handle, restart, cause)


@PROCESS
@RESTART
def test_being_killed_from_outside(supervisor: Supervisor, history: Any, restart: Any) -> None:
    handle = supervisor.start(FINISHES, restart=restart)
    handle.update(bump)
    first = handle.pid
    assert first
    os.kill(first, signal.SIGKILL)
    came = history.until(FlowError if restart == "temporary" else FlowRestarted)[-1]
    cause = came.reason if restart == "temporary" else came.cause
    assert (cause.kind, cause.detail, cause.path) == ("signal", "SIGKILL", "wait_until[0]")
    assert handle.pid != first
    after_a_crash(handle, restart, cause)


def after_a_crash(handle: FlowHandle, restart: str, cause: Any) -> None:
    assert handle.cause == cause
    if restart == "temporary":
        with pytest.raises(FlowCrashed) as crashed:
            handle.result()
        assert crashed.value.cause == cause and handle.incarnation == 1
    else:
        assert handle.get_state() == {"n": 0}, "from the first state on"
        assert (handle.incarnation, handle.status) == (2, "running")
        handle.signal(bump)
        assert handle.update(bump) == {"n": 2}


@RESTART
def test_being_stopped(supervisor: Supervisor, history: Any, restart: Any) -> None:
    handle = supervisor.start(FINISHES, restart=restart)
    handle.update(bump)
    end = handle.stop()
    assert isinstance(end, FlowStopped) and end.state == {"n": 1}
    assert history.until()[-1] == end
    assert (handle.status, handle.pid, handle.cause) == ("stopped", None, None)


@RESTART
def test_not_booting_at_start(supervisor: Supervisor, restart: Any) -> None:
    with pytest.raises(BootError, match="ValueError: as told"):
        supervisor.start(idle, initial_state=partial(raise_there, {}), restart=restart)


# ------------------------------------------------------------------ the budgets


@pytest.mark.parametrize("max_restarts", [0, 1, 3])
def test_a_budget_of_restarts(supervise: Callable[..., Supervisor], max_restarts: int) -> None:
    supervisor = supervise(max_restarts=max_restarts)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    handle = supervisor.start(RAISES["set_state"][0], initial_state={"n": 0, "done": True}, notify=inbox)
    other = supervisor.start(idle)
    restarts = handle.subscribe((FlowRestarted, FlowError))
    (*_, end) = until(inbox)
    assert isinstance(end, FlowError) and end.reason.kind == "raised"
    assert handle.incarnation == end.incarnation == max_restarts + 1
    assert isinstance(until(restarts)[-1], FlowError)
    assert (other.status, other.incarnation, other.update(bump)["n"]) == ("running", 1, 1)


def boot_by_plan(path: str, plan: str) -> State:
    """``plan``: what each incarnation does."""
    calls = Path(path)
    past = calls.read_text() if calls.exists() else ""
    now = plan[len(past)]
    calls.write_text(past + now)
    if now == "x":
        raise ConnectionError("no database here")
    return {"n": 0}


def test_booting_again_after_a_while(supervise: Callable[..., Supervisor], tmp_path: Path) -> None:
    """Failed boots are not charged to the budget of restarts."""
    handle = supervise(max_restarts=1).start(
        RAISES["set_state"][0], initial_state=partial(boot_by_plan, str(tmp_path / "calls"), ".xx.")
    )
    events = handle.subscribe()
    handle.signal(finish)
    came = until(events, FlowRestarted)
    assert came[-1].incarnation == handle.incarnation == 4
    assert "ConnectionError: no database here" in str(came[-1].cause)
    assert handle.update(bump) == {"n": 1}
    assert (tmp_path / "calls").read_text() == ".xx."


def test_never_booting_again(supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "BOOT_BACKOFF", 0.01)  # its growth is in the table of restarts
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    handle = supervisor.start(
        RAISES["set_state"][0],
        initial_state=partial(boot_by_plan, str(tmp_path / "calls"), ".xxxxxxxx"),
        notify=inbox,
    )
    handle.signal(finish)
    end = until(inbox)[-1]
    assert isinstance(end, FlowError) and end.reason.kind == "boot"
    assert "in boot_by_plan" in end.reason.error.traceback
    assert (tmp_path / "calls").read_text() == ".xxxxx"
    assert handle.status == "failed" and handle.cause == end.reason


def test_stopping_between_two_boots(supervisor: Supervisor, tmp_path: Path) -> None:
    handle = supervisor.start(
        RAISES["set_state"][0], initial_state=partial(boot_by_plan, str(tmp_path / "calls"), ".xxxxxxxx")
    )
    handle.signal(finish)
    while handle.cause is None or handle.cause.kind != "boot":
        pass
    assert handle.status == "restarting"
    assert isinstance(handle.stop(SOON), FlowStopped)
    assert handle.last_state == {"n": 0}


@PROCESS
def test_a_lost_zygote_is_charged_to_nobody(supervise: Callable[..., Supervisor]) -> None:
    supervisor = supervise(max_restarts=0)
    kept, let_go = supervisor.start(idle), supervisor.start(idle, restart="temporary")
    events = kept.subscribe((FlowRestarted,))
    assert kept.pid
    os.kill(parent_of(kept.pid), signal.SIGKILL)
    assert until(events, FlowRestarted)[0].cause.kind == "zygote_lost"
    assert kept.update(bump)["n"] == 1
    end = let_go.wait(SOON)
    assert isinstance(end, FlowError) and end.reason.kind == "zygote_lost"


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


# ------------------------------------------------------------------ the ladder of a stop


def deaf(state: State, path: str) -> State:
    """On the worker's main thread, so SIGTERM is refused."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return hold(state, path)


@PROCESS
def test_sigkill_ends_what_refuses_to_end(supervise: Callable[..., Supervisor], gate: Callable[..., Any]) -> None:
    handle = supervise(shutdown=0.05).start(idle)
    handle.update(bump)
    handle.signal(deaf, gate().path)
    gate().meet()
    end = handle.stop(SOON)
    assert isinstance(end, FlowStopped) and end.state["n"] == 1
    assert handle.pid is None


# ------------------------------------------------------------------ signals and calls over a crash


@PROCESS
def test_what_was_not_written_waits_for_the_next(supervisor: Supervisor, history: Any) -> None:
    """A worker that does not read: its pipe is full, the rest waits in the host."""
    handle = supervisor.start(idle, name="held")
    first = handle.pid
    assert first
    os.kill(first, signal.SIGSTOP)
    for number in range(60):
        handle.signal(append, f"{number} {'x' * 5_000}")
    os.kill(first, signal.SIGKILL)
    restarted = history.until(FlowRestarted)[-1]
    items = [int(item.partition(" ")[0]) for item in handle.get_state()["items"]]
    assert 0 < restarted.lost_signals < 60
    assert items == list(range(restarted.lost_signals, 60))


@PROCESS
def test_what_was_written_and_not_applied_is_lost(
    supervisor: Supervisor, gate: Callable[..., Any], history: Any
) -> None:
    handle = supervisor.start(idle)
    for _ in range(4):
        handle.signal(bump)
    handle.get_state()
    handle.signal(hold, gate().path)
    gate().meet()
    for _ in range(5):
        handle.signal(bump)
    assert handle.pid
    os.kill(handle.pid, signal.SIGKILL)
    restarted = history.until(FlowRestarted)[-1]
    assert restarted.lost_signals == 6
    assert handle.get_state() == {"n": 0, "items": []}
    handle.signal(kill)
    assert history.until(FlowRestarted)[-1].lost_signals == 1


def adding(n: int) -> Callable[[State], State]:
    """It names a class of its own, which the worker keeps for a while."""

    class Step:
        by = n

    return lambda state: state | {"n": state["n"] + Step.by}


@PROCESS
def test_a_restarted_worker_gets_what_the_one_before_it_had_and_had_forgotten(
    supervisor: Supervisor, history: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "NUMBERED", 2)
    handle = supervisor.start(idle)
    steps = [adding(n) for n in range(1, 5)]
    for _ in range(3):
        for step in steps:
            handle.signal(step)
    assert handle.get_state()["n"] == 30
    assert handle.pid
    os.kill(handle.pid, signal.SIGKILL)
    history.until(FlowRestarted)
    for step in (*reversed(steps), *steps):
        handle.signal(step)
    assert handle.get_state()["n"] == 20


@PROCESS
def test_an_update_that_was_written_may_have_been_applied(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    with pytest.raises(FlowCrashed, match="SIGKILL") as crashed:
        handle.update(kill)
    assert crashed.value.outcome == "unknown" and crashed.value.cause is not None
    assert crashed.value.cause.detail == "SIGKILL"
    assert handle.update(bump)["n"] == 1


@PROCESS
def test_an_update_that_was_not_written_is_answered_by_the_next(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    first = handle.pid
    assert first
    os.kill(first, signal.SIGSTOP)
    for number in range(60):
        handle.signal(append, f"{number} {'x' * 5_000}")
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: answers.put(handle.update(bump)))
    thread.start()
    while not handle._runner._inbox.open_calls():
        pass
    os.kill(first, signal.SIGKILL)
    assert answers.get(timeout=SOON)["n"] == 1
    thread.join()


@PROCESS
def test_get_state_is_asked_again(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    handle.update(bump)
    first = handle.pid
    assert first
    os.kill(first, signal.SIGSTOP)
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threads = [threading.Thread(target=lambda: answers.put(handle.get_state())) for _ in range(3)]
    for thread in threads:
        thread.start()
    while [call.written for call in handle._runner._inbox.open_calls()] != [True] * 3:
        pass
    os.kill(first, signal.SIGKILL)
    for thread in threads:
        assert answers.get(timeout=SOON) == {"n": 0, "items": []}
        thread.join()
    assert handle.incarnation == 2


def test_a_call_under_way_hears_of_the_end(supervisor: Supervisor, gate: Callable[..., Any]) -> None:
    handle = supervisor.start(RAISES["set_state"][0], restart="temporary")
    handle.signal(hold, gate().path)
    gate().meet()
    handle.signal(finish)
    failures: queue.SimpleQueue[Exception] = queue.SimpleQueue()

    def ask(call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            failures.put(error)

    asked = [threading.Thread(target=ask, args=(call,)) for call in (handle.get_state, partial(handle.update, bump))]
    for thread in asked:
        thread.start()
    while len(handle._runner._inbox.open_calls()) < 2:
        pass
    gate().open()
    for thread in asked:
        thread.join()
    assert isinstance(handle.wait(SOON), FlowError)
    assert failures.qsize() <= 2


def test_signals_and_calls_follow_a_flow_through_its_crashes(supervisor: Supervisor, history: Any) -> None:
    handle = supervisor.start(RAISES["set_state"][0])
    for incarnation in (2, 3, 4):
        handle.signal(finish)
        assert history.until(FlowRestarted)[-1].incarnation == incarnation
        handle.signal(bump)
        assert handle.update(bump) == {"n": 2}
    assert (handle.incarnation, handle.status) == (4, "running")
    assert handle.cause is not None and handle.cause.kind == "raised"
