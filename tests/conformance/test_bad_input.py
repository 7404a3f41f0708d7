"""Bad input gets a clear error, and nothing is lost. What a flow's definition refuses is in ``tests/flows``."""

import asyncio
import logging
import queue
import re
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flows_under_test import State, bump, finish, idle, is_done, refuse, unreachable
from listening import SOON, until

import caravela
from caravela import (
    AllFailed,
    BootError,
    Error,
    FlowDone,
    FlowError,
    FlowFailed,
    FlowNotRunning,
    InvalidOutcome,
    LimitExceeded,
    NotPortable,
    Ok,
    RetriesExhausted,
    Retry,
    SignalFailed,
    SignalRejected,
    Skip,
    Supervisor,
    UndecodableState,
    each,
    flow,
    parallel,
    race,
    run,
    set_state,
    wait_until,
)

# ------------------------------------------------------------------ what cannot travel


def with_lock() -> Callable[..., Any]:
    lock = threading.Lock()

    def signal(state: State) -> State:
        with lock:
            return state

    return signal


def test_what_a_signal_takes_with_it(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    for send in (handle.signal, handle.update):
        with pytest.raises(NotPortable, match=r"closure of \w+ → lock: "):
            send(with_lock())
        with pytest.raises(NotPortable, match=r"arguments of \w+\[1\]\['a'\]\[0\]"):
            send(bump, 1, {"a": [threading.Lock()]})
    assert handle.update(bump)["n"] == 1


@pytest.mark.parametrize("what", ["lock", "socket", "file", "generator", "thread", "supervisor", "handle"])
def test_what_stays_in_its_process(supervisor: Supervisor, what: str, tmp_path: Path) -> None:
    handle = supervisor.start(idle)
    with socket.socket() as open_socket, (tmp_path / "file").open("w") as open_file:
        thing = {
            "lock": threading.Lock(),
            "socket": open_socket,
            "file": open_file,
            "generator": (letter for letter in "abc"),
            "thread": threading.current_thread(),
            "supervisor": supervisor,
            "handle": handle,
        }[what]
        with pytest.raises(NotPortable, match=r"initial_state\['a'\]\[3\]"):
            supervisor.start(idle, initial_state={"a": [0, 1, 2, thing]})
        with pytest.raises(NotPortable, match="thing"):
            supervisor.start(flow("taking", run(lambda state: Ok(thing))))
    assert supervisor.count_children() == 1
    assert handle.update(bump)["n"] == 1


def test_a_state_of_a_local_class_is_refused_by_the_caller(supervisor: Supervisor) -> None:
    class Local:
        pass

    with pytest.raises(NotPortable, match=r"initial_state\['a'\]"):
        supervisor.start(idle, initial_state={"a": Local()})


def test_what_is_no_handle() -> None:
    three: Any = 3
    for call in (lambda: caravela.get_state(three), lambda: caravela.stop(three), lambda: caravela.signal(three, bump)):
        with pytest.raises(TypeError, match=r"handle=3 must be a FlowHandle, as start\(…\) returns it"):
            call()


def test_a_listener_that_takes_no_event(supervisor: Supervisor) -> None:
    with pytest.raises(TypeError, match=r"start: notify=.* cannot be called as fn\(event\)"):
        supervisor.start(idle, notify=lambda: None)


def test_a_flow_that_is_nowhere_is_named_whole(supervisor: Supervisor) -> None:
    with pytest.raises(BootError, match=r"flow 'nowhere\.at_all:flow' cannot start: ModuleNotFoundError"):
        supervisor.start("nowhere.at_all:flow")


# ------------------------------------------------------------------ what cannot begin


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no_such_module:flow", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("flows_under_test:missing", "AttributeError: .*missing"),
        ("flows_under_test:not_a_flow", "TypeError: flows_under_test:not_a_flow is not a Flow but 3"),
    ],
)
def test_a_flow_that_is_not_there(supervisor: Supervisor, name: str, why: str) -> None:
    with pytest.raises(BootError, match=why) as failed:
        supervisor.start(name)
    assert failed.value.remote is not None and failed.value.remote.traceback in str(failed.value)
    assert supervisor.start(idle).get_state()


def raise_and_count(path: str) -> State:
    with open(path, "a") as file:
        file.write("called\n")
    return unreachable()


