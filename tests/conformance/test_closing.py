"""``close()`` from everywhere at once, ``open()`` that fails, and ``start()`` that is interrupted."""

import errno
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import multiprocess
import pytest
from flows_under_test import State, bump, finish, idle
from gates import pass_gate
from listening import SOON

import caravela
from caravela import (
    FlowDone,
    FlowError,
    FlowHandle,
    FlowNotRunning,
    FlowState,
    FlowStopped,
    FlowTimeout,
    Lagged,
    Supervisor,
    flow,
    set_state,
    wait_until,
)
from caravela.supervisor import default, restarts
from caravela.supervisor import household as household_module
from caravela.supervisor import supervisor as module
from caravela.supervisor.household import Household
from caravela.supervisor.latch import Latch
from caravela.supervisor.loop import Loop
from caravela.supervisor.runner import Runner

Supervise = Callable[..., Supervisor]
Interrupted = Callable[[int, Callable[[], object]], bool]
quick = flow("quick", set_state(bump), initial_state={"n": 0})


class Aside:
    """A call in a thread of its own, that may take for ever."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.raised: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self.raised = error

    def done(self, within: float = SOON) -> bool:
        self._thread.join(within)
        return not self._thread.is_alive()


class Stuck:
    """A listener that waits to be let go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, event: Any) -> None:
        self.begun.set()
        self.go.wait()


@pytest.fixture
def stuck(supervise: object) -> Iterator[Stuck]:
    """It is let go before supervisors are closed."""
    stuck = Stuck()
    yield stuck
    stuck.go.set()


def household(supervisor: Supervisor) -> Household:
    assert supervisor._household
    return supervisor._household


# ------------------------------------------------------------------ listeners that hold it up


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(household_module, "DELIVERY", 0.1)


@pytest.mark.usefixtures("impatient")
def test_a_callable_that_does_not_return(supervise: Supervise, stuck: Stuck, caplog: pytest.LogCaptureFixture) -> None:
    supervisor = supervise(shutdown=0.1)
    everybody = supervisor.subscribe()
    handle = supervisor.start(idle, notify=stuck)
    for _ in range(5):
        handle.update(bump)
    assert stuck.begun.wait(SOON)
    closing = Aside(supervisor.close)
    assert [type(event) for event in everybody][-1] is FlowStopped, "those who iterate are let go first"
    assert closing.done()
    assert handle.status == "stopped"
    assert "events that they do not get: 4" in caplog.text


FORGETFUL = """
import threading
from caravela import Supervisor, flow, wait_until

def hear(event):
    threading.Event().wait()

if __name__ == "__main__":
    supervisor = Supervisor(shutdown=0.1).open()
    handle = supervisor.start(flow("idle", wait_until(lambda s: False)), notify=hear)
    handle.update(lambda s: s | {"n": 1})
    handle.update(lambda s: s | {"n": 2})
"""


def test_the_interpreter_ends_although_a_callable_does_not_return() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FORGETFUL], stderr=subprocess.PIPE, text=True, timeout=SOON, check=True
    )
    assert ended.stderr.splitlines() == ["callables were not done 1 s after the close; events that they do not get: 1"]


@pytest.mark.usefixtures("impatient")
def test_a_queue_that_can_only_block(supervise: Supervise, caplog: pytest.LogCaptureFixture) -> None:
    supervisor = supervise(shutdown=0.1)
    inbox = multiprocess.SimpleQueue()
    handle = supervisor.start(idle, notify=inbox, initial_state={"n": 0, "pad": "x" * 50_000})
    for _ in range(5):
        handle.update(bump)
    assert Aside(supervisor.close).done()
    assert "events that they do not get: " in caplog.text
    for _ in range(2):
        inbox.get()  # lets its thread go: one stands in the pipe, one waits to be put
    inbox.close()


