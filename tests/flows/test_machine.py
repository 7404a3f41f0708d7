"""Every row of the step table, on virtual time. What a user's function may do wrong is in test_mischief.py."""

import asyncio
import itertools
import math
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from caravela.errors import AllFailed, Cause, InvalidOutcome, RetriesExhausted, StepRaised, StepTimedOut
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
    sequence,
    set_state,
    wait,
    wait_until,
)
from caravela.flows import events as e
from caravela.flows.backoff import delay_ms
from caravela.flows.steps import Run
from caravela.supervisor.events import FlowDone, FlowError, FlowState, FlowStopped, SignalRejected
from caravela.testing import Script, Simulation, simulate, takes

State = dict[str, Any]


def put(state: State, key: str, value: Any = True) -> State:
    return state | {key: value}


def putting(key: str, value: Any = True) -> Callable[[State], State]:
    return lambda state: state | {key: value}


def body(state: State) -> Any:
    raise AssertionError("not scripted")


def sim_of(*steps: Any, state: Any = None, **options: Any) -> Simulation:
    return simulate(flow("flow", *steps), {} if state is None else state, **options)


def scripted(step: Any, *scripts: Script) -> Simulation:
    return sim_of(step, bodies={body: list(scripts)})


def starts(sim: Simulation, path: str = "run") -> int:
    return sum(place == path for place, _ in sim.trace)


def reason(sim: Simulation) -> Any:
    match sim.events[-1]:
        case FlowError(why):
            return why
        case event:
            raise AssertionError(f"did not fail: {event}")


# ------------------------------------------------------------------ sequence, repeat


def test_steps_run_in_order_and_the_last_state_is_the_result() -> None:
    sim = sim_of(set_state(putting("a")), sequence(set_state(putting("b")), sequence()), set_state(putting("c")))
    assert sim.events == [
        FlowState({"a": True}, seq=1),
        FlowState({"a": True, "b": True}, seq=2),
        FlowState({"a": True, "b": True, "c": True}, seq=3),
        FlowDone({"a": True, "b": True, "c": True}, seq=4),
    ]
    assert [path for path, _ in sim.trace] == [
        "set_state[0]",
        "sequence[1]",
        "sequence[1]/set_state[0]",
        "sequence[1]/sequence[1]",
        "set_state[2]",
    ]


def test_a_flow_without_steps_is_done() -> None:
    assert sim_of().events == [FlowDone({}, seq=1)]


def test_repeat_goes_on_for_ever() -> None:
    sim = sim_of(repeat(wait(10), set_state(lambda state: state + 1)), state=0)
    sim.advance(1005)
    assert sim.state == 100 and not sim.done


def test_ten_thousand_nested_sequences(bench: Any) -> None:
    step: Any = set_state(putting("deep"))
    for _ in range(10_000):
        step = sequence(step)
    deep = bench(step)
    ticks = 0
    while not deep.machine.over:
        assert len(deep.tick()) <= 2
        ticks += 1
    assert deep.state == {"deep": True} and ticks > 100, "it yields on the way"


# ------------------------------------------------------------------ wait, wait_until


def test_wait_is_exact_and_applies_signals_meanwhile() -> None:
    sim = sim_of(wait(300))
    sim.advance(100)
    sim.signal(put, "a")
    assert sim.state == {"a": True}
    sim.advance(199)
    assert not sim.done
    sim.advance(1)
    assert sim.done and sim.now == 300


@pytest.mark.parametrize("ms", [0, 0.1, timedelta(seconds=1), 86_400_000])
def test_wait_takes_any_duration(ms: Any) -> None:
    sim = sim_of(wait(ms))
    sim.advance(ms / timedelta(milliseconds=1) if isinstance(ms, timedelta) else ms)
    assert sim.done


def test_wait_until_passes_at_once_when_true() -> None:
    assert sim_of(wait_until(lambda state: state == {})).done


def test_wait_until_is_asked_after_each_applied_signal() -> None:
    asked = []

    def ready(state: State) -> bool:
        asked.append(state)
        return "ready" in state

    sim = sim_of(wait_until(ready))
    sim.signal(put, "other")
    sim.signal(lambda state: {}["missing"])  # rejected: not asked
    sim.advance(1000)
    assert len(asked) == 2 and not sim.done
    sim.signal(put, "ready")
    assert sim.done and len(asked) == 3


