"""What the DSL accepts, and that a flow of any depth is a value like any other."""

import copy
import gc
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial, wraps
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caravela.flows import (
    Flow,
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
from caravela.flows.flow import is_factory
from caravela.flows.steps import Debounce, Each, Parallel, Race, Repeat, Run, Sequence, SetState, Wait, WaitUntil


def good(state: Any) -> Any: ...
def of_two(item: Any, state: Any) -> Any: ...
def of_none() -> Any: ...
async def later(state: Any) -> Any: ...
async def later_of_two(item: Any, state: Any) -> Any: ...
async def later_of_none() -> Any: ...


def yielding(state: Any) -> Iterator[Any]:
    yield state


class Later:
    async def __call__(self, state: Any) -> Any: ...


class Unhashable:
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unhashable)

    def __call__(self, state: Any) -> Any: ...


# ------------------------------------------------------------------ what is accepted


def test_every_step_keeps_what_it_was_given() -> None:
    second = timedelta(seconds=1)
    made = flow(
        "all",
        sequence(),
        wait(second),
        wait_until(good, timeout=1.5),
        debounce(0, second),
        set_state(good),
        run(later, 3, "constant", second, second, 0.5, second),
        parallel(yielding, "a", second, 2, "collect"),
        race([of_none, later_of_none], "b", second),
        race(good),
        each("c", later_of_two),
        repeat(wait(0)),
    )
    assert made.root == Sequence(
        (
            Sequence(()),
            Wait(1000),
            WaitUntil(good, 1.5),
            Debounce(0, 1000),
            SetState(good),
            Run(later, 3, "constant", 1000, 1000, 0.5, 1000, "thread"),
            Parallel(yielding, "a", 1000, 2, "collect", "thread"),
            Race((of_none, later_of_none), "b", 1000, "thread"),
            Race(good, "race_winner", None, "thread"),
            Each("c", later_of_two, "thread"),
            Repeat((Wait(0),)),
        )
    )
    assert wait(timedelta(microseconds=1500)) == Wait(1.5)


def test_defaults_are_those_of_the_specification() -> None:
    assert run(good) == Run(good, 0, "linear", 100, None, 0, None, "thread")
    assert parallel(good) == Parallel(good, "parallel_results", None, None, "fail", "thread")
    assert flow("f").initial_state == {}
    assert flow("f").initial_state is not flow("g").initial_state
    assert flow("f", initial_state=None).initial_state is None
    assert flow("f").root == Sequence(())


def test_a_signature_that_may_lie_is_believed() -> None:
    @wraps(of_two)
    def injected(*args: Any) -> Any: ...

    @wraps(good)
    def hidden(*args: Any, **kwargs: Any) -> Any: ...

    def claimed(state: Any) -> Any: ...

    odd: Any = claimed
    odd.__signature__ = 5
    flow("f", run(injected), each("k", hidden), run(odd), run(dict), set_state(dict.copy), run(partial(of_two, 1)))
    flow("f", signals={"a": lambda state, one, two=2: state, "b": good, "c": dict})


def test_a_flow_does_not_change_with_what_it_was_made_of() -> None:
    signals: dict[str, Any] = {"a": good}
    tasks = [of_none]
    made = flow("f", race(tasks), signals=signals)
    signals["b"] = good
    tasks.append(of_none)
    assert dict(made.signals) == {"a": good}
    assert made.root.steps == (Race((of_none,)),)
    frozen: Any = made
    with pytest.raises(TypeError):
        frozen.signals["c"] = good
    with pytest.raises(AttributeError):
        frozen.name = "g"


def test_what_a_factory_is() -> None:
    assert all(map(is_factory, [good, dict, partial(dict), [].copy, Later().__call__, lambda: 1]))
    assert not any(map(is_factory, [{}, None, Later(), 5]))


# ------------------------------------------------------------------ a flow is a value


def test_flows_are_equal_when_their_parts_are() -> None:
    def make(name: str = "f", ms: int = 1, state: Any = 1, **signals: Any) -> Flow:
        return flow(name, repeat(wait(ms), run(good)), initial_state=state, signals=signals)

    assert make() == make()
    assert hash(make()) == hash(make())
    assert len({make(), make(name="g"), make(ms=2), make(state=2), make(a=good), make()}) == 5
    assert make() != make().root
    assert sequence(wait(1)) != repeat(wait(1))
    assert wait(1) != debounce(1)
    assert sequence(wait(1), sequence(wait(2))) != sequence(wait(1), sequence(), wait(2))


