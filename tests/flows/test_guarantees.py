"""G1, G2, G3, G5 and G6 on the pure machine. ``tests/conformance`` asks the same of whole engines."""

import math
from collections.abc import Callable
from itertools import count, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caravela.errors import FlowTimeout, SignalFailed, StepRaised
from caravela.flows import (
    Error,
    Ok,
    Retry,
    debounce,
    each,
    flow,
    parallel,
    race,
    repeat,
    run,
    set_state,
    wait,
    wait_until,
)
from caravela.flows import events as e
from caravela.flows.rebase import LOG_BYTES, LOG_ENTRIES
from caravela.supervisor.events import FlowDone, FlowState, FlowStopped, SignalRejected
from caravela.testing import Simulation, simulate, takes

State = dict[str, Any]
always = settings(deadline=None, derandomize=True, database=None)


def add(state: list[Any], token: Any) -> list[Any]:
    return [*state, token]


def states(sim: Simulation) -> list[Any]:
    return [event.state for event in sim.events if isinstance(event, FlowState)]


# ------------------------------------------------------------------ G1: private state


def spoil(state: State) -> Any:
    """Changes what it got, and does not return it."""
    state["items"].append("spoilt")
    state["spoilt"] = True


SPOILERS: dict[str, Any] = {
    "run": run(lambda state: spoil(state)),
    "a retry": run(lambda state: spoil(state) or Error(), retries=1, base_delay=0, timeout=50),
    "wait_until": wait_until(lambda state: spoil(state) or True),
    "parallel": parallel(lambda state: spoil(state) or [], collect_as="got"),
    "race": race(lambda state: spoil(state) or [lambda: 1], collect_as="got"),
    "each": each("items", lambda item, state: spoil(state)),
}


@pytest.mark.parametrize("step", SPOILERS.values(), ids=SPOILERS.keys())
def test_g1_what_a_function_does_to_its_state_in_place_nobody_sees(step: Any) -> None:
    seen = []
    sim = simulate(flow("g1", step, run(lambda state: seen.append(state))), {"items": [1]})
    assert sim.state.pop("got", None) in (None, [], 1)
    assert all(state["items"] == [1] and "spoilt" not in state for state in [sim.state, *seen])


def test_g1_a_retry_gets_the_state_as_it_was() -> None:
    seen = []

    def body(state: State) -> Error:
        seen.append(dict(state, items=list(state["items"])))
        spoil(state)
        return Error()

    simulate(flow("g1", run(body, retries=3, base_delay=0)), {"items": [1]})
    assert seen == [{"items": [1]}] * 4


def test_g1_neither_a_signal_nor_its_replay_sees_what_the_other_did() -> None:
    seen = []

    def greedy(state: State) -> State:
        seen.append(len(state["items"]))
        state["items"].append("signal")
        return state

    sim = simulate(flow("g1", run(lambda state: Ok(state))), {"items": [1]}, bodies={"run": takes(100)})
    sim.signal(greedy)
    sim.advance(100)
    assert seen == [1, 1] and sim.state == {"items": [1, "signal"]}


def test_g1_a_replay_finds_the_arguments_as_they_came() -> None:
    def take(state: State, items: list[str], module: Any) -> State:
        while items:
            state["items"].append(items.pop())
        return state | {"module": module.__name__}

    sim = simulate(flow("g1", run(lambda state: Ok(state))), {"items": []}, bodies={"run": takes(100)})
    sim.signal(take, ["b", "a"], math)  # a module cannot be copied
    sim.advance(100)
    assert sim.state == {"items": ["a", "b"], "module": "math"}


def test_g1_what_a_body_keeps_of_its_state_is_its_own() -> None:
    kept = []

    def keeps(state: State) -> Ok:
        kept.append(state)
        return Ok(state)

    sim = simulate(flow("g1", run(keeps), wait(10), set_state(lambda state: state)), {"items": [1]})
    kept[0]["items"].append("later")
    sim.advance(10)
    assert sim.state == {"items": [1]}


def test_g1_the_flow_and_the_values_given_to_it_stay_as_they_are() -> None:
    given_state, declared = {"items": [1]}, {"items": [2]}
    spoiled = flow("g1", set_state(lambda state: spoil(state) or state), initial_state=declared)
    assert simulate(spoiled).state == simulate(spoiled).state == {"items": [2, "spoilt"], "spoilt": True}
    simulate(spoiled, given_state)
    assert given_state == {"items": [1]} and declared == {"items": [2]}