def test_wait_until_times_out_as_an_error() -> None:
    sim = sim_of(wait_until(lambda state: False, timeout=50))
    sim.signal(put, "a")  # does not begin it anew
    sim.advance(49)
    assert not sim.done
    sim.advance(1)
    assert reason(sim) == StepTimedOut("wait_until", 50, 1)


# ------------------------------------------------------------------ debounce


def test_debounce_waits_for_quiet() -> None:
    sim = sim_of(debounce(100))
    sim.advance(99)
    sim.signal(put, "a")
    sim.advance(99)
    assert not sim.done
    sim.advance(1)
    assert sim.done and sim.now == 199


def test_a_signal_that_changes_nothing_resets_a_debounce_a_rejected_one_does_not() -> None:
    sim = sim_of(debounce(100))
    sim.advance(60)
    sim.signal(lambda state: state)
    sim.advance(60)
    sim.signal(lambda state: {}["missing"])
    sim.signal(lambda state: None)
    sim.advance(39)
    assert not sim.done
    sim.advance(1)
    assert sim.done and sim.now == 160


def test_max_wait_counts_from_entry() -> None:
    sim = sim_of(wait(50), debounce(100, max_wait=250))
    for _ in range(5):
        sim.advance(59)
        sim.signal(put, "a")
    assert sim.now == 295 and not sim.done
    sim.advance(5)
    assert sim.done and sim.now == 300


def test_max_wait_below_ms() -> None:
    sim = sim_of(debounce(100, max_wait=30))
    sim.advance(30)
    assert sim.done


def test_each_debounce_begins_afresh() -> None:
    sim = sim_of(repeat(debounce(100, max_wait=150), set_state(lambda state: state | {"n": state.get("n", 0) + 1})))
    sim.advance(1000)
    assert sim.state == {"n": 10}


def test_a_signal_beats_the_debounce_that_ends_at_the_same_moment(bench: Any) -> None:
    settling = bench(debounce(100)).settle()
    settling.now = 0.1
    settling.signal(put, "a")
    settling.tick()
    assert not settling.machine.over and settling.machine.deadline == 0.2


# ------------------------------------------------------------------ set_state


def test_set_state_that_changes_nothing_says_nothing() -> None:
    assert sim_of(set_state(lambda state: dict(state)), state={"a": 1}).events == [FlowDone({"a": 1}, seq=1)]


# ------------------------------------------------------------------ run: what it returns


@pytest.mark.parametrize("outcome", [None, Ok()])
def test_run_goes_on_with_the_state_as_it_is(outcome: Any) -> None:
    assert scripted(run(body), takes(0, returns=outcome)).events == [FlowDone({}, seq=1)]


def test_run_goes_on_with_the_state_that_it_returns() -> None:
    sim = scripted(run(body), takes(0, returns=Ok({"a": 1})))
    assert sim.events == [FlowState({"a": 1}, seq=1), FlowDone({"a": 1}, seq=2)]


def test_run_gets_the_state() -> None:
    assert sim_of(run(lambda state: Ok(state | {"n": state["n"] + 1})), state={"n": 1}).state == {"n": 2}


@pytest.mark.parametrize("carried", [Retry({"tries": 1}), Retry()])
def test_retry_tries_again_with_the_state_that_it_carries(carried: Retry) -> None:
    seen: list[State] = []

    def second(state: State) -> Ok:
        seen.append(state)
        return Ok()

    sim = scripted(run(body, retries=1), takes(0, returns=carried), takes(0, calls=second))
    sim.advance(99)
    assert not seen and not sim.done
    sim.advance(1)
    assert sim.done and seen == [{"tries": 1} if carried != Retry() else {}]


def test_retry_spent_fails_with_retries_exhausted() -> None:
    sim = scripted(run(body, retries=2, base_delay=0), takes(0, returns=Retry({"n": 1})))
    assert reason(sim) == RetriesExhausted(3, {"n": 1}, "run")
    assert starts(sim) == 3 and [attempt for _, attempt in sim.trace] == [1, 2, 3]


@pytest.mark.parametrize("retries", [0, 1, 5])
def test_error_is_retried_then_fails_the_flow_with_its_reason(retries: int) -> None:
    sim = scripted(run(body, retries=retries, base_delay=0), takes(0, returns=Error({"why": ("any", "value")})))
    assert reason(sim) == {"why": ("any", "value")} and starts(sim) == retries + 1


