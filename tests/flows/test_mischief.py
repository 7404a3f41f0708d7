"""Whatever the user's functions do, ``advance`` returns effects: a rejection, an error, a failure or a crash."""

import sys
from collections.abc import Callable
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caravela.errors import Cause, InvalidOutcome, LimitExceeded, NotPortable, StepRaised, StepTimedOut
from caravela.flows import (
    Error,
    Ok,
    Retry,
    Skip,
    debounce,
    each,
    flow,
    parallel,
    race,
    repeat,
    run,
    set_state,
    wait_until,
)
from caravela.flows import events as e
from caravela.supervisor.events import FlowDone, FlowError, FlowState, SignalRejected
from caravela.testing import simulate


class Unequal:
    """As numpy's arrays: ``==`` is no bool, and truth raises."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __eq__(self, other: object) -> Any:
        return Unequal(0)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise ValueError("the truth value is ambiguous")


class Unloadable:
    """Pickles, and does not load."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> Any:
    raise OSError("no")


class Rotting:
    """Loads once, for the check that it can be read back, and then no more."""

    loaded = 0

    def __reduce__(self) -> Any:
        return _rot, ()


def _rot() -> Any:
    Rotting.loaded += 1
    return Rotting() if Rotting.loaded == 1 else _refuse()


class Unpicklable:
    def __reduce__(self) -> Any:
        raise OSError("no")


class Proxy:
    """As an unbound proxy of a web framework."""

    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise RuntimeError("working outside of a context")


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit("not a word")


Set = type("set", (), {"__bool__": lambda self: True})  # reprlib goes by the name of a class
DIGITS = 10 ** (sys.get_int_max_str_digits() + 1)


def cyclic() -> Any:
    state: dict[str, Any] = {}
    state["self"] = state
    return state


def deep() -> Any:
    state: Any = []
    for _ in range(100_000):
        state = [state]
    return state


class Large:
    """Too large without the memory: 65 MiB of zeros, made when asked for."""

    def __call__(self) -> Any:
        return bytes(65 * 2**20)


BAD_STATES: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "too large": (Large(), LimitExceeded),
    "too deep": (deep, LimitExceeded),
    "cyclic": (cyclic, LimitExceeded),
    "a generator": (lambda: (n for n in "x"), NotPortable),
    "does not pickle": (Unpicklable, NotPortable),
    "an open file": (lambda: {"file": sys.stderr}, NotPortable),
}


@pytest.fixture(params=BAD_STATES.values(), ids=[*BAD_STATES])
def bad(request: pytest.FixtureRequest) -> tuple[Callable[[], Any], type[Exception]]:
    return request.param  # type: ignore[no-any-return]


def test_a_bad_state_from_a_body_is_an_error_and_retried(bad: Any) -> None:
    make, kind = bad
    attempts = []

    def body(state: Any) -> Ok:
        attempts.append(state)
        return Ok(make())

    sim = simulate(flow("bad", run(body, retries=1, base_delay=0)), {"a": 1})
    match sim.events:
        case [FlowError(why)]:
            assert isinstance(why, kind)
        case events:
            raise AssertionError(events)
    assert attempts == [{"a": 1}, {"a": 1}] and sim.state == {"a": 1}


def test_a_bad_state_in_a_retry_is_an_error(bad: Any) -> None:
    make, kind = bad
    sim = simulate(flow("bad", run(lambda state: Retry(make()))))
    assert isinstance(sim.events[-1], FlowError) and isinstance(sim.events[-1].reason, kind)


def test_a_bad_state_from_each_is_an_error(bad: Any) -> None:
    make, kind = bad
    sim = simulate(flow("bad", each("items", lambda item, state: Ok(make()))), {"items": [1]})
    assert isinstance(sim.events[-1], FlowError) and isinstance(sim.events[-1].reason, kind)


def test_a_bad_state_from_a_signal_is_a_rejection(bad: Any) -> None:
    make, kind = bad
    sim = simulate(flow("bad", wait_until(lambda state: False)), {"a": 1})
    sim.signal(lambda state: make())
    match sim.events:
        case [SignalRejected(error=StepRaised(type))]:
            assert type == f"{kind.__module__}.{kind.__qualname__}"
        case events:
            raise AssertionError(events)
    assert sim.state == {"a": 1}


def test_a_bad_state_from_set_state_is_a_crash(bad: Any) -> None:
    make, kind = bad
    sim = simulate(flow("bad", set_state(lambda state: make())), {"a": 1})
    match sim.events:
        case [FlowError(Cause("raised", detail))]:
            assert kind.__name__ in detail
        case events:
            raise AssertionError(events)
    assert sim.state == {"a": 1}


def test_a_bad_result_of_a_task_fails_the_flow(bad: Any) -> None:
    make, kind = bad
    sim = simulate(flow("bad", parallel(lambda state: [lambda: make()])))
    assert isinstance(sim.events[-1], FlowError) and isinstance(sim.events[-1].reason, kind)