@pytest.mark.parametrize("restart", ["temporary", "transient", "permanent"])
def test_a_first_state_that_cannot_be_made(supervisor: Supervisor, restart: Any, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    with pytest.raises(BootError, match="flow 'idle' cannot start: ConnectionError: no database here") as failed:
        supervisor.start(idle, initial_state=partial(raise_and_count, str(calls)), restart=restart)
    assert "unreachable" in str(failed.value), "the worker's traceback"
    assert supervisor.count_children() == 0
    assert supervisor.start(idle).get_state(), "the supervisor is unharmed"
    assert calls.read_text() == "called\n", "once, no hot loop"


def test_without_waiting_it_is_a_flow_error(supervisor: Supervisor) -> None:
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    handle = supervisor.start(idle, initial_state=unreachable, notify=inbox, wait=False)
    (event,) = until(inbox)
    assert isinstance(event, FlowError)
    assert event.reason.kind == "boot" and "no database here" in str(event.reason)
    assert event.reason.error is not None and "unreachable" in event.reason.error.traceback
    with pytest.raises(FlowNotRunning, match="no database here"):
        handle.get_state()


def test_a_refused_start_tells_nobody_else(supervisor: Supervisor) -> None:
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with pytest.raises(BootError):
        supervisor.start(idle, initial_state=unreachable, notify=inbox)
    assert inbox.empty()


def exit_first() -> State:
    raise SystemExit("no state today")


def return_a_lock() -> Any:
    return {"lock": threading.Lock()}


@pytest.mark.parametrize(
    ("factory", "why"),
    [(exit_first, "SystemExit: no state today"), (return_a_lock, r"NotPortable: state\['lock'\]")],
)
def test_factories_gone_wrong(supervisor: Supervisor, factory: Any, why: str) -> None:
    with pytest.raises(BootError, match=why):
        supervisor.start(idle, initial_state=factory)


def test_arguments_of_start(supervisor: Supervisor) -> None:
    start: Any = supervisor.start
    for bad in (3, None, "no colon", ":", "module:", ":attribute", bump):
        with pytest.raises(TypeError, match=r"must be a Flow or 'package\.module:attribute'"):
            start(bad)
    with pytest.raises(TypeError, match="notify=3 must be a queue"):
        start(idle, notify=3)
    with pytest.raises(ValueError, match="restart='always': allowed are 'permanent', 'transient', 'temporary'"):
        start(idle, restart="always")
    with pytest.raises(TypeError, match="name='' must be a non-empty str"):
        start(idle, name="")
    with pytest.raises(TypeError, match="is told on the loop that runs at start, and none runs here"):
        start(idle, notify=asyncio.Queue())
    assert supervisor.count_children() == 0


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"engine": "spawn"}, NotImplementedError, "engine='spawn' comes with the support of platforms"),
        ({"engine": "thread"}, ValueError, "engine='thread': allowed are 'process', 'inline'"),
        ({"restart": "never"}, ValueError, "restart='never': allowed are"),
        ({"max_restarts": -1}, ValueError, "max_restarts=-1"),
        ({"max_restarts": 1.5}, TypeError, "max_restarts=1.5"),
        ({"max_seconds": "5"}, TypeError, "max_seconds='5'"),
        ({"shutdown": -1}, ValueError, "shutdown=-1"),
        ({"boot_timeout": float("nan")}, ValueError, "boot_timeout=nan"),
        ({"trust": "all"}, ValueError, "trust='all': allowed are"),
        ({"preload": "numpy"}, TypeError, "preload='numpy' must be a tuple of names of modules"),
    ],
)
def test_arguments_of_a_supervisor(options: dict[str, Any], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        Supervisor(**options)


def test_arguments_of_a_handle(supervisor: Supervisor) -> None:
    handle: Any = supervisor.start(idle)
    for send in (handle.signal, handle.update):
        with pytest.raises(TypeError, match="takes a function or the name of a declared signal, not 3"):
            send(3)
        with pytest.raises(ValueError, match="timeout=-1"):
            send(bump, timeout=-1)
        with pytest.raises(TypeError, match="timeout='1'"):
            send(bump, timeout="1")
    with pytest.raises(ValueError, match="timeout=-1"):
        handle.get_state(-1)
    with pytest.raises(ValueError, match="maxsize=0"):
        handle.subscribe(maxsize=0)
    assert handle.get_state()["n"] == 0


def test_what_comes_later_says_so() -> None:
    with pytest.raises(NotImplementedError, match="executor='process'"):
        flow("later", run(lambda _: None, executor="process"))  # type: ignore[arg-type]


# ------------------------------------------------------------------ signals that raise


def test_an_update_raises_in_its_caller(supervisor: Supervisor) -> None:
    handle = supervisor.start(idle)
    with pytest.raises(SignalFailed, match="ValueError: as told") as failed:
        handle.update(refuse)
    remote = failed.value.remote
    assert (remote.type, remote.message) == ("ValueError", "as told")
    assert "in refuse" in remote.traceback and "flows_under_test.py" in remote.traceback
    assert "caravela" not in remote.traceback.partition("\n")[2].partition("\n")[0], "it begins at the user's frame"
    assert handle.update(bump)["n"] == 1


def test_a_signal_is_reported_and_logged(supervisor: Supervisor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    handle = supervisor.start(idle)
    rejected = handle.subscribe((SignalRejected,))
    handle.signal(refuse)
    (event,) = until(rejected, SignalRejected)
    assert event.error.type == "ValueError" and event.error.message == "as told" and not event.late
    assert handle.update(bump)["n"] == 1
    (record,) = [record for record in caplog.records if record.name == "caravela"]
    assert record.message == f"flow {handle.id} rejected a signal: ValueError: as told in signal refuse"


@pytest.mark.parametrize(
    ("signal", "why"),
    [
        ("unknown", "LookupError: the flow declares no signal 'unknown'; it declares 'bump', 'append'"),
        (lambda state: None, "TypeError: the function returned None; return the new state"),
        (lambda state, more: state, "TypeError: .*missing 1 required positional argument: 'more'"),
    ],
)
def test_other_ways_to_be_refused(supervisor: Supervisor, signal: Any, why: str) -> None:
    handle = supervisor.start(idle)
    with pytest.raises(SignalFailed, match=why):
        handle.update(signal)
    assert handle.update(bump)["n"] == 1


# ------------------------------------------------------------------ outcomes


def test_an_outcome_that_is_none(supervisor: Supervisor) -> None:
    cases: list[tuple[Any, str, str]] = [
        (run(lambda _: 42, retries=5), "int 42", r"Ok\(\), Ok\(state\), Retry\(state\), Error\(reason\) and None"),
        (run(lambda _: {"n": 1}, retries=5), "dict", r"Ok\(state\)"),
        (run(lambda _: Ok), "type", r"Ok\(state\)"),
        (each("items", lambda item, _: Retry()), "Retry", r"Skip\(reason\)"),
        (parallel(lambda _: 3), "int 3", "a list of zero-argument functions"),
        (parallel(lambda _: [1]), "int 1", "a list of zero-argument functions"),
        (parallel(lambda _: [Skip]), "Skip", r"Ok\(value\)"),
        (race(lambda _: []), "list", "at least one"),
    ]
    for step, got, allowed in cases:
        handle = supervisor.start(flow("wrong", step), initial_state={"items": [1]})
        with pytest.raises(FlowFailed) as failed:
            handle.result(SOON)
        reason = failed.value.reason
        assert isinstance(reason, InvalidOutcome), (step, reason)
        assert got in str(reason)
        assert re.search(allowed, str(reason))
        assert handle.cause is None


def test_reasons_arrive_as_they_were(supervisor: Supervisor) -> None:
    made = flow("asking", run(lambda state: Retry(state + 1), retries=2, base_delay=0), initial_state=0)
    with pytest.raises(FlowFailed) as failed:
        supervisor.start(made).result(SOON)
    assert failed.value.reason == RetriesExhausted(3, 3, "run")
    made = flow("racing", race([lambda: Error("one"), lambda: Error({"two": 2})]))
    with pytest.raises(FlowFailed) as failed:
        supervisor.start(made).result(SOON)
    assert failed.value.reason == AllFailed(["one", {"two": 2}])


# ------------------------------------------------------------------ limits


def too_large(state: State) -> State:
    return {"large": bytes(64 * 2**20 + 1)}


def too_deep(state: State) -> State:
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    return {"deep": deep}


def cyclic(state: State) -> State:
    state["self"] = state
    return state


LIMITS = pytest.mark.parametrize(
    ("break_limit", "why"),
    [
        (too_large, r"state has 67,1\d\d,\d\d\d bytes; the limit is 67,108,864"),
        (too_deep, r"state has .* levels \(or is cyclic\); the limit is"),
        (cyclic, r"state has .* levels \(or is cyclic\); the limit is"),
    ],
)


@LIMITS
def test_from_a_body_an_error(supervisor: Supervisor, break_limit: Callable[[State], State], why: str) -> None:
    handle = supervisor.start(flow("large", run(lambda state: Ok(break_limit(state)))), initial_state={"n": 0})
    with pytest.raises(FlowFailed, match=why) as failed:
        handle.result(SOON)
    assert isinstance(failed.value.reason, LimitExceeded)
    assert handle.last_state == {"n": 0} and handle.incarnation == 1


@LIMITS
def test_from_a_signal_a_rejection(supervisor: Supervisor, break_limit: Callable[[State], State], why: str) -> None:
    handle = supervisor.start(idle)
    with pytest.raises(SignalFailed, match=why) as failed:
        handle.update(break_limit)
    assert failed.value.remote.type == "caravela.errors.LimitExceeded"
    assert handle.update(bump)["n"] == 1 and handle.incarnation == 1


@LIMITS
def test_from_set_state_a_crash(supervisor: Supervisor, break_limit: Callable[[State], State], why: str) -> None:
    made = flow("large", set_state(break_limit), initial_state={"n": 0})
    handle = supervisor.start(made, restart="temporary")
    event = handle.wait(SOON)
    assert isinstance(event, FlowError) and event.reason.kind == "raised"
    assert re.search(why, str(event.reason))
    assert event.reason.path == "set_state"


@pytest.mark.parametrize("value", [too_large({}), too_deep({}), cyclic({})], ids=["large", "deep", "cyclic"])
def test_from_the_caller_an_error_there(supervisor: Supervisor, value: State) -> None:
    with pytest.raises(LimitExceeded, match="initial_state has"):
        supervisor.start(idle, initial_state=value)
    handle = supervisor.start(idle)
    with pytest.raises(LimitExceeded, match="arguments of signal has"):
        handle.signal(bump, value)
    assert handle.update(bump)["n"] == 1


# ------------------------------------------------------------------ trust


class Mine:
    """Goes by pickle."""


def test_pickles_can_be_refused(supervise: Callable[..., Supervisor]) -> None:
    supervisor = supervise(trust="data")
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    handle = supervisor.start(idle, notify=inbox)
    handle.signal(lambda state: state | {"mine": Mine()})
    with pytest.raises(UndecodableState, match="not trusted"):
        handle.get_state()
    with pytest.raises(UndecodableState, match="not trusted"):
        inbox.get(timeout=SOON).state  # noqa: B018
    handle.signal(lambda state: {"n": 5})
    assert handle.update(bump) == {"n": 6}
    handle.signal(finish)
    assert isinstance(handle.wait(SOON), FlowDone)


def test_a_reason_that_is_not_trusted_does_not_hide_the_end(supervise: Callable[..., Supervisor]) -> None:
    supervisor = supervise(trust="data")
    handle = supervisor.start(flow("failing", wait_until(is_done), run(lambda _: Error(Mine()))))
    handle.signal(finish)
    assert isinstance(handle.wait(SOON), FlowError)
    with pytest.raises(FlowNotRunning, match="it failed"):
        handle.get_state()
    with pytest.raises(UndecodableState, match="not trusted"):
        handle.result()


# ------------------------------------------------------------------ calls


async def waits(state: State) -> State:
    return state


def yields(state: State) -> Any:
    yield state


@pytest.mark.parametrize("function", [waits, yields, lambda: None])
@pytest.mark.parametrize("call", ["signal", "update"])
def test_a_signal_that_waits_yields_or_takes_nothing(supervisor: Supervisor, call: str, function: Any) -> None:
    handle = supervisor.start(idle)
    with pytest.raises(TypeError, match=f"{call}: function="):
        getattr(handle, call)(function)
    assert handle.get_state() == handle.last_state


@pytest.mark.parametrize("call", ["get_state", "wait", "result", "stop"])
@pytest.mark.parametrize(("timeout", "error"), [(-1, ValueError), ("x", TypeError), (1e9, ValueError)])
def test_a_timeout_that_is_none(supervisor: Supervisor, call: str, timeout: Any, error: type[Exception]) -> None:
    handle = supervisor.start(idle)
    with pytest.raises(error, match="timeout="):
        getattr(handle, call)(timeout=timeout)
    assert handle.status == "running"