def test_a_raise_is_retried_then_fails_the_flow_as_text() -> None:
    sim = scripted(run(body, retries=1, base_delay=0), takes(0, raises=OSError("no route")))
    match reason(sim):
        case StepRaised("OSError", "no route", path="run", attempt=2):
            pass
        case other:
            raise AssertionError(other)
    assert starts(sim) == 2


def test_the_attempt_that_works_ends_the_retries() -> None:
    script = [takes(0, raises=OSError()), takes(0, returns=Error()), takes(0, returns=Ok({"ok": True}))]
    sim = scripted(run(body, retries=9, base_delay=0), *script)
    assert sim.done and sim.state == {"ok": True} and starts(sim) == 3


@pytest.mark.parametrize("outcome", [0, False, {}, {"a": 1}, "ok", Ok, (Ok(),), [None], Skip("no"), ValueError("x")])
def test_anything_else_is_an_invalid_outcome_and_not_retried(outcome: Any) -> None:
    sim = scripted(run(body, retries=5), takes(0, returns=outcome))
    match reason(sim):
        case InvalidOutcome("run", got, "Ok(), Ok(state), Retry(state), Error(reason) and None"):
            assert got.startswith(type(outcome).__name__)
        case other:
            raise AssertionError(other)
    assert starts(sim) == 1


# ------------------------------------------------------------------ run: when it tries again


@pytest.mark.parametrize(
    ("options", "delays"),
    [
        ({}, [100, 200, 300, 400]),
        ({"backoff": "constant"}, [100, 100, 100, 100]),
        ({"backoff": "linear", "base_delay": 7}, [7, 14, 21, 28]),
        ({"backoff": "exponential", "base_delay": 200}, [200, 400, 800, 1600]),
        ({"backoff": "exponential", "base_delay": 200, "max_delay": 500}, [200, 400, 500, 500]),
        ({"backoff": "linear", "max_delay": 250}, [100, 200, 250, 250]),
        ({"backoff": "constant", "max_delay": 30}, [30, 30, 30, 30]),
        ({"base_delay": 0}, [0, 0, 0, 0]),
        ({"base_delay": timedelta(seconds=1), "max_delay": timedelta(seconds=2)}, [1000, 2000, 2000, 2000]),
    ],
)
def test_backoff_at_exact_times(options: Any, delays: list[float]) -> None:
    at: list[float] = []
    clock: list[Simulation] = []

    def fails(state: State) -> Error:
        at.append(clock[0].now if clock else 0)
        return Error("again")

    sim = sim_of(run(fails, retries=4, **options), bodies={fails: takes(10)})
    clock.append(sim)
    sim.advance(60_000)
    assert reason(sim) == "again"
    assert [after - before - 10 for before, after in itertools.pairwise(at)] == pytest.approx(delays)


@pytest.mark.parametrize(("jitter", "drawn", "delay"), [(0, 0.9, 800), (0.5, 0.5, 600), (1, 0.25, 600), (1, 0, 800)])
def test_jitter_only_shortens(jitter: float, drawn: float, delay: float) -> None:
    step = Run(body, retries=9, backoff="exponential", base_delay=100, max_delay=800, jitter=jitter)
    assert delay_ms(step, 6, lambda: drawn) == delay


@pytest.mark.parametrize("backoff", ["constant", "linear", "exponential"])
def test_a_late_attempt_still_has_a_number_as_delay(backoff: Any) -> None:
    assert delay_ms(Run(body, backoff=backoff, max_delay=1000), 10**9, lambda: 0.0) <= 1000


def test_the_seed_decides_the_jitter() -> None:
    def end(seed: int) -> list[float]:
        sim = simulate(
            flow("jitter", run(body, retries=3, jitter=1)), seed=seed, bodies={body: takes(0, raises=OSError())}
        )
        moments = []
        while not sim.done:
            sim.advance(1)
            if len(sim.trace) > len(moments):
                moments.append(sim.now)
        return moments

    assert end(1) == end(1) != end(2)


def test_signals_are_applied_while_it_waits_to_try_again() -> None:
    sim = scripted(run(body, retries=1), takes(0, returns=Error()), takes(0, calls=lambda state: Ok(state | {"b": 1})))
    sim.advance(50)
    sim.signal(put, "a", 1)
    sim.advance(50)
    assert sim.done and sim.state == {"a": 1, "b": 1}