def test_an_unhashable_body_has_a_hashable_flow() -> None:
    one, other = flow("f", run(Unhashable())), flow("f", run(Unhashable()))
    assert one == other
    assert hash(one) == hash(other)


STEPS = st.recursive(
    st.one_of(
        st.builds(wait, st.integers(0, 1000)),
        st.builds(debounce, st.floats(0, 1e6), st.none() | st.integers(0, 9)),
        st.builds(run, st.sampled_from([print, repr]), st.integers(0, 5), st.sampled_from(["constant", "linear"])),
        st.builds(race, st.lists(st.sampled_from([print, dict]), min_size=1, max_size=3)),
        st.builds(each, st.text(min_size=1), st.just(max)),
    ),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=4).map(lambda steps: sequence(*steps))
        | st.lists(inner, min_size=1, max_size=4).map(lambda steps: repeat(*steps))
    ),
)


@given(st.lists(STEPS, max_size=3), st.none() | st.dictionaries(st.text(), st.integers()))
def test_a_flow_survives_pickling_and_copying(steps: list[Any], state: Any) -> None:
    made = flow("f", *steps, initial_state=state, signals={"a": dict})
    for again in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert again == made
        assert hash(again) == hash(made)
        assert str(again) == str(made)
        assert again.plan.nodes == made.plan.nodes
    for step in steps:
        assert pickle.loads(pickle.dumps(step)) == step == copy.deepcopy(step)


def test_a_deep_copy_has_its_own_state() -> None:
    made = flow("f", initial_state={"a": []})
    assert copy.deepcopy(made).initial_state["a"] is not made.initial_state["a"]


# ------------------------------------------------------------------ names to travel by

here = flow("here", wait(1))


class Flows:
    inside = flow("inside")

    class Deeper:
        still = flow("still")


def test_a_flow_knows_where_it_is_found() -> None:
    assert here.__caravela_name__() == (__name__, "here")
    assert Flows.inside.__caravela_name__() == (__name__, "Flows.inside")
    assert Flows.Deeper.still.__caravela_name__() == (__name__, "Flows.Deeper.still")


def test_a_flow_that_is_nowhere_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flow("local").__caravela_name__() is None
    assert copy.deepcopy(here).__caravela_name__() is None
    places: dict[str, Any] = {"flow": flow, "__name__": "some_module"}
    exec("f = flow('f')", places)
    assert places["f"].__caravela_name__() is None
    module = ModuleType("some_module")
    vars(module)["renamed"] = places["f"]
    monkeypatch.setitem(sys.modules, "some_module", module)
    assert places["f"].__caravela_name__() == ("some_module", "renamed")


# ------------------------------------------------------------------ 10,000 levels

LEVELS = 10_000


def _deep(ms: float = 1) -> Any:
    step: Any = wait(ms)
    for level in range(LEVELS - 1):
        step = sequence(wait(2), step) if level % 2 else repeat(step)
    return step


DEEP: dict[str, Callable[[Any], object]] = {
    "flow": lambda step: flow("deep", step).plan,
    "==": lambda step: step == _deep(),
    "!=": lambda step: step != _deep(3),
    "hash": hash,
    "repr": repr,
    "str": lambda step: str(flow("deep", step)),
    "mermaid": lambda step: flow("deep", step).mermaid(),
    "pickle a step": lambda step: pickle.loads(pickle.dumps(step)) == step,
    "pickle a flow": lambda step: pickle.loads(pickle.dumps(flow("deep", step))).root.steps == (step,),
    "deepcopy": lambda step: copy.deepcopy(step) == step,
    "copy": lambda step: copy.copy(step) is step,
    "paths": lambda step: list(map((plan := flow("deep", step).plan).path, range(len(plan.nodes)))),
}


@pytest.mark.parametrize("operation", DEEP.values(), ids=DEEP.keys())
def test_ten_thousand_levels(operation: Callable[[Any], object]) -> None:
    step = _deep()
    begun = time.thread_time()
    assert operation(step)
    assert time.thread_time() - begun < 1


def test_ten_thousand_levels_are_collected() -> None:
    flow("deep", _deep())
    gc.collect()


def test_an_error_ten_thousand_levels_down_is_short() -> None:
    with pytest.raises(
        ValueError, match=r"^flow 'deep', repeat/.{10,90}/…\(9988\)…/.{10,90}/wait: ms=-1 must not be negative$"
    ):
        flow("deep", _deep(-1))