def test_a_bad_reason_is_replaced_by_why(bad: Any) -> None:
    make, kind = bad
    sim = simulate(flow("bad", run(lambda state: Error(make()))))
    assert isinstance(sim.events[-1], FlowError) and isinstance(sim.events[-1].reason, kind)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, RecursionError, Mute])
def test_whatever_is_raised(error: type[BaseException]) -> None:
    def raises(*_: Any) -> Any:
        raise error

    sim = simulate(flow("raises", wait_until(lambda state: False)))
    sim.signal(raises)
    assert isinstance(sim.events[-1], SignalRejected) and not sim.done
    for step in (
        run(raises),
        wait_until(raises),
        set_state(raises),
        parallel(raises),
        parallel(lambda state: [raises]),
    ):
        sim = simulate(flow("raises", step))
        assert isinstance(sim.events[-1], FlowError) and sim.done


@pytest.mark.parametrize("value", [DIGITS, Set(), Unequal(1), {Unequal: DIGITS}, cyclic()], ids="abcde")
def test_an_outcome_that_cannot_be_printed(value: Any) -> None:
    sim = simulate(flow("odd", run(lambda state: value)))
    assert isinstance(sim.events[-1], FlowError) and isinstance(sim.events[-1].reason, InvalidOutcome)


def test_an_outcome_that_raises_when_looked_at(bench: Any) -> None:
    odd = bench(run(lambda state: None)).settle()
    match odd.returns(Proxy()):
        case [e.Crash(error)]:
            assert (error.type, error.path) == ("RuntimeError", "run")
        case effects:
            raise AssertionError(effects)
    sim = simulate(flow("odd", run(lambda state: Proxy())))
    assert isinstance(sim.events[-1], FlowError) and sim.events[-1].reason.type == "RuntimeError"


def test_states_are_never_compared() -> None:
    sim = simulate(
        flow(
            "unequal",
            set_state(lambda state: Unequal(1)),
            run(lambda state: Ok(Unequal(2))),
            run(lambda state: Retry(Unequal(3)) if state.n == 2 else None, retries=1, base_delay=0),
            wait_until(lambda state: state.n == 4),
        )
    )
    sim.signal(lambda state: Unequal(4))
    assert [event.state.n for event in sim.events if isinstance(event, FlowState | FlowDone)] == [1, 2, 3, 4, 4]


def test_reasons_are_never_compared() -> None:
    for step in (
        run(lambda state: Error(Unequal(7)), retries=1, base_delay=0),
        parallel(lambda s: [lambda: Error(Unequal(7))]),
    ):
        sim = simulate(flow("unequal", step))
        assert isinstance(sim.events[-1], FlowError) and sim.events[-1].reason.n == 7


def test_a_state_that_does_not_load_any_more_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (run(lambda state: None), each("items", lambda item, state: None), parallel(lambda state: [])):
        monkeypatch.setattr(Rotting, "loaded", 0)
        sim = simulate(flow("rotten", set_state(lambda state: Rotting()), step))
        match sim.events[-1]:
            case FlowError(Cause("raised", detail)):
                assert "UndecodableState" in detail
            case event:
                raise AssertionError(event)


UNREADABLE = NotPortable("state", "it cannot be read back: OSError: no")


def test_a_signal_whose_state_does_not_load_is_rejected() -> None:
    sim = simulate(flow("rotten", wait_until(lambda state: False)), {"n": 1})
    sim.signal(lambda state: Unloadable())
    sim.signal(lambda state: state | {"n": 2})
    rejected, after = sim.events
    assert isinstance(rejected, SignalRejected) and rejected.error is not None
    assert rejected.error.message == str(UNREADABLE)
    assert after == FlowState({"n": 2}, seq=1) and not sim.done


@pytest.mark.parametrize("outcome", [Ok, Retry, Error])
def test_a_body_whose_value_does_not_load_is_an_error(outcome: Callable[[Any], Any]) -> None:
    sim = simulate(flow("rotten", run(lambda state: outcome(Unloadable()))))
    assert isinstance(sim.events[-1], FlowError) and str(sim.events[-1].reason) == str(UNREADABLE)


def test_text_that_is_no_unicode() -> None:
    def raises(state: Any) -> Any:
        raise ValueError("\udc80")

    sim = simulate(flow("text", run(raises)))
    assert isinstance(sim.events[-1], FlowError) and sim.events[-1].reason.message == "\udc80"
    sim = simulate(flow("text", run(lambda state: Error("\udc80"))))
    assert isinstance(sim.events[-1], FlowError) and sim.events[-1].reason == "\udc80"


# ------------------------------------------------------------------ whatever, in whatever order


def _raise(error: BaseException) -> Any:
    raise error