# ------------------------------------------------------------------ run: timeouts


def test_an_attempt_that_takes_too_long_is_an_error() -> None:
    sim = scripted(run(body, timeout=50), takes(51, returns=Ok({"late": True})))
    sim.advance(50)
    assert reason(sim) == StepTimedOut("run", 50, 1)
    sim.advance(10)
    assert sim.state == {}, "what it brings is nobody's any more"


def test_a_result_beats_the_timeout_of_the_same_moment() -> None:
    sim = scripted(run(body, timeout=50), takes(50, returns=Ok({"a": 1})))
    sim.advance(50)
    assert sim.state == {"a": 1}


def test_a_timeout_is_retried_and_the_abandoned_attempt_is_ignored() -> None:
    sim = scripted(
        run(body, timeout=50, retries=1, base_delay=10),
        takes(70, returns=Ok({"from": "the first"})),
        takes(40, returns=Ok({"from": "the second"})),
    )
    sim.advance(70)
    assert sim.state == {}
    sim.advance(30)
    assert sim.done and sim.state == {"from": "the second"} and sim.now == 100


# ------------------------------------------------------------------ async bodies


def test_async_bodies_take_virtual_time() -> None:
    async def slow(state: State) -> Ok:
        await asyncio.sleep(3600)  # stands for work
        return Ok(state | {"done": True})

    sim = sim_of(run(slow))
    sim.advance(3_599_999)
    assert not sim.done
    sim.advance(1)
    assert sim.state == {"done": True}


def test_an_async_body_is_cancelled_by_its_timeout() -> None:
    cancelled = []

    async def hangs(state: State) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(state)
            raise

    sim = sim_of(run(hangs, timeout=10))
    sim.advance(10)
    assert isinstance(reason(sim), StepTimedOut) and cancelled == [{}]


def test_an_async_body_that_raises_cancelled_error_has_raised() -> None:
    async def gives_up(state: State) -> None:
        raise asyncio.CancelledError

    match reason(sim_of(run(gives_up))):
        case StepRaised(type="asyncio.exceptions.CancelledError"):
            pass
        case other:
            raise AssertionError(other)


def test_a_partial_of_an_async_body() -> None:
    async def fill(value: int, state: State) -> Ok:
        return Ok(state | {"n": await asyncio.to_thread(lambda: value)})

    assert sim_of(run(partial(fill, 7))).state == {"n": 7}


# ------------------------------------------------------------------ parallel


def tasks_of(*scripts: Script) -> tuple[Any, dict[str, Script]]:
    """A builder of scripted tasks ``task0``, ``task1``, … and its scripts."""

    def task() -> None: ...

    tasks = []
    for number in range(len(scripts)):
        one = partial(task)
        one.__name__ = f"task{number}"  # type: ignore[attr-defined]
        tasks.append(one)
    return (lambda state: tasks), {f"task{number}": script for number, script in enumerate(scripts)}


def test_parallel_keeps_the_order_of_its_tasks() -> None:
    build, bodies = tasks_of(
        takes(30, returns="a"), takes(10, returns=Ok("b")), takes(20, returns=Ok()), takes(0, returns=None)
    )
    sim = sim_of(parallel(build, collect_as="got"), bodies=bodies)
    sim.advance(29)
    assert not sim.events
    sim.advance(1)
    assert sim.events == [
        FlowState({"got": ["a", "b", None, None]}, seq=1),
        FlowDone({"got": ["a", "b", None, None]}, seq=2),
    ]


def test_parallel_collects_under_its_default_key() -> None:
    assert sim_of(parallel(lambda state: [lambda: 1, lambda: 2])).state == {"parallel_results": [1, 2]}


@pytest.mark.parametrize("none", [[], (), iter([])])
def test_parallel_of_nothing_is_an_empty_list(none: Any) -> None:
    assert sim_of(parallel(lambda state: none)).state == {"parallel_results": []}


def test_the_builder_may_be_a_generator() -> None:
    assert sim_of(parallel(lambda state: (partial(str, n) for n in range(3)))).state["parallel_results"] == [
        "0",
        "1",
        "2",
    ]


