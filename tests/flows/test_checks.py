"""What the DSL refuses, each with its exact words."""

import math
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, cast

import pytest

from caravela import flows
from caravela.errors import LimitExceeded
from caravela.flows.steps import Sequence

dsl: Any = flows  # the types refuse most of this already


def good(state: Any) -> Any: ...
def of_two(item: Any, state: Any) -> Any: ...
def of_none() -> Any: ...
def only_keyword(*, state: Any) -> Any: ...
async def later(state: Any) -> Any: ...
async def later_of_two(item: Any, state: Any) -> Any: ...
async def later_of_none() -> Any: ...


def yielding(state: Any) -> Iterator[Any]:
    yield state


async def later_yielding(state: Any) -> AsyncIterator[Any]:
    yield state


class Later:
    async def __call__(self, state: Any) -> Any: ...


class StillLater(Later):
    pass


@dataclass
class Needy:
    value: int


WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    # durations
    (lambda: dsl.wait(-5), ValueError, "flow 'f', wait: ms=-5 must not be negative"),
    (lambda: dsl.wait(timedelta(seconds=-5)), ValueError, "flow 'f', wait: ms=-5000 must not be negative"),
    (lambda: dsl.wait(math.nan), ValueError, "flow 'f', wait: ms=nan must be finite"),
    (lambda: dsl.wait(math.inf), ValueError, "flow 'f', wait: ms=inf must be finite"),
    (lambda: dsl.wait(10**400), ValueError, "must be finite"),
    (lambda: dsl.wait(True), TypeError, "flow 'f', wait: ms=True must be a number of milliseconds or a timedelta"),
    (lambda: dsl.wait("5"), TypeError, "flow 'f', wait: ms='5' must be a number of milliseconds or a timedelta"),
    (lambda: dsl.wait(None), TypeError, "flow 'f', wait: ms=None must be a number"),
    (
        lambda: dsl.repeat(dsl.wait(1), dsl.debounce(-5)),
        ValueError,
        "flow 'f', repeat/debounce[1]: ms=-5 must not be negative",
    ),
    (lambda: dsl.debounce(1, -1), ValueError, "flow 'f', debounce: max_wait=-1 must not be negative"),
    (lambda: dsl.debounce(1, False), TypeError, "flow 'f', debounce: max_wait=False must be a number"),
    (lambda: dsl.run(good, base_delay=-1), ValueError, "flow 'f', run: base_delay=-1 must not be negative"),
    (lambda: dsl.run(good, max_delay=-1), ValueError, "flow 'f', run: max_delay=-1 must not be negative"),
    (lambda: dsl.run(good, timeout=0), ValueError, "flow 'f', run: timeout=0 must be more than 0"),
    (lambda: dsl.run(good, timeout=-1), ValueError, "flow 'f', run: timeout=-1 must not be negative"),
    (lambda: dsl.wait_until(good, 0), ValueError, "flow 'f', wait_until: timeout=0 must be more than 0"),
    (lambda: dsl.parallel(good, timeout=0), ValueError, "flow 'f', parallel: timeout=0 must be more than 0"),
    (lambda: dsl.race(good, timeout=timedelta(0)), ValueError, "flow 'f', race: timeout=0 must be more than 0"),
    # numbers and names
    (lambda: dsl.run(good, retries=-1), ValueError, "flow 'f', run: retries=-1 must be at least 0"),
    (lambda: dsl.run(good, retries=1.0), TypeError, "flow 'f', run: retries=1.0 must be a whole number"),
    (lambda: dsl.run(good, retries=True), TypeError, "flow 'f', run: retries=True must be a whole number"),
    (lambda: dsl.run(good, jitter=1.5), ValueError, "flow 'f', run: jitter=1.5 must be from 0 to 1"),
    (lambda: dsl.run(good, jitter=-0.1), ValueError, "flow 'f', run: jitter=-0.1 must be from 0 to 1"),
    (lambda: dsl.run(good, jitter=math.nan), ValueError, "flow 'f', run: jitter=nan must be from 0 to 1"),
    (lambda: dsl.run(good, jitter=True), TypeError, "flow 'f', run: jitter=True must be a number from 0 to 1"),
    (
        lambda: dsl.run(good, backoff="fibonacci"),
        ValueError,
        "flow 'f', run: backoff='fibonacci' is unknown; known are 'constant', 'linear', 'exponential'",
    ),
    (lambda: dsl.run(good, backoff=2), TypeError, "flow 'f', run: backoff=2 must be one of 'constant', 'linear'"),
    (lambda: dsl.parallel(good, max_concurrency=0), ValueError, "parallel: max_concurrency=0 must be at least 1"),
    (
        lambda: dsl.parallel(good, max_concurrency=2.5),
        TypeError,
        "parallel: max_concurrency=2.5 must be a whole number",
    ),
    (
        lambda: dsl.parallel(good, on_error="ignore"),
        ValueError,
        "parallel: on_error='ignore' is unknown; known are 'fail'",
    ),
    (lambda: dsl.parallel(good, collect_as=""), ValueError, "flow 'f', parallel: collect_as='' must not be empty"),
    (lambda: dsl.parallel(good, collect_as=5), TypeError, "flow 'f', parallel: collect_as=5 must be a str"),
    (lambda: dsl.race(good, collect_as=""), ValueError, "flow 'f', race: collect_as='' must not be empty"),
    (lambda: dsl.each("", of_two), ValueError, "flow 'f', each: key='' must not be empty"),
    (lambda: dsl.each(None, of_two), TypeError, "flow 'f', each: key=None must be a str"),
    # executors
    (lambda: dsl.run(good, executor="gpu"), ValueError, "flow 'f', run: executor='gpu' is unknown; known are 'thread'"),
    (lambda: dsl.run(good, executor=None), TypeError, "flow 'f', run: executor=None must be one of 'thread'"),
    *[
        (make, NotImplementedError, f"flow 'f', {step}: executor='process' comes with step processes")
        for step, make in {
            "run": lambda: dsl.run(good, executor="process"),
            "parallel": lambda: dsl.parallel(good, executor="process"),
            "race": lambda: dsl.race(good, executor="process"),
            "each": lambda: dsl.each("k", of_two, executor="process"),
        }.items()
    ],
    # functions
    (lambda: dsl.run(5), TypeError, "flow 'f', run: fn=5 must be a function, fn(state)"),
    (lambda: dsl.set_state({"a": 1}), TypeError, "flow 'f', set_state: fn={'a': 1} must be a function, fn(state)"),
    (lambda: dsl.wait_until(True), TypeError, "flow 'f', wait_until: pred=True must be a function, fn(state)"),
    (lambda: dsl.parallel([of_none]), TypeError, "flow 'f', parallel: fn=[<function of_none"),
    (lambda: dsl.each("k", 5), TypeError, "flow 'f', each: fn=5 must be a function, fn(item, state)"),
    (lambda: dsl.race(5), TypeError, "flow 'f', race: tasks=5 must be a list of functions, or a function, fn(state)"),
    (lambda: dsl.race([]), ValueError, "flow 'f', race: tasks=() must not be empty: nobody could win"),
    (lambda: dsl.race([of_none, 5]), TypeError, "flow 'f', race: tasks[1]=5 must be a function, fn()"),
    (lambda: dsl.run(of_none), TypeError, "flow 'f', run: fn=of_none cannot be called as fn(state)"),
    (lambda: dsl.run(of_two), TypeError, "flow 'f', run: fn=of_two cannot be called as fn(state)"),
    (lambda: dsl.run(only_keyword), TypeError, "flow 'f', run: fn=only_keyword cannot be called as fn(state)"),
    (lambda: dsl.run(partial(good, 1)), TypeError, "flow 'f', run: fn=partial(good) cannot be called as fn(state)"),
    (lambda: dsl.set_state(lambda: 1), TypeError, "flow 'f', set_state: fn=<lambda> cannot be called as fn(state)"),
    (lambda: dsl.wait_until(of_none), TypeError, "flow 'f', wait_until: pred=of_none cannot be called as fn(state)"),
    (lambda: dsl.parallel(of_none), TypeError, "flow 'f', parallel: fn=of_none cannot be called as fn(state)"),
    (lambda: dsl.race(of_none), TypeError, "flow 'f', race: tasks=of_none cannot be called as fn(state)"),
    (lambda: dsl.race([good]), TypeError, "flow 'f', race: tasks[0]=good cannot be called as fn()"),
    (lambda: dsl.each("k", good), TypeError, "flow 'f', each: fn=good cannot be called as fn(item, state)"),
    # async def where the loop would have to wait
    (lambda: dsl.set_state(later), TypeError, "flow 'f', set_state: fn=later is async def; only bodies of"),
    (lambda: dsl.set_state(partial(later_of_two, 1)), TypeError, "set_state: fn=partial(later_of_two) is async def"),
    (lambda: dsl.set_state(Later()), TypeError, "flow 'f', set_state: fn=<Later object> is async def"),
    (
        lambda: dsl.set_state(partial(StillLater())),
        TypeError,
        "set_state: fn=partial(<StillLater object>) is async def",
    ),
    (lambda: dsl.set_state(Later().__call__), TypeError, "set_state: fn=Later.__call__ is async def"),
    (lambda: dsl.wait_until(later), TypeError, "flow 'f', wait_until: pred=later is async def"),
    (lambda: dsl.parallel(later), TypeError, "flow 'f', parallel: fn=later is async def"),
    (lambda: dsl.race(later), TypeError, "flow 'f', race: tasks=later is async def"),
    (lambda: dsl.wait_until(yielding), TypeError, "flow 'f', wait_until: pred=yielding yields; it must return"),
    (lambda: dsl.run(later_yielding), TypeError, "flow 'f', run: fn=later_yielding yields; it must return"),
    # what is no step
    (lambda: "x", TypeError, "flow 'f', sequence: steps[0]='x' is not a step"),
    (lambda: [dsl.wait(1)], TypeError, "flow 'f', sequence: steps[0]=[wait(1)] is not a step; unpack it: *steps"),
    (lambda: good, TypeError, "flow 'f', sequence: steps[0]=good is not a step; wrap it: run(fn) or set_state(fn)"),
    (lambda: dsl.wait, TypeError, "flow 'f', sequence: steps[0]=wait is not a step; call it: wait(…)"),
    (lambda: dsl.flow("g"), TypeError, "is not a step; put its steps there: *flow.root.steps"),
    (
        lambda: dsl.repeat(dsl.wait(1), dsl.sequence(None)),
        TypeError,
        "flow 'f', repeat/sequence[1]: steps[0]=None is not a step",
    ),
    (
        lambda: Sequence(cast("Any", [dsl.wait(1)])),
        TypeError,
        "flow 'f', sequence: steps=[wait(1)] must be a tuple of steps",
    ),
    (lambda: dsl.repeat(), ValueError, "flow 'f', repeat: steps=() would spin for ever: there is nothing to repeat"),
    (
        lambda: dsl.repeat(dsl.sequence(dsl.sequence())),
        ValueError,
        "flow 'f', repeat: steps=(sequence(sequence()),) would spin",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), WRONG, ids=[message[-60:] for _, _, message in WRONG])