ANSWERS: list[Callable[[Any], Any]] = [
    lambda state: None,
    lambda state: state,
    lambda state: True,
    lambda state: 0,
    lambda state: [1, 2],
    lambda state: {"items": [1, 2, 3]},
    lambda state: {"items": [1, 2, 3]},
    lambda state: state.pop("items"),
    lambda state: [print, len],
    lambda state: [lambda: 1, lambda: Ok(2)],
    lambda state: [],
    lambda state: Ok(),
    lambda state: Ok(state),
    lambda state: Ok({"items": [4]}),
    lambda state: Ok(None),
    lambda state: Ok(Unloadable()),
    lambda state: Ok(Unpicklable()),
    lambda state: Retry(),
    lambda state: Retry(state),
    lambda state: Retry({"items": []}),
    lambda state: Error("no"),
    lambda state: Error(Unpicklable()),
    lambda state: Skip(),
    lambda state: Unequal(1),
    lambda state: Unloadable(),
    lambda state: Proxy(),
    lambda state: DIGITS,
    lambda state: cyclic(),
    lambda state: _raise(ValueError("no")),
    lambda state: _raise(SystemExit(3)),
    lambda state: _raise(Mute()),
]
answers = st.sampled_from(ANSWERS)
STEPS: dict[str, Callable[[Callable[[Any], Any]], Any]] = {
    "set_state": set_state,
    "wait_until": lambda fn: wait_until(fn, timeout=3),
    "debounce": lambda fn: debounce(2, max_wait=5),
    "run": lambda fn: run(fn, retries=2, base_delay=1, timeout=4),
    "parallel": lambda fn: parallel(fn, max_concurrency=1, on_error="collect", timeout=4),
    "parallel, failing": lambda fn: parallel(fn),
    "race": lambda fn: race(fn, timeout=4),
    "each": lambda fn: each("items", lambda item, state: fn(state)),
    "repeat": lambda fn: repeat(run(fn, retries=1, backoff="constant", base_delay=1)),
}
steps = st.builds(lambda kind, fn: STEPS[kind](fn), st.sampled_from([*STEPS]), answers)
moves = st.one_of(
    st.tuples(st.just("signal"), answers),
    st.tuples(st.just("update"), answers),
    st.tuples(st.just("result"), answers),
    st.tuples(st.just("result"), answers),
    st.tuples(st.just("pass"), st.integers(0, 6)),
    st.tuples(st.just("pass"), st.integers(0, 6)),
    st.tuples(st.just("stop"), st.just(None)),
)


@settings(deadline=None, derandomize=True, database=None, max_examples=500)
@given(st.lists(steps, min_size=1, max_size=4), st.lists(moves, max_size=15), st.integers(1, 5))
def test_advance_never_raises_and_keeps_its_word(
    bench: Any, flow_steps: list[Any], history: list[Any], fuel: int
) -> None:
    """Also: tasks end once, seq is contiguous, no equal states in a row, one end, no answer twice."""
    one = bench(*flow_steps, state={"items": [1, 2]}, fuel=fuel)
    one.tick()
    out: list[e.StartTask] = []
    seen = 0
    calls = count(1)
    for move, what in [*history, ("pass", 1), ("pass", 10)]:
        match move:
            case "signal":
                one.signal(what)
            case "update":
                one.signal(what, call=next(calls))
            case "result" if out:
                start = out.pop(0)
                try:
                    value = what(one.codec.decode(one.machine.state))
                except BaseException as error:
                    one.raises(error, start.task)
                else:
                    one.returns(value, start.task)
            case "pass":
                one.now += what / 1000
                for _ in range(20):  # a repeat of what takes no time never waits
                    one.tick()
            case "stop":
                one.stop()
        out.extend(effect for effect in one.effects[seen:] if isinstance(effect, e.StartTask))
        seen = len(one.effects)

    ends = (e.Finish, e.Fail, e.Stopped, e.Crash)
    assert [type(effect) in ends for effect in one.effects].count(True) == one.machine.over
    assert not one.machine.over or type(one.effects[-1]) in ends
    cancelled = [effect.task for effect in one.all(e.CancelTask)]
    assert len(set(cancelled)) == len(cancelled)
    notified = one.all(e.Notify)
    assert [notify.seq for notify in notified] == [*range(1, len(notified) + 1)]
    states = [one.codec.encode({"items": [1, 2]}), *(notify.state for notify in notified)]
    assert all(before != after for before, after in pairwise(states))
    assert states[-1] == one.machine.state
    answered = [effect.call for effect in [*one.all(e.Applied), *one.all(e.Rejected)] if effect.call]
    assert len(set(answered)) == len(answered)
    for crash in one.all(e.Crash):
        assert crash.error.type != "AssertionError", crash.error.traceback


def test_a_deadline_is_always_kept(bench: Any) -> None:
    late = bench(run(lambda state: None, timeout=100)).settle()
    late.now = 5.0
    late.tick()
    match late.effects[-1]:
        case e.Fail(reason=reason):
            assert late.codec.decode(reason) == StepTimedOut("run", 100, 1)
        case effect:
            raise AssertionError(effect)