@pytest.mark.parametrize(("limit", "at_once"), [(1, 1), (3, 3), (200, 100), (None, 64)])
def test_parallel_runs_so_many_at_once(bench: Any, limit: int | None, at_once: int) -> None:
    many = bench(parallel(lambda state: [lambda: None] * 100, max_concurrency=limit)).settle()
    assert len(many.all(e.StartTask)) == at_once
    assert all(start.pooled and start.args == () for start in many.all(e.StartTask))
    for task in range(1, 101):
        many.returns(task, task)
        assert len(many.all(e.StartTask)) == min(100, at_once + task)
    assert many.state == {"parallel_results": list(range(1, 101))}


def test_a_failing_task_cancels_the_rest_and_fails_the_flow() -> None:
    build, bodies = tasks_of(takes(30, returns=1), takes(10, returns=Error("this one")), takes(math.inf))
    sim = sim_of(parallel(build), bodies=bodies)
    sim.advance(10)
    assert reason(sim) == "this one" and sim.state == {}


def test_a_task_that_raises_fails_the_flow() -> None:
    build, bodies = tasks_of(takes(10, raises=OSError("gone")))
    sim = sim_of(parallel(build), bodies=bodies)
    sim.advance(10)
    assert reason(sim).message == "gone"


def test_failing_cancels_what_runs_and_starts_nothing_more(bench: Any) -> None:
    some = bench(parallel(lambda state: [lambda: None] * 5, max_concurrency=3)).settle()
    some.returns(Error("x"), task=2)
    assert [cancel.task for cancel in some.all(e.CancelTask)] == [1, 3]
    assert len(some.all(e.StartTask)) == 3 and some.all(e.Fail)


def test_on_error_collect_lets_errors_stand_in_the_list() -> None:
    build, bodies = tasks_of(takes(1, returns=1), takes(2, returns=Error("no")), takes(3, raises=OSError("gone")))
    sim = sim_of(parallel(build, on_error="collect"), bodies=bodies)
    sim.advance(3)
    match sim.state:
        case {"parallel_results": [1, Error("no"), Error(StepRaised(type="OSError"))]}:
            pass
        case other:
            raise AssertionError(other)


def test_on_error_collect_knows_the_one_that_cannot_travel() -> None:
    build, bodies = tasks_of(takes(1, returns=1), takes(2, returns=open), takes(3, returns=(n for n in "x")))
    sim = sim_of(parallel(build, on_error="collect"), bodies=bodies)
    sim.advance(3)
    match sim.state["parallel_results"]:
        case [1, function, Error(why)]:
            assert function is open and type(why).__name__ == "NotPortable"
        case other:
            raise AssertionError(other)


@pytest.mark.parametrize("outcome", [Retry(), Retry(1), Skip()])
def test_a_task_cannot_retry_or_skip(outcome: Any) -> None:
    build, bodies = tasks_of(takes(0, returns=outcome))
    assert isinstance(reason(sim_of(parallel(build), bodies=bodies)), InvalidOutcome)


@pytest.mark.parametrize("built", [None, 7, {"a": 1}, "ab", [1], [print, None]])
def test_a_builder_of_anything_else_is_an_invalid_outcome(built: Any) -> None:
    for step in (parallel(lambda state: built), race(lambda state: built)):
        assert isinstance(reason(sim_of(step)), InvalidOutcome)


def test_parallel_times_out() -> None:
    build, bodies = tasks_of(takes(10, returns=1), takes(100, returns=2))
    sim = sim_of(parallel(build, timeout=50), bodies=bodies)
    sim.advance(50)
    assert reason(sim) == StepTimedOut("parallel", 50, 1)


def test_a_timeout_with_collect_stands_where_results_are_missing() -> None:
    build, bodies = tasks_of(takes(10, returns=1), takes(100, returns=2), takes(0, returns=3))
    sim = sim_of(parallel(build, timeout=50, on_error="collect", max_concurrency=2), bodies=bodies)
    sim.advance(50)
    assert sim.state == {"parallel_results": [1, Error(StepTimedOut("parallel", 50, 1)), 3]}
    sim.advance(100)
    assert sim.done


def test_parallel_sets_only_its_key_on_the_visible_state() -> None:
    build, bodies = tasks_of(takes(10, returns=1))
    sim = sim_of(parallel(build), bodies=bodies)
    sim.signal(put, "meanwhile")
    sim.advance(10)
    assert sim.state == {"meanwhile": True, "parallel_results": [1]}