@pytest.mark.parametrize("error", [SystemExit(3), pytest.fail.Exception("as told"), ValueError("as told")], ids=repr)
def test_a_queue_that_raises_does_not_keep_a_flow_from_ending(supervise: Supervise, error: BaseException) -> None:
    supervisor = supervise()
    taken: queue.SimpleQueue[Any] = queue.SimpleQueue()
    tried: queue.SimpleQueue[Any] = queue.SimpleQueue()

    class Broken:
        mended = False

        def put_nowait(self, event: Any) -> None:
            if not self.mended:
                tried.put(event)
                raise error
            taken.put(event)

    broken = Broken()
    assert supervisor.start(quick, notify=broken).result(SOON) == {"n": 1}
    handle = supervisor.start(idle, notify=broken)
    while not tried.empty():
        tried.get()
    for _ in range(3):
        handle.update(bump)
        tried.get(timeout=SOON)  # told by the loop perhaps, after the answer
    broken.mended = True
    handle.update(bump)
    missed, came = taken.get(timeout=SOON), taken.get(timeout=SOON)
    assert isinstance(missed, Lagged) and missed.n == 3
    assert isinstance(came, FlowState) and came.state["n"] == 4
    broken.mended = False
    assert Aside(supervisor.close).done()


def test_whatever_befalls_the_telling_of_an_end_it_is_one(
    supervise: Supervise, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = supervise()
    handle = supervisor.start(idle)
    events = handle.subscribe()

    def fail(event: Any) -> None:
        if isinstance(event, FlowDone):
            raise SystemExit(3)

    monkeypatch.setattr(events, "offer", fail)
    handle.signal(finish)
    assert handle.result(SOON)["done"]
    assert isinstance(handle.stop(SOON), FlowDone), "its process is gone"
    assert f"the end of flow {handle.id} was not told to all" in caplog.text
    events.close()


# ------------------------------------------------------------------ several who close


def test_whoever_closes_second_waits_for_the_first(supervise: Supervise, stuck: Stuck) -> None:
    supervisor = supervise()
    supervisor.start(idle, notify=stuck).update(bump)
    assert stuck.begun.wait(SOON)
    first = Aside(supervisor.close)
    while not supervisor._closed:
        pass
    others = [Aside(supervisor.close) for _ in range(3)]
    assert not any(other.done(0.05) for other in others)
    stuck.go.set()
    assert all(one.done() for one in (first, *others))
    supervisor.close()


def test_a_callable_may_close_whether_or_not_it_is_the_first(supervise: Supervise) -> None:
    for first in (True, False):
        supervisor = supervise()
        begun, go, done = threading.Event(), threading.Event(), threading.Event()

        def hear(event: Any, supervisor: Supervisor = supervisor, wait: Any = (begun, go, done)) -> None:
            begun, go, done = wait
            begun.set()
            go.wait()
            supervisor.close()
            done.set()

        handle = supervisor.start(idle, notify=hear)
        handle.signal(bump)
        assert begun.wait(SOON)
        closing = None if first else Aside(supervisor.close)
        while closing and not supervisor._closed:
            pass
        go.set()
        assert done.wait(SOON)
        assert closing is None or closing.done()
        assert Aside(supervisor.close).done()
        assert handle.status == "stopped"


def test_a_close_in_the_midst_of_a_close_returns(supervise: Supervise) -> None:
    """As in a ``__del__`` that runs meanwhile, in the same thread."""
    supervisor = supervise()
    supervisor.start(idle)
    there = household(supervisor)
    tell_all = there._tell_all

    def again(event: Any) -> None:
        supervisor.close()
        tell_all(event)

    there._tell_all = again  # type: ignore[method-assign]  # it is on its way, then
    assert Aside(supervisor.close).done()


def test_ctrl_c_while_another_thread_closes_kills_too(
    supervise: Supervise, gate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = supervise(shutdown=600.0)
    held = flow("held", set_state(hold), initial_state={"gate": gate().path})
    supervisor.start(held)
    gate().meet()
    there = household(supervisor)
    told = threading.Event()

    class Interrupted(Latch):
        __slots__ = ()

        def wait(self, timeout: float | None = None) -> bool:
            if not told.is_set():
                raise KeyboardInterrupt
            return super().wait(timeout)

    there._over = Interrupted()
    first = Aside(supervisor.close)
    while not supervisor._closed:
        pass
    tell_all = there._tell_all

    def tell(event: Any) -> None:
        tell_all(event)
        gate().open()  # inline nobody can be killed
        told.set()

    monkeypatch.setattr(there, "_tell_all", tell)
    with pytest.raises(KeyboardInterrupt):
        supervisor.close()
    assert told.is_set() and first.done()


def hold(state: State) -> State:
    pass_gate(state["gate"])
    return state


@pytest.mark.usefixtures("engine")
def test_shutdown_from_two_threads_waits_in_both(stuck: Stuck) -> None:
    caravela.start(idle, notify=stuck).update(bump)
    assert stuck.begun.wait(SOON)
    both = [Aside(caravela.shutdown) for _ in range(2)]
    assert not any(one.done(0.05) for one in both)
    stuck.go.set()
    assert all(one.done() for one in both)
    caravela.shutdown()


# ------------------------------------------------------------------ who listens to all


def test_subscribing_while_it_closes_gives_one_that_ends(supervise: Supervise, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = supervise()
    there = household(supervisor)
    supervisor.close()
    monkeypatch.setattr(supervisor, "_here", lambda: there)  # it was open a moment ago
    events = supervisor.subscribe()
    with pytest.raises(FlowNotRunning):
        events.get(timeout=SOON)
    assert list(events) == [] and there.sinks == []


@pytest.mark.parametrize("engine", ["inline"], indirect=True)
def test_no_subscription_is_lost_among_many(supervise: Supervise, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the threads stops where it has read who is there."""
    supervisor = supervise()
    there = household(supervisor)
    begin = threading.Barrier(4)
    kept: list[Any] = []

    class Slow(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            found = list(super().__iter__())
            threading.Event().wait(0.01)  # stands for work
            return iter(found)

    def subscribe() -> None:
        begin.wait()
        kept.append(supervisor.subscribe())
        supervisor.subscribe().close()

    there.sinks = Slow()
    set_sinks = type(there).__setattr__

    def slowly(self: Household, name: str, value: Any) -> None:
        set_sinks(self, name, Slow(value) if name == "sinks" else value)

    monkeypatch.setattr(Household, "__setattr__", slowly)
    threads = [Aside(subscribe) for _ in range(4)]
    assert all(thread.done() for thread in threads)
    assert {id(one) for one in there.sinks} == {id(one) for one in kept}


# ------------------------------------------------------------------ open


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("lacks", ["fds", "threads"])
def test_an_open_that_fails_leaves_it_as_new(engine: Any, lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = Supervisor(engine=engine)

    def fail(*_: Any) -> None:
        if lacks == "fds":
            raise OSError(errno.EMFILE, "Too many open files")
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "start" if lacks == "threads" else "__init__", fail)
        with pytest.raises((OSError, RuntimeError)):
            supervisor.open()
        assert not supervisor.running
        with pytest.raises(RuntimeError, match="not yet open"):
            supervisor.start(idle)
    with supervisor:
        assert supervisor.start(idle).update(bump)["n"] == 1


@pytest.mark.usefixtures("engine")
def test_closed_while_it_opens(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = Supervisor(engine=engine)
    begun, go = threading.Event(), threading.Event()
    begin = Household.begin

    def slowly(self: Household) -> None:
        begun.set()
        go.wait()
        begin(self)

    monkeypatch.setattr(Household, "begin", slowly)
    opening = Aside(supervisor.open)
    assert begun.wait(SOON)
    with pytest.raises(RuntimeError, match="not yet open"):
        supervisor.start(idle)
    closing = Aside(supervisor.close)
    go.set()
    assert opening.done() and closing.done()
    with pytest.raises(RuntimeError, match="closed"):
        supervisor.start(idle)


# ------------------------------------------------------------------ start


@pytest.mark.parametrize("where", ["in admit", "behind it", "while it boots", "before its handle"])
def test_a_start_that_is_interrupted_leaves_no_flow(
    supervise: Supervise, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = supervise()
    there = household(supervisor)
    admit, post, wait = there.admit, there.loop.post, Latch.wait

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    def admit_and_stop(runner: Runner, *, unique: bool) -> None:
        admit(runner, unique=unique)
        raise KeyboardInterrupt

    def once_in_wait(self: Latch, timeout: float | None = None) -> bool:
        monkeypatch.setattr(Latch, "wait", wait)
        raise KeyboardInterrupt

    def once(work: Any) -> None:
        monkeypatch.setattr(there.loop, "post", post)
        raise KeyboardInterrupt

    match where:
        case "in admit":
            monkeypatch.setattr(there.loop, "post", once)
        case "behind it":
            monkeypatch.setattr(there, "admit", admit_and_stop)
        case "while it boots":
            monkeypatch.setattr(Latch, "wait", once_in_wait)
        case _:
            monkeypatch.setattr(module, "FlowHandle", interrupted)
    everybody = supervisor.subscribe((FlowStopped,))
    with pytest.raises(KeyboardInterrupt):
        supervisor.start(idle, name="once")
    assert isinstance(everybody.get(SOON), FlowStopped)
    while there._runners:
        pass
    monkeypatch.undo()
    assert supervisor.start(idle, name="once").get_state()


def everywhere(interrupted: Interrupted, call: Callable[[], Any]) -> Iterator[int]:
    """Interrupts it at one moment after the other, until it comes through."""
    moment = 0
    while interrupted(moment := moment + 1, call):
        yield moment
    assert moment > 5


@pytest.mark.parametrize("engine", ["inline"], indirect=True)
def test_a_ctrl_c_at_any_moment_of_a_start(supervise: Supervise, interrupted: Interrupted) -> None:
    supervisor = supervise()
    there = household(supervisor)
    kept: list[Any] = []
    for _ in everywhere(interrupted, lambda: kept.append(supervisor.start(idle))):
        while there._runners:
            pass
    assert [handle.status for handle in kept] == ["running"]
    assert Aside(supervisor.close).done()


@pytest.mark.parametrize("engine", ["inline"], indirect=True)
def test_a_ctrl_c_at_any_moment_of_waiting_leaves_nothing_locked(
    supervise: Supervise, interrupted: Interrupted
) -> None:
    supervisor = supervise()
    handle = supervisor.start(idle)
    events = handle.subscribe()

    def wait() -> None:
        with suppress(FlowTimeout):
            handle.wait(0.0001)
        with suppress(queue.Empty):
            events.get(0.0001)

    for _ in everywhere(interrupted, wait):
        assert Aside(lambda: handle.update(bump)).done(), "the loop tells this subscription of it"
    assert Aside(handle.stop).done()
    assert Aside(supervisor.close).done()


@pytest.mark.parametrize("engine", ["inline"], indirect=True)
def test_a_ctrl_c_at_any_moment_of_a_life_leaves_nothing(engine: str, interrupted: Interrupted) -> None:
    """From ``open`` to the end of ``close``, also where nobody waits: every flow is told its end, nothing is left."""
    handles: list[FlowHandle] = []
    found: list[Any] = []
    threads = threading.enumerate()

    def live() -> None:
        with Supervisor(engine="inline") as supervisor:
            found.append(supervisor)
            handles.extend(supervisor.start(idle) for _ in range(2))

    for moment in everywhere(interrupted, live):
        for supervisor in found:
            supervisor.close()  # the Ctrl-C may have come before `__exit__` had done anything
        assert all(isinstance(handle.wait(SOON), FlowStopped) for handle in handles), moment
        assert threading.enumerate() == threads, moment
        handles.clear()
        found.clear()


@pytest.mark.parametrize("engine", ["inline"], indirect=True)
def test_a_ctrl_c_at_any_moment_of_listening_leaves_no_subscription(
    supervise: Supervise, interrupted: Interrupted
) -> None:
    supervisor = supervise()
    handle = supervisor.start(idle)
    kept: list[Any] = []

    def listen() -> None:
        kept.append(handle.subscribe())
        kept.append(supervisor.subscribe())

    for _ in everywhere(interrupted, listen):
        while kept:
            kept.pop().close()
        assert not handle._runner._audience._own and not household(supervisor).sinks
        with handle.subscribe() as events:
            handle.update(bump)
            assert isinstance(events.get(SOON), FlowState)


def test_a_start_that_is_refused_stops_nobody(supervise: Supervise) -> None:
    supervisor = supervise()
    everybody = supervisor.subscribe((FlowStopped,))
    handle = supervisor.start(idle, name="one")
    with pytest.raises(ValueError, match="is taken"):
        supervisor.start(idle, name="one")
    assert handle.update(bump)["n"] == 1
    with pytest.raises(queue.Empty):
        everybody.get(timeout=0)


def boots_at_the_gate(path: str) -> State:
    pass_gate(path)
    return {"n": 0}


def booting(path: str) -> Any:
    return flow("booting", wait_until(lambda _: False), initial_state=lambda: boots_at_the_gate(path))


@pytest.mark.parametrize("by", ["stop", "close"])
def test_a_start_that_is_stopped_meanwhile_says_so(supervise: Supervise, gate: Callable[..., Any], by: str) -> None:
    supervisor = supervise(shutdown=0.1)
    slow = booting(gate().path)
    starting = Aside(lambda: supervisor.start(slow, name="slow"))
    gate().meet()
    handle = supervisor.get("slow")
    assert (handle.status, handle.incarnation) == ("starting", 1)
    stopping = Aside(handle.stop if by == "stop" else supervisor.close)
    while handle.status != "stopping":
        pass
    gate().open()
    assert stopping.done() and starting.done()
    assert isinstance(starting.raised, FlowNotRunning)
    assert str(starting.raised) == "flow 'slow' is not running: it was stopped before it was ready"
    assert isinstance(handle.wait(), FlowStopped)


# ------------------------------------------------------------------ ends of incarnations that never were ready


def boot_once(path: str) -> State:
    with open(path, "a+") as file:
        file.seek(0)
        if file.read():
            raise ConnectionError("no database here")
        file.write("x")
    return {"n": 0}


def crash(state: State) -> State:
    raise RuntimeError("as told")


def once(path: str) -> Any:
    return flow("once", wait_until(lambda s: s.get("done")), set_state(crash), initial_state=lambda: boot_once(path))


@pytest.mark.parametrize("how", ["given up", "stopped"])
def test_an_end_is_that_of_the_incarnation_it_came_in(
    supervise: Supervise, how: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "BOOT_BACKOFF", 0.01 if how == "given up" else 1.0)
    handle = supervise().start(once(str(tmp_path / "booted")))
    events = handle.subscribe((FlowError, FlowStopped))
    handle.signal(finish)
    while handle.cause is None or handle.cause.kind != "boot":
        pass
    if how == "stopped":
        handle.stop()
    end = handle.wait(SOON)
    assert isinstance(end, FlowError if how == "given up" else FlowStopped)
    assert end.incarnation == handle.incarnation > 1 and end.seq == 0
    assert [(event.incarnation, event.seq) for event in events] == [(end.incarnation, 0)]


def test_a_refused_flow_ends_with_number_0(supervise: Supervise, tmp_path: Any) -> None:
    (tmp_path / "booted").write_text("x")
    handle = supervise().start(once(str(tmp_path / "booted")), wait=False)
    assert handle.incarnation == 1, "from the beginning"
    end = handle.wait(SOON)
    assert isinstance(end, FlowError) and (end.incarnation, end.seq) == (1, 0)


def test_who_starts_in_a_put_while_the_main_thread_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both need a new supervisor for flows without one: locks are taken in one order."""
    inside, go, done = threading.Event(), threading.Event(), threading.Event()

    class Announced:
        def __enter__(self) -> None:
            lock.acquire()
            if threading.current_thread() is threading.main_thread():
                go.set()

        def __exit__(self, *_: object) -> None:
            lock.release()

    class Starts:
        def put_nowait(self, _: object) -> None:
            if not inside.is_set():
                inside.set()
                go.wait(0.2)  # stands for work: who holds this up comes first only where the order is wrong
                caravela.start(idle, wait=False)
                done.set()

    first = caravela.start(quick, notify=Starts(), wait=False)
    assert inside.wait(SOON)
    closing = Aside(caravela.shutdown)
    own = default._own
    while own and not own._closed:
        pass
    lock = default._lock
    with monkeypatch.context() as patched:
        patched.setattr(default, "_lock", Announced())
        assert caravela.start(idle).update(bump)["n"] == 1
        assert done.wait(SOON)
    assert closing.done()
    caravela.shutdown()
    assert isinstance(first.wait(SOON), FlowDone | FlowStopped)