def test_a_wrong_step_names_flow_path_and_argument(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    step = make()  # says nothing: only the flow knows the path
    with pytest.raises(error) as raised:
        dsl.flow("f", step)
    assert message in str(raised.value)
    assert str(raised.value).startswith("flow 'f', ")


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        (5, {}, TypeError, "flow: name=5 must be a str"),
        ("", {}, ValueError, "flow: name='' must not be empty"),
        (dsl.wait(1), {}, TypeError, "flow: name=wait(1) must be a str"),
        ("f", {"signals": [good]}, TypeError, "flow 'f': signals=[<function good"),
        ("f", {"signals": {5: good}}, TypeError, "flow 'f': name of a signal=5 must be a str"),
        ("f", {"signals": {"a-b": good}}, ValueError, "flow 'f': name of a signal='a-b' must be an identifier"),
        ("f", {"signals": {"a": 5}}, TypeError, "flow 'f': signals['a']=5 must be a function, fn(state, ...)"),
        ("f", {"signals": {"a": later}}, TypeError, "flow 'f': signals['a']=later is async def"),
        ("f", {"signals": {"a": of_none}}, TypeError, "signals['a']=of_none cannot be called as fn(state, ...)"),
        ("f", {"initial_state": good}, TypeError, "flow 'f': initial_state=good cannot be called as fn()"),
        ("f", {"initial_state": Needy}, TypeError, "flow 'f': initial_state=Needy cannot be called as fn()"),
        ("f", {"initial_state": later_of_none}, TypeError, "flow 'f': initial_state=later_of_none is async def"),
    ],
)
def test_a_wrong_flow_names_itself_and_the_argument(
    name: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        dsl.flow(name, **options)
    assert message in str(raised.value)


def test_more_than_a_million_steps_are_refused() -> None:
    step: Any = dsl.wait(1)
    for _ in range(60):
        step = dsl.sequence(step, step)
    with pytest.raises(LimitExceeded, match=r"flow 'big' has 2,305,843,009,213,693,952 steps; the limit is 1,000,000"):
        dsl.flow("big", step)
    with pytest.raises(ValueError, match="limit is 1,000,000"):
        hash(step)