def test_async_tasks_run_at_once() -> None:
    async def work(ms: int) -> int:
        await asyncio.sleep(ms / 1000)  # stands for work
        return ms

    sim = sim_of(parallel(lambda state: [partial(work, 30), partial(work, 20)]))
    sim.advance(30)
    assert sim.state == {"parallel_results": [30, 20]}


# ------------------------------------------------------------------ race


def raced(*scripts: Script, **options: Any) -> Simulation:
    build, bodies = tasks_of(*scripts)
    return sim_of(race(build, **options), bodies=bodies)


def test_the_first_to_succeed_wins_and_failures_do_not_count() -> None:
    sim = raced(
        takes(30, returns="slow"), takes(10, raises=OSError()), takes(15, returns=Error()), takes(20, returns=Ok("won"))
    )
    sim.advance(19)
    assert not sim.done
    sim.advance(1)
    assert sim.events == [FlowState({"race_winner": "won"}, seq=1), FlowDone({"race_winner": "won"}, seq=2)]


def test_the_losers_are_cancelled(bench: Any) -> None:
    three = bench(race([lambda: 1, lambda: 2, lambda: 3]), wait(100)).settle()
    three.returns("won", task=2)
    assert [cancel.task for cancel in three.all(e.CancelTask)] == [1, 3]
    assert three.returns("late", task=1) == [] and three.raises(OSError(), task=3) == []
    assert three.state == {"race_winner": "won"}


def test_losing_async_tasks_are_cancelled() -> None:
    ended = []

    async def loses() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    sim = sim_of(race([loses, lambda: "won"]), wait(10))
    assert ended == [True] and sim.state == {"race_winner": "won"}


def test_all_failing_carries_every_reason_in_the_order_of_the_tasks() -> None:
    sim = raced(takes(30, returns=Error("a")), takes(10, raises=OSError("b")), takes(20, returns=Error("c")))
    sim.advance(30)
    match reason(sim):
        case AllFailed(["a", StepRaised(message="b"), "c"]):
            pass
        case other:
            raise AssertionError(other)


def test_who_brings_what_cannot_travel_has_not_succeeded() -> None:
    sim = raced(takes(10, returns=(n for n in "x")), takes(20, returns="won"))
    sim.advance(20)
    assert sim.state == {"race_winner": "won"}


def test_race_times_out() -> None:
    sim = raced(takes(math.inf), takes(60), timeout=50)
    sim.advance(50)
    assert reason(sim) == StepTimedOut("race", 50, 1)


def test_a_race_of_nobody_is_an_invalid_outcome() -> None:
    assert isinstance(reason(sim_of(race(lambda state: []))), InvalidOutcome)


def test_race_collects_on_the_visible_state() -> None:
    sim = raced(takes(10, returns=None), collect_as="best")
    sim.signal(put, "meanwhile")
    sim.advance(10)
    assert sim.state == {"meanwhile": True, "best": None}


# ------------------------------------------------------------------ each


def test_each_goes_through_the_items_in_order_and_announces_per_item() -> None:
    sim = sim_of(
        each("items", lambda item, state: Ok(state | {"sum": state["sum"] + item})),
        state={"items": [1, 2, 3], "sum": 0},
    )
    sums = [event.state["sum"] for event in sim.events if isinstance(event, FlowState)]
    assert sums == [1, 3, 6] and sim.done


@pytest.mark.parametrize("outcome", [None, Ok(), Skip(), Skip("why")])
def test_each_goes_on(outcome: Any) -> None:
    sim = sim_of(each("items", lambda item, state: outcome), state={"items": [1, 2]})
    assert sim.events == [FlowDone({"items": [1, 2]}, seq=1)]


def test_each_aborts_at_an_error_and_keeps_what_was_done() -> None:
    def upto_two(item: int, state: State) -> Any:
        return Error(f"not {item}") if item > 2 else Ok(state | {"last": item})

    sim = sim_of(each("items", upto_two), state={"items": [1, 2, 3, 4], "last": 0})
    assert reason(sim) == "not 3" and sim.state["last"] == 2


def test_a_raise_in_each_is_an_error() -> None:
    sim = sim_of(each("items", lambda item, state: 1 / item), state={"items": [0]})
    assert reason(sim).type == "ZeroDivisionError" and reason(sim).path == "each"


