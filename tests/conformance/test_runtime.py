"""The runtime's API: ``Supervisor``, ``FlowHandle``, and the functions of the specification."""

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import multiprocess
import pytest
from flows_under_test import State, append, bump, finish, idle, is_done, put, refuse, remembered
from listening import SOON, states, until

import caravela
from caravela import (
    Error,
    FlowCrashed,
    FlowDone,
    FlowError,
    FlowFailed,
    FlowNotRunning,
    FlowRestarted,
    FlowStarted,
    FlowState,
    FlowStopped,
    FlowTimeout,
    Lagged,
    Ok,
    SignalRejected,
    Supervisor,
    flow,
    run,
    set_state,
    wait,
    wait_until,
)

Supervise = Callable[..., Supervisor]


def crash(state: State) -> State:
    raise RuntimeError("as told")


fragile = flow("fragile", wait_until(is_done), set_state(crash), initial_state={"n": 0})
failing = flow("failing", run(lambda _: Error({"code": 7})), initial_state={"n": 0})
waiting = flow("waiting", wait_until(lambda _: False), initial_state={"n": 0})
done_at_once = flow("done_at_once", set_state(bump), initial_state={"n": 0})


# ------------------------------------------------------------------ start


@pytest.mark.parametrize("address", ["flows_under_test:idle", "flows_under_test:Home.inner"])
def test_a_flow_by_its_address(supervisor: Supervisor, address: str) -> None:
    handle = supervisor.start(address)
    assert handle.name == address.rpartition(":")[2].rpartition(".")[2]  # the flow's own, which came with `Ready`
    assert handle.update(bump)["n"] == 1


def test_what_the_flow_declares_comes_with_the_readiness(supervisor: Supervisor) -> None:
    handle = supervisor.start("flows_under_test:idle")
    assert handle.signals == ("bump", "append")
    handle.signal("bump", 3)
    assert handle.update("append", "x") == {"n": 3, "items": ["x"]}


def test_a_flow_that_travels(supervisor: Supervisor) -> None:
    """One made here, of closures, that no worker could import."""
    offset = 40
    made = flow(
        "made here",
        wait_until(lambda state: state["go"]),
        set_state(lambda state: state | {"n": offset + state["n"]}),
        signals={"go": lambda state, n: state | {"go": True, "n": n}},
        initial_state={"go": False, "n": 0},
    )
    handle = supervisor.start(made)
    handle.signal("go", 2)
    assert handle.result(SOON) == {"go": True, "n": 42}


def test_the_state_given_to_start_replaces_the_declared_one(supervisor: Supervisor) -> None:
    assert supervisor.start(idle, initial_state={"other": 1}).get_state() == {"other": 1}
    assert supervisor.start(waiting, initial_state=None).get_state() is None
    assert supervisor.start(idle).get_state() == {"n": 0, "items": []}


class Made:
    """A class is a factory too; what it makes goes by pickle."""

    def __init__(self) -> None:
        self.n = 5

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Made) and other.n == self.n

    __hash__ = None  # type: ignore[assignment]