class Node:
    """Not plain data: the whole state is a pickle, in which one object may stand in two places."""

    def __init__(self) -> None:
        self.visits = 0


def test_g1_one_object_that_is_two_items_is_two_copies() -> None:
    node = Node()
    seen = []

    def visit(item: Node, state: Any) -> None:
        item.visits += 1
        seen.append(item.visits)

    simulate(flow("g1", each("items", visit)), {"items": [node, node]})
    assert seen == [1, 1] and node.visits == 0


def test_g1_a_subscriber_changes_its_own_copy() -> None:
    sim = simulate(flow("g1", set_state(lambda state: {"items": []}), wait(10)))
    spoil(states(sim)[0])
    spoil(sim.state)
    assert sim.state == {"items": []}


# ------------------------------------------------------------------ G2: all or nothing


def test_g2_what_raises_leaves_the_state_as_it_was() -> None:
    def half(state: State) -> Any:
        state["items"].append("half")
        raise ValueError("no")

    sim = simulate(flow("g2", run(half, retries=1), wait(10)), {"items": []})
    sim.signal(half)
    with pytest.raises(SignalFailed, match="ValueError: no"):
        sim.update(half)
    assert sim.state == {"items": []}
    sim.advance(100)
    assert sim.done and sim.state == {"items": []} and not states(sim)


# ------------------------------------------------------------------ G3: no change unannounced


def test_g3_equal_bytes_say_nothing_and_seq_has_no_gap() -> None:
    sim = simulate(flow("g3", repeat(wait(10), set_state(lambda state: {"n": min(state["n"] + 1, 3)}))), {"n": 0})
    sim.advance(1000)
    assert sim.events == [FlowState({"n": n}, seq=n) for n in (1, 2, 3)]


def test_g3_true_is_not_1_and_a_tuple_is_no_list() -> None:
    sim = simulate(flow("g3", *[set_state(lambda state, v=value: v) for value in (1, True, 1.0, (1,), [1])]), 0)
    assert [(type(state), state) for state in states(sim)] == [(type(v), v) for v in (1, True, 1.0, (1,), [1])]


def test_g3_a_rebase_is_announced_once() -> None:
    sim = simulate(flow("g3", run(lambda state: Ok([*state, "body"]))), [], bodies={"run": takes(100)})
    sim.signal(add, 1)
    sim.signal(add, 2)
    sim.advance(100)
    assert states(sim) == [[1], [1, 2], ["body", 1, 2]]


def test_g3_a_rebase_that_ends_where_it_stood_says_nothing() -> None:
    sim = simulate(flow("g3", run(lambda state: Ok(state))), [], bodies={"run": takes(100)})
    sim.signal(add, 1)
    sim.advance(100)
    assert sim.events == [FlowState([1], seq=1), FlowDone([1], seq=2)]


# ------------------------------------------------------------------ G5: nothing lost by overlap


def busy(outcome: Any, *more: Any, state: Any = None, **options: Any) -> Simulation:
    """A body of 100 ms that returns what ``outcome`` makes of its state."""
    step = run(lambda given: outcome(given) if callable(outcome) else outcome, **options)
    return simulate(flow("g5", step, *more), [] if state is None else state, bodies={"<lambda>": takes(100)})


@pytest.mark.parametrize(
    ("outcome", "final"),
    [
        (None, [1, 2]),
        (Ok(), [1, 2]),
        (lambda state: Ok([*state, "body"]), ["body", 1, 2]),
        (Error(), [1, 2]),
        (lambda state: 1 / 0, [1, 2]),
        (Retry(), [1, 2]),
        (lambda state: Retry([*state, "body"]), ["body", 1, 2]),
    ],
)
def test_g5_signals_while_a_body_computes_are_seen_at_once_and_kept(outcome: Any, final: list[Any]) -> None:
    sim = busy(outcome, wait(10), retries=1, base_delay=1000)
    sim.signal(add, 1)
    assert sim.state == [1]
    sim.advance(50)
    assert sim.update(add, 2) == [1, 2] and sim.now == 50
    sim.advance(50)
    assert sim.state == final