@pytest.mark.parametrize("outcome", [Retry(), 1, {}, False])
def test_anything_else_from_each_is_an_invalid_outcome(outcome: Any) -> None:
    assert isinstance(reason(sim_of(each("items", lambda item, state: outcome), state={"items": [1]})), InvalidOutcome)


def test_each_walks_the_list_as_it_stood_on_entry() -> None:
    seen = []

    def grow(item: int, state: State) -> Ok:
        seen.append(item)
        return Ok(state | {"items": [*state["items"], item * 10]})

    sim = sim_of(each("items", grow), state={"items": [1, 2]}, bodies={"grow": takes(10, calls=grow)})
    sim.signal(put, "items", [7, 8, 9])
    sim.advance(100)
    assert seen == [1, 2] and sim.done


def test_each_gets_the_state_of_now_and_rebases_per_item() -> None:
    def collect(item: int, state: State) -> Ok:
        return Ok(state | {"got": [*state["got"], item]})

    sim = sim_of(each("items", collect), state={"items": [1, 2], "got": []}, bodies={collect: takes(10)})
    sim.advance(5)
    sim.signal(lambda state: state | {"got": [*state["got"], "signal"]})
    assert sim.state["got"] == ["signal"]
    sim.advance(5)
    assert sim.state["got"] == [1, "signal"]
    sim.advance(10)
    assert sim.state["got"] == [1, "signal", 2]


def test_each_over_an_empty_list_and_over_a_tuple() -> None:
    assert sim_of(each("items", lambda item, state: Error()), state={"items": []}).done
    assert sim_of(each("items", lambda item, state: None), state={"items": (1, 2)}).done


# ------------------------------------------------------------------ stop


WAITING = {
    "wait": wait(1000),
    "wait_until": wait_until(lambda state: False),
    "debounce": debounce(1000),
    "backoff": run(lambda state: Error(), retries=1, base_delay=1000),
}


@pytest.mark.parametrize("step", WAITING.values(), ids=WAITING.keys())
def test_stop_ends_what_waits_at_once(step: Any) -> None:
    sim = sim_of(step)
    sim.signal(put, "a")
    sim.stop()
    assert sim.events[-1] == FlowStopped({"a": True}, seq=2)
    sim.advance(5000)
    assert len(sim.events) == 2, "nothing after the end"


COMPUTING = {
    "run": (run(lambda state: None), {}),
    "each": (each("items", lambda item, state: None), {"items": [1, 2]}),
    "parallel": (parallel(lambda state: [lambda: 1, lambda: 2]), {}),
    "race": (race([lambda: 1, lambda: 2]), {}),
}


@pytest.mark.parametrize(("step", "state"), COMPUTING.values(), ids=COMPUTING.keys())
def test_stop_cancels_what_computes_and_waits_for_its_end(bench: Any, step: Any, state: Any) -> None:
    busy = bench(step, set_state(putting("after")), state=state).settle()
    running = [start.task for start in busy.all(e.StartTask)]
    busy.stop()
    assert [cancel.task for cancel in busy.all(e.CancelTask)] == running
    assert busy.machine.deadline is None and not busy.machine.over
    assert busy.stop() == [] and busy.tick() == [] and busy.signal(put, "a") == []
    for task in running:
        assert not busy.machine.over
        busy.raises(asyncio.CancelledError(), task)
    assert busy.machine.over and busy.all(e.Stopped)
    assert len(busy.all(e.StartTask)) == len(running) and busy.state == state


def test_what_a_body_brings_home_after_a_stop_still_counts() -> None:
    sim = sim_of(run(lambda state: Ok(state | {"done": True})), wait(1000), bodies={"run[0]": takes(100)})
    sim.signal(put, "meanwhile")
    sim.stop()
    assert not sim.done
    sim.advance(100)
    assert sim.events[-1] == FlowStopped({"done": True, "meanwhile": True}, seq=3)


def test_stop_beats_a_failure_at_the_end_of_the_body() -> None:
    sim = sim_of(run(lambda state: Error("spent")), bodies={"run": takes(100)})
    sim.stop()
    sim.advance(100)
    assert sim.events == [FlowStopped({}, seq=1)]


def test_stop_before_the_beginning(bench: Any) -> None:
    assert bench(set_state(putting("a"))).stop() == [e.Stopped(1, bench.codec.encode({}))]