class Callable_:
    """An object that can be called is no factory: it is the state."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self) -> int:
        return -1

    def at(self) -> int:
        return self.n


def test_factories_are_called_and_other_objects_are_the_state(supervisor: Supervisor) -> None:
    assert supervisor.start(idle, initial_state=remembered).get_state()["n"] == 41
    assert supervisor.start(idle, initial_state=partial(dict, n=3)).get_state() == {"n": 3}
    assert supervisor.start(waiting, initial_state=Made).get_state() == Made()
    assert supervisor.start(waiting, initial_state=Callable_(6).at).get_state() == 6
    assert supervisor.start(waiting, initial_state=Callable_(6)).get_state().n == 6


def count_up(path: str) -> State:
    """A state that was kept elsewhere."""
    kept = Path(path)
    number = int(kept.read_text()) + 1 if kept.exists() else 1
    kept.write_text(str(number))
    return {"n": number}


def test_a_factory_is_called_at_every_incarnation(supervisor: Supervisor, tmp_path: Path) -> None:
    handle = supervisor.start(fragile, initial_state=partial(count_up, str(tmp_path / "kept")))
    events = handle.subscribe((FlowRestarted,))
    for incarnation in (1, 2, 3):
        assert handle.get_state() == {"n": incarnation}
        handle.signal(finish)
        assert until(events, FlowRestarted)[0].incarnation == incarnation + 1


def test_start_returns_a_running_flow(supervisor: Supervisor, engine: str) -> None:
    handle = supervisor.start(idle)
    assert (handle.status, handle.incarnation, handle.cause) == ("running", 1, None)
    assert handle.pid is not None and (handle.pid == os.getpid()) == (engine == "inline")
    assert repr(handle) == f"<FlowHandle {handle.id} running, incarnation 1>"


def test_start_without_waiting(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle, wait=False)
    assert handle.status in ("starting", "running")
    handle.signal(bump)
    assert handle.update(bump)["n"] == 2
    assert handle.status == "running"


def test_names_and_ids(supervisor: Supervisor) -> None:
    one, two = supervisor.start(idle, name="one"), supervisor.start(idle)
    assert (one.name, two.name) == ("one", "idle")
    assert one.id != two.id and one.id.startswith("idle-")
    assert supervisor.get("one").id == supervisor.get(one.id).id == one.id
    with pytest.raises(ValueError, match="name='one' is taken"):
        supervisor.start(idle, name="one")
    supervisor.stop(one)
    with pytest.raises(FlowNotRunning):
        supervisor.get("one")
    assert supervisor.start(idle, name="one").id != one.id


def test_children(supervisor: Supervisor) -> None:
    handles = [supervisor.start(idle) for _ in range(3)]
    assert supervisor.count_children() == 3
    assert supervisor.children() == handles
    supervisor.stop(handles[1])
    assert [child.id for child in supervisor.children()] == [handles[0].id, handles[2].id]
    for handle in handles:
        handle.stop()
    assert supervisor.count_children() == 0 and supervisor.children() == []


# ------------------------------------------------------------------ signals and reading


def test_signals_with_arguments(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    handle.signal(put, "key", [1, (2, 3), {"x"}])
    handle.signal(lambda state, *items: state | {"items": list(items)}, 1, None, "two")
    assert handle.get_state() == {"n": 0, "items": [1, None, "two"], "key": [1, (2, 3), {"x"}]}


def test_last_state_never_asks(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    first = handle.last_state_age
    assert handle.last_state == {"n": 0, "items": []} and first is not None and first >= 0
    handle.update(bump)
    assert handle.last_state["n"] == 1
    age = handle.last_state_age
    handle.signal(bump)
    handle.get_state()
    assert handle.last_state["n"] == 2 and age is not None
    handle.stop()
    assert handle.last_state["n"] == 2


def test_last_state_follows_while_somebody_subscribes(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    with handle.subscribe() as events:
        handle.signal(bump)
        until(events, FlowState)
        assert handle.last_state["n"] == 1


# ------------------------------------------------------------------ notify


@pytest.fixture(params=["Queue", "SimpleQueue", "multiprocess.Queue"])
def inbox(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param != "multiprocess.Queue":
        yield getattr(queue, request.param)()
        return
    inbox = multiprocess.get_context("fork").Queue()
    yield inbox
    inbox.close()
    inbox.join_thread()


def test_notify_a_queue(inbox: Any, supervisor: Supervisor) -> None:
    tag = ("tag", 1)
    handle = supervisor.start(idle, notify=inbox, tag=tag)
    handle.signal(bump)
    handle.signal(refuse)
    handle.signal(finish)
    came = until(inbox)
    assert [type(event) for event in came] == [FlowState, FlowState, FlowDone]
    assert {(event.flow_id, event.tag, event.incarnation) for event in came} == {(handle.id, tag, 1)}
    match came[0], came[-1]:
        case FlowState(first), FlowDone(last):
            assert first["n"] == 1 and last["done"]


def test_notify_a_callable_that_calls_back(supervise: Supervise) -> None:
    """On the delivery thread, in order, and free to use the API."""
    supervisor = supervise()
    seen: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def hear(event: Any) -> None:
        if isinstance(event, FlowState) and event.state["n"] < 20:
            handle.signal(bump)
            handle.get_state()
        elif isinstance(event, FlowState) and "done" not in event.state:
            handle.signal(finish)
        seen.put((event, threading.current_thread().name))

    handle = supervisor.start(idle, notify=hear)
    handle.signal(bump)
    came: list[Any] = []
    while not (came and isinstance(came[-1][0], FlowDone)):
        came.append(seen.get(timeout=SOON))
    assert [event.seq for event, _ in came] == list(range(1, len(came) + 1))
    assert len({name for _, name in came}) == 1


def test_a_callable_that_raises_is_logged_and_called_again(
    supervise: Supervise, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = supervise()
    seen: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def hear(event: Any) -> None:
        seen.put(event)
        raise RuntimeError("as told")

    handle = supervisor.start(idle, notify=hear)
    handle.signal(bump)
    handle.signal(finish)
    until(seen)
    supervisor.close()
    assert [record.message for record in caplog.records].count(f"a subscriber of flow {handle.id} raised") == 3


def test_notify_says_how_it_failed(supervisor: Supervisor) -> None:
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    supervisor.start(failing, notify=inbox, wait=False)
    match until(inbox):
        case [FlowError(reason)]:
            assert reason == {"code": 7}
        case came:
            pytest.fail(f"{came}")


def test_notify_is_silent_at_a_stop(supervise: Supervise) -> None:
    supervisor = supervise()
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    handle = supervisor.start(idle, notify=inbox)
    handle.stop()
    supervisor.close()
    assert inbox.empty()


def test_a_full_queue_never_blocks(supervisor: Supervisor) -> None:
    inbox: queue.Queue[Any] = queue.Queue(2)
    handle = supervisor.start(idle, notify=inbox)
    for _ in range(10):
        handle.signal(bump)
    assert handle.get_state()["n"] == 10
    assert [inbox.get_nowait().state["n"] for _ in range(2)] == [1, 2]
    handle.signal(bump)
    lagged, latest = inbox.get(timeout=SOON), inbox.get(timeout=SOON)
    assert isinstance(lagged, Lagged) and lagged.n == 8
    assert latest.state["n"] == 11


# ------------------------------------------------------------------ subscriptions


def test_iterating_ends_with_the_flow(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    events = handle.subscribe()
    handle.signal(bump)
    handle.signal(finish)
    assert [type(event) for event in events] == [FlowState, FlowState, FlowDone]
    with pytest.raises(FlowNotRunning):
        events.get()


def test_iterating_ends_with_close(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    events = handle.subscribe()
    with pytest.raises(queue.Empty):
        events.get(timeout=0)
    handle.update(bump)
    events.close()
    handle.update(bump)
    assert [state["n"] for state in states(list(events))] == [1]


def test_a_subscription_of_chosen_kinds(supervisor: Supervisor) -> None:
    handle = supervisor.start(fragile)
    rejected, restarted = handle.subscribe((SignalRejected,)), handle.subscribe((FlowRestarted,))
    handle.signal(bump)
    handle.signal(refuse)
    handle.signal(finish)
    assert until(rejected, SignalRejected)[0].error.message == "as told"
    assert [type(event) for event in until(restarted, FlowRestarted)] == [FlowRestarted]


def test_a_full_subscription_keeps_the_newest_and_the_end(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    events = handle.subscribe(maxsize=3)
    for _ in range(100):
        handle.signal(bump)
    handle.signal(finish)
    handle.wait(SOON)
    came = list(events)
    assert isinstance(came[-1], FlowDone)
    shown, missing = states(came), sum(event.n for event in came if isinstance(event, Lagged))
    assert shown[-1]["n"] == 100 and len(shown) + missing == 101


def test_all_flows_of_a_supervisor(supervisor: Supervisor) -> None:
    everybody = supervisor.subscribe((FlowStarted, FlowState, FlowDone, FlowStopped))
    one, two = supervisor.start(idle, tag=1), supervisor.start(idle, tag=2)
    one.update(bump)
    two.update(bump)
    one.signal(finish)
    one.wait(SOON)
    two.stop()
    came = until(everybody, FlowStopped)
    assert [type(event) for event in came if event.tag == 1] == [FlowStarted, FlowState, FlowState, FlowDone]
    assert [type(event) for event in came if event.tag == 2] == [FlowStarted, FlowState, FlowStopped]
    everybody.close()
    assert list(everybody) == []


def test_a_subscription_of_all_ends_with_the_supervisor(supervise: Supervise) -> None:
    supervisor = supervise()
    everybody = supervisor.subscribe()
    supervisor.start(idle)
    supervisor.close()
    assert [type(event) for event in everybody] == [FlowStopped]


# ------------------------------------------------------------------ the end


def the_calls_of(handle: Any) -> list[Callable[[], Any]]:
    return [handle.get_state, lambda: handle.update(bump), lambda: handle.signal(bump), lambda: handle.signal("bump")]


def test_a_flow_that_is_done(supervisor: Supervisor) -> None:
    handle = supervisor.start(done_at_once)
    for _ in range(2):
        assert handle.result(SOON) == {"n": 1}
        assert handle.wait() == handle.stop()
    assert (handle.status, handle.pid, handle.incarnation, handle.cause) == ("done", None, 1, None)
    assert handle.last_state == {"n": 1}
    for call in the_calls_of(handle):
        with pytest.raises(FlowNotRunning, match="flow 'done_at_once' is not running: it is done"):
            call()
    assert [type(event) for event in handle.subscribe()] == [FlowDone]


def test_a_flow_that_failed(supervisor: Supervisor) -> None:
    handle = supervisor.start(failing)
    assert isinstance(handle.wait(SOON), FlowError) and handle.status == "failed"
    for _ in range(2):
        with pytest.raises(FlowFailed) as failed:
            handle.result()
        assert failed.value.reason == {"code": 7}
        assert handle.stop() == handle.wait()
    for call in the_calls_of(handle):
        with pytest.raises(FlowNotRunning, match=r"it failed: \{'code': 7\}"):
            call()


def test_a_flow_that_crashed_too_often(supervise: Supervise) -> None:
    handle = supervise(max_restarts=0).start(fragile)
    handle.signal(finish)
    with pytest.raises(FlowCrashed, match="RuntimeError: as told"):
        handle.result(SOON)
    assert handle.status == "failed" and handle.cause is not None and handle.cause.kind == "raised"
    for call in the_calls_of(handle):
        with pytest.raises(FlowNotRunning, match=r"it crashed: RuntimeError: as told in set_state\[1\]"):
            call()
    assert handle.stop() == handle.wait()


def test_a_flow_that_was_stopped(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    handle.signal(bump)
    handle.get_state()
    end = handle.stop()
    assert isinstance(end, FlowStopped) and end.state["n"] == 1
    assert handle.stop() == handle.wait() == end and handle.status == "stopped"
    for call in (*the_calls_of(handle), handle.result):
        with pytest.raises(FlowNotRunning, match="it was stopped"):
            call()


def test_waiting_has_a_bound(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    why = r"(wait|result) of flow 'idle' not answered within 0\.01 s: in wait_until, attempt 1"
    for call in (handle.wait, handle.result):
        with pytest.raises(FlowTimeout, match=why):
            call(0.01)
    assert handle.status == "running"


def test_who_waits_hears_of_the_end(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    ends: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threads = [threading.Thread(target=lambda: ends.put(handle.wait(SOON))) for _ in range(3)]
    for thread in threads:
        thread.start()
    handle.signal(finish)
    assert {type(ends.get(timeout=SOON)) for _ in threads} == {FlowDone}
    for thread in threads:
        thread.join()


def test_close_stops_everything(supervise: Supervise) -> None:
    supervisor = supervise()
    handles = [supervisor.start(idle) for _ in range(5)]
    handles[0].signal(finish)
    handles[0].wait(SOON)
    supervisor.close()
    supervisor.close()
    assert [handle.status for handle in handles] == ["done"] + ["stopped"] * 4
    assert all(isinstance(handle.wait(), FlowStopped) for handle in handles[1:])
    assert supervisor.count_children() == 0
    with pytest.raises(RuntimeError, match="closed"):
        supervisor.start(idle)
    with pytest.raises(RuntimeError, match="closed"):
        supervisor.subscribe()
    with pytest.raises(FlowNotRunning, match="it was stopped"):
        handles[1].get_state()


def test_a_supervisor_is_used_once(engine: str) -> None:
    supervisor = Supervisor(engine=engine)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="not yet open"):
        supervisor.start(idle)
    with supervisor, pytest.raises(RuntimeError, match="this supervisor is open"):
        supervisor.__enter__()
    with pytest.raises(RuntimeError, match="this supervisor is closed"):
        supervisor.__enter__()


@pytest.mark.parametrize("engine", ["process"], indirect=True)
def test_a_forked_child_is_told(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        for call in (handle.get_state, handle.stop, lambda: supervisor.start(idle), supervisor.children):
            with contextlib.suppress(caravela.SupervisorForked):
                call()
                os.write(writes, b"no error ")
        supervisor.close()
        os.write(writes, b"told")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reads, 100) == b"told"
    os.close(reads)
    os.close(writes)
    assert handle.update(bump)["n"] == 1


# ------------------------------------------------------------------ the functions


@pytest.fixture
def unsupervised() -> Iterator[None]:
    yield
    caravela.shutdown()


def test_the_functions_with_a_supervisor(supervise: Supervise) -> None:
    supervisor = supervise()
    handle = caravela.start(idle, tag="t", name="by function")
    assert [child.id for child in supervisor.children()] == [handle.id]
    caravela.signal(handle, bump)
    caravela.signal(handle, "append", 1)
    assert caravela.get_state(handle) == {"n": 1, "items": [1]}
    assert isinstance(caravela.stop(handle), FlowStopped)
    caravela.shutdown()
    assert supervisor.start(idle).get_state()


def test_the_first_one_entered_counts(supervise: Supervise) -> None:
    first, second = supervise(), supervise()
    assert caravela.start(idle).id in [child.id for child in first.children()]
    first.close()
    assert caravela.start(idle).id in [child.id for child in second.children()]


@pytest.mark.usefixtures("unsupervised")
def test_the_functions_without_a_supervisor() -> None:
    handle = caravela.start(idle)
    caravela.signal(handle, bump)
    assert caravela.get_state(handle)["n"] == 1
    assert isinstance(caravela.stop(handle), FlowStopped)
    other = caravela.start(idle)
    caravela.shutdown()
    caravela.shutdown()
    assert isinstance(other.wait(), FlowStopped)
    assert caravela.start(idle).get_state()["n"] == 0


@pytest.mark.usefixtures("unsupervised")
def test_without_a_supervisor_nothing_is_restarted() -> None:
    handle = caravela.start(fragile)
    caravela.signal(handle, finish)
    end = handle.wait(SOON)
    assert isinstance(end, FlowError) and end.reason.kind == "raised"
    assert (handle.status, handle.incarnation) == ("failed", 1)


# ------------------------------------------------------------------ many at once


def test_many_threads_signal_one_flow(supervisor: Supervisor) -> None:
    """Order per thread, all applied, none twice."""
    handle = supervisor.start(idle)
    begin = threading.Barrier(8)

    def work(thread: int) -> None:
        begin.wait()
        for number in range(200):
            if number % 20 == 7:
                handle.update(append, (thread, number))
            elif number % 20 == 13:
                handle.signal(append, (thread, number))
                assert (thread, number) in handle.get_state()["items"]
            else:
                handle.signal(append, (thread, number))

    run_threads([partial(work, thread) for thread in range(8)])
    items = handle.get_state(timeout=SOON)["items"]
    assert len(items) == 1600
    for thread in range(8):
        assert [number for by, number in items if by == thread] == list(range(200))


def test_many_flows_at_once(supervisor: Supervisor) -> None:
    everybody = supervisor.subscribe((FlowStarted, FlowDone))

    def work() -> None:
        for _ in range(4):
            handle = supervisor.start(idle)
            handle.signal(bump)
            handle.signal(finish)
            assert handle.result(SOON)["n"] == 1

    run_threads([work] * 6)
    assert len({event.flow_id for event in until(everybody, FlowDone, count=24)}) == 24
    assert supervisor.count_children() == 0


def run_threads(works: list[Callable[[], None]]) -> None:
    """Raises what one of them raised."""
    failed: list[BaseException] = []

    def guard(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guard, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def test_a_body_returns_ok_of_another_type(supervisor: Supervisor) -> None:
    made = flow("typed", run(lambda state: Ok([state])), initial_state=1)
    assert supervisor.start(made).result(SOON) == [1]


@pytest.mark.parametrize("ms", [3e9, 1e18, 1e300])
def test_a_pause_longer_than_poll_can_count(supervisor: Supervisor, ms: float) -> None:
    handle = supervisor.start(flow("long", wait(ms), initial_state={"n": 0}))
    assert handle.update(lambda state: state | {"n": 1}) == {"n": 1}
    assert handle.incarnation == 1