def test_g5_after_a_timeout_the_visible_state_stands() -> None:
    sim = busy(lambda state: Ok(["late"]), wait(10), timeout=50, retries=1, base_delay=1000)
    sim.signal(add, 1)
    sim.advance(200)
    assert sim.state == [1]


def test_g5_the_next_attempt_gets_the_rebased_state() -> None:
    seen: list[Any] = []

    def body(state: list[Any]) -> Retry:
        seen.append(state)
        return Retry([*state, len(seen)])

    sim = simulate(flow("g5", run(body, retries=2, base_delay=10)), [], bodies={body: takes(100)})
    sim.signal(add, "a")
    sim.advance(105)
    sim.signal(add, "b")
    sim.advance(50)
    sim.signal(add, "c")
    sim.advance(1000)
    assert seen == [[], [1, "a", "b"], [1, "a", "b", 2, "c"]]


def need(state: list[Any], token: Any) -> list[Any]:
    """Works only where ``token`` is there."""
    return [*state, f"after {state[state.index(token)]}"]


def no(state: list[Any], token: Any) -> list[Any]:
    """Works only where ``token`` is not there."""
    if token in state:
        raise ValueError(f"{token} is there")
    return [*state, f"no {token}"]


def test_g5_what_works_only_on_the_result_counts_as_applied() -> None:
    sim = busy(lambda state: Ok(["body"]))
    sim.signal(need, "body")
    assert sim.state == [] and not sim.events, "the verdict is open"
    sim.advance(100)
    assert sim.state == ["body", "after body"]
    assert not any(isinstance(event, SignalRejected) for event in sim.events)


def test_g5_what_raises_at_the_replay_is_rejected_late() -> None:
    sim = busy(lambda state: Ok(["body"]))
    sim.signal(no, "body")
    assert sim.state == ["no body"]
    sim.advance(100)
    match sim.events:
        case [
            FlowState(["no body"]),
            SignalRejected(error=StepRaised("ValueError"), late=True),
            FlowState(["body"]),
            FlowDone(),
        ]:
            pass
        case events:
            raise AssertionError(events)


@pytest.mark.parametrize("outcome", [None, Error(), lambda state: Ok(["other"]), "invalid"])
def test_g5_what_raises_twice_is_rejected_late_once(outcome: Any) -> None:
    sim = busy(outcome)
    sim.signal(need, "body")
    sim.advance(100)
    assert [event.late for event in sim.events if isinstance(event, SignalRejected)] == [True]


def test_g5_an_update_is_answered_at_its_first_success() -> None:
    sim = busy(lambda state: Ok(["body"]))
    assert sim.update(no, "body") == ["no body"] and sim.now == 0
    sim.advance(100)
    assert sim.state == ["body"]


def test_g5_an_update_that_raises_is_answered_at_the_replay() -> None:
    sim = busy(lambda state: Ok(["body"]))
    sim.advance(30)
    assert sim.update(need, "body") == ["body", "after body"] and sim.now == 100
    sim = busy(lambda state: Ok(["other"]))
    with pytest.raises(SignalFailed, match="ValueError"):
        sim.update(need, "body")
    assert sim.now == 100


def test_g5_an_open_update_times_out() -> None:
    sim = busy(None)
    with pytest.raises(FlowTimeout, match="in run, attempt 1"):
        sim.update(need, "body", timeout=0.05)
    assert sim.now == 50


def test_g5_parallel_and_race_have_no_state_to_rebase() -> None:
    for step in (parallel(lambda state: [int]), race([int])):
        sim = simulate(flow("g5", step), bodies={int: takes(100)})
        sim.signal(lambda state: state["missing"])
        assert [event.late for event in sim.events if isinstance(event, SignalRejected)] == [False]


def test_g5_a_long_replay_yields_and_signals_join_it(bench: Any) -> None:
    replaying = bench(run(lambda state: None), wait(1000), state=[], fuel=10).settle()
    for number in range(100):
        replaying.signal(add, number)
    replaying.returns(Ok(["body"]))
    assert replaying.state == list(range(100)), "the visible state stands until the replay is done"
    assert replaying.machine.deadline == replaying.now
    replaying.signal(add, "joined")
    assert replaying.state[-1] == "joined" and len(replaying.state) == 101
    ticks = 0
    while replaying.state[0] != "body":
        replaying.tick()
        ticks += 1
    assert ticks >= 8
    assert replaying.state == ["body", *range(100), "joined"]
    assert len(replaying.states) == 102, "101 signals and one rebase"