def test_stop_gets_through_to_a_flow_that_spins(bench: Any) -> None:
    spinning = bench(repeat(set_state(lambda state: state)), fuel=10)
    for _ in range(10):
        spinning.tick()
        assert spinning.machine.deadline == spinning.now, "it yields, and wants to go on"
    spinning.signal(put, "a")
    assert spinning.state == {"a": True}
    assert isinstance(spinning.stop()[-1], e.Stopped)


def test_a_large_state_spends_the_fuel_sooner(bench: Any) -> None:
    entered = []
    spinning = bench(repeat(set_state(lambda state: entered.append(1) or state)), state={"blob": bytes(100_000)})
    spinning.tick()
    assert len(entered) <= 1


# ------------------------------------------------------------------ crashes


@pytest.mark.parametrize(
    "step",
    [
        set_state(lambda state: {}["missing"]),
        set_state(lambda state: None),
        set_state(lambda state: (n for n in "x")),
        wait_until(lambda state: {}["missing"]),
        parallel(lambda state: {}["missing"]),
        parallel(lambda state: ({}["missing"] for _ in "x")),
        race(lambda state: {}["missing"]),
        each("missing", lambda item, state: None),
    ],
)
def test_a_raise_outside_a_body_is_a_crash_of_the_runner(step: Any) -> None:
    sim = sim_of(set_state(lambda state: state | {"a": 1}), step)
    match reason(sim):
        case Cause("raised", detail, path=path):
            assert detail and path.startswith(step.dsl)
        case other:
            raise AssertionError(other)
    assert sim.state == {"a": 1}


def test_a_predicate_that_raises_after_a_signal_is_a_crash() -> None:
    sim = sim_of(wait_until(lambda state: 1 / (1 - state.get("n", 0)) < 0))
    sim.signal(put, "n", 1)
    match sim.events:
        case [FlowState({"n": 1}), FlowError(Cause(error=StepRaised("ZeroDivisionError")))]:
            pass
        case events:
            raise AssertionError(events)


def test_set_state_that_returns_none_says_what_to_do() -> None:
    assert "return the new state" in reason(sim_of(set_state(lambda state: state.update(a=1)))).detail


# ------------------------------------------------------------------ signals and updates


def test_an_update_returns_the_state_that_it_made() -> None:
    sim = sim_of(wait(1000))
    assert sim.update(put, "a", 1) == {"a": 1}
    assert sim.update(lambda state: state) == {"a": 1}, "also when nothing changed"
    assert sim.events == [FlowState({"a": 1}, seq=1)]


def test_declared_signals_go_by_name() -> None:
    named = flow("named", wait(1000), signals={"put": put})
    sim = simulate(named)
    sim.signal("put", "a")
    assert sim.update("put", "b", 2) == {"a": True, "b": 2}
    with pytest.raises(LookupError, match="declares no signal 'pull'"):
        sim.signal("pull")


def test_a_signal_that_returns_none_is_rejected() -> None:
    sim = sim_of(wait(1000), state={"a": 1})
    sim.signal(lambda state: state.update(a=2))
    match sim.events:
        case [SignalRejected(error=StepRaised("TypeError", message), late=False)]:
            assert "return the new state" in message
        case events:
            raise AssertionError(events)
    assert sim.state == {"a": 1}


def test_stale_results_are_dropped(bench: Any) -> None:
    waiting = bench(run(lambda state: None), wait(100)).settle()
    first = waiting.task.task
    waiting.returns()
    assert waiting.returns(Ok({"stale": True}), first) == []
    assert waiting.returns(Ok({"unknown": True}), 999) == []
    assert waiting.state == {}


def test_entered_comes_only_on_interest(bench: Any) -> None:
    quiet = bench(repeat(wait(10), run(lambda state: None))).settle()
    assert not quiet.all(e.Entered)
    quiet.machine.interested = True
    quiet.now = 0.01
    quiet.tick()
    assert quiet.all(e.Entered) == [e.Entered("repeat/run[1]", 1)]
    assert quiet.machine.position == ("repeat/run[1]", 1)


def test_nothing_comes_after_the_end(bench: Any) -> None:
    ended = bench().settle()
    assert ended.machine.over and ended.machine.deadline is None
    assert ended.tick() == ended.signal(put, "a") == ended.stop() == ended.send(e.TaskDone(1, e.Returned(None))) == []