def test_g5_a_timeout_of_the_step_does_not_strike_its_replay(bench: Any) -> None:
    replaying = bench(run(lambda state: None, timeout=50), state=[], fuel=10).settle()
    for number in range(50):
        replaying.signal(add, number)
    replaying.returns(Ok(["body"]))
    replaying.now = 1.0
    replaying.settle()
    assert replaying.all(e.Finish) and replaying.state == ["body", *range(50)]


@pytest.mark.parametrize("outcome", [Ok(["body"]), Retry(["body"])], ids=["Ok", "Retry, with none left"])
def test_g5_stop_ends_a_replay_with_all_of_it(bench: Any, outcome: Any) -> None:
    replaying = bench(run(lambda state: None), run(lambda state: None), state=[], fuel=10).settle()
    for number in range(50):
        replaying.signal(add, number)
    replaying.returns(outcome)
    effects = replaying.stop()
    assert replaying.state == ["body", *range(50)]
    assert effects[-1] == e.Stopped(52, replaying.machine.state)
    assert len(replaying.all(e.StartTask)) == 1 and not replaying.all(e.Fail)


def test_g5_stop_during_the_replay_of_an_item_starts_no_other(bench: Any) -> None:
    replaying = bench(each("items", lambda item, state: None), state={"items": [1, 2]}, fuel=10).settle()
    for number in range(50):
        replaying.signal(lambda state, n: state | {"n": n}, number)
    replaying.returns(Ok({"items": []}))
    effects = replaying.stop()
    assert isinstance(effects[-1], e.Stopped) and not replaying.all(e.CancelTask)
    assert replaying.state == {"items": [], "n": 49} and len(replaying.all(e.StartTask)) == 1


@pytest.mark.parametrize("last_words", [None, Ok(["body"]), Error(), 7])
def test_g5_a_stopped_body_leaves_no_update_unanswered(bench: Any, last_words: Any) -> None:
    stopping = bench(run(lambda state: None), state=[]).settle()
    stopping.signal(need, "nothing", call=5)
    stopping.stop()
    stopping.returns(last_words)
    assert [(rejected.call, rejected.late) for rejected in stopping.all(e.Rejected)] == [(5, True)]
    assert isinstance(stopping.effects[-1], e.Stopped)


def test_g5_the_log_is_bounded(bench: Any) -> None:
    for filling, size in ((LOG_ENTRIES, 1), (9, LOG_BYTES // 8)):
        full = bench(run(lambda state: None), wait(10), state=0).settle()
        for _ in range(filling - 1 if size == 1 else 7):
            full.signal(lambda state: state + 1, size=size)
            assert not full.machine.saturated
        full.signal(lambda state: state + 1, size=size)
        assert full.machine.saturated
        full.returns(Ok(-1000))
        assert full.machine.saturated == (size == 1), "until the replay is done"
        full.settle()
        assert not full.machine.saturated
        assert full.state == -1000 + (LOG_ENTRIES if size == 1 else 8)


def test_g5_in_a_simulation_what_the_log_cannot_hold_waits() -> None:
    sim = busy(None, wait(10), state=0)
    for _ in range(LOG_ENTRIES + 7):
        sim.signal(lambda state: state + 1)
    assert sim.state == LOG_ENTRIES
    sim.advance(100)
    assert sim.state == LOG_ENTRIES + 7


# How signals depend on what is there: many fail on one of visible state and result, and work on the other.
PICKY: list[Callable[[list[Any]], list[Any]]] = [
    lambda state: [*state, "s"],
    lambda state: state[:-1],
    lambda state: state[::-1],
    lambda state: [*state, len(state)],
    lambda state: no(state, "body"),
    lambda state: need(state, "body"),
    lambda state: [*state, "even"] if len(state) % 2 == 0 else _refuse(),
    lambda state: None,  # type: ignore[list-item, return-value]
]
BODIES: list[Callable[[list[Any]], Any]] = [
    lambda state: None,
    lambda state: Ok(),
    lambda state: Ok([*state, "body"]),
    lambda state: Ok([]),
    lambda state: Retry([*state, "retried"]),
    lambda state: Retry(),
    lambda state: Error("no"),
    lambda state: Ok(n for n in "cannot travel"),
]


def _refuse() -> Any:
    raise ValueError("odd")


history = st.lists(
    st.one_of(
        st.tuples(st.just("signal"), st.sampled_from(PICKY)),
        st.tuples(st.just("update"), st.sampled_from(PICKY)),
        st.tuples(st.just("result"), st.sampled_from(BODIES)),
        st.tuples(st.just("tick"), st.none()),
    ),
    max_size=40,
)


@settings(always, max_examples=500)
@given(history, st.integers(1, 5))
def test_g5_the_final_order_is_that_of_one_mailbox(bench: Any, moves: list[Any], fuel: int) -> None:
    """A process with one mailbox computes itself, and takes its mail only between its bodies."""
    machine = bench(repeat(run(lambda state: None, retries=10**6, base_delay=0)), state=[], fuel=fuel).settle()
    mailbox: list[tuple[int, Callable[[Any], Any]]] = []
    state: list[Any] = []
    failed: set[int] = set()
    updates: set[int] = set()
    numbers = count(1)

    def take_mail() -> None:
        nonlocal state
        for number, fn in mailbox:
            try:
                after = fn(list(state))
                assert after is not None
                state = after
            except Exception:
                failed.add(number)
        mailbox.clear()

    started, computing = 1, True
    for move, what in [*moves, ("settle", None), ("result", BODIES[2]), ("settle", None)]:
        match move:
            case "signal" | "update":
                number = next(numbers)
                mailbox.append((number, what))
                if move == "update":
                    updates.add(number)
                machine.signal(what, call=number if move == "update" else 0)
            case "tick":
                machine.tick()
            case "settle":
                machine.settle()
            case "result" if computing:
                computing = False
                match what(list(state)):
                    case Ok(list(after)) | Retry(list(after)):
                        state = after
                machine.returns(what(*machine.task.args))
        if len(machine.all(e.StartTask)) > started:
            started, computing = started + 1, True
            take_mail()
            assert machine.task.args == (state,)
    assert machine.state == state
    applied, rejected = machine.all(e.Applied), machine.all(e.Rejected)
    answers = [effect.call for effect in [*applied, *rejected] if effect.call]
    assert sorted(answers) == sorted(updates), "each update is answered once"
    assert {effect.no for effect in rejected} == failed, "a verdict falls where the mailbox's does"
    assert len(rejected) == len(failed)
    announced = machine.states
    assert [notify.seq for notify in machine.all(e.Notify)] == [*range(1, len(announced) + 1)]
    assert all(before != after for before, after in zip([[], *announced], announced, strict=False))
    assert (announced or [[]])[-1] == machine.state


# ------------------------------------------------------------------ G6: order


def test_g6_signals_are_applied_in_order_between_steps_too() -> None:
    sim = simulate(flow("g6", repeat(debounce(5), wait(5))), [])
    for number in range(20):
        sim.signal(add, number)
        sim.advance(number)
    assert sim.state == [*range(20)]


def test_g6_timers_of_one_moment_and_signals_that_flood(bench: Any) -> None:
    flooded = bench(wait(100), state=[]).settle()
    flooded.now = 0.2
    for number in range(100):
        flooded.signal(add, number)
    assert flooded.machine.deadline == pytest.approx(0.1), "the shell knows that it is late"
    flooded.tick()
    assert flooded.machine.over


def test_g6_a_stop_overtakes_only_at_the_pipe() -> None:
    sim = simulate(flow("g6", wait(100)), [])
    sim.signal(add, 1)
    sim.stop()
    assert sim.events == [FlowState([1], seq=1), FlowStopped([1], seq=2)]


@pytest.mark.parametrize(("signals", "gap"), [*product([1, 5], [10, 49])])
def test_g6_a_debounce_ends_its_time_after_the_last_signal(signals: int, gap: float) -> None:
    sim = simulate(flow("g6", debounce(50)), [])
    for number in range(signals):
        sim.advance(gap)
        sim.signal(add, number)
    sim.advance(49)
    assert not sim.done
    sim.advance(1)
    assert sim.done and sim.now == signals * gap + 50
