"""What steps accept. Everything is checked when a flow is defined, so that an error can say where it stands."""

import inspect
import math
import typing
from collections.abc import Callable, Mapping
from functools import partial
from reprlib import Repr
from types import FunctionType
from typing import Any, Final, NoReturn, assert_never, cast

from .flat import Branching, Flat, spell
from .flow import Flow, is_factory
from .plan import Plan
from .steps import (
    Backoff,
    Debounce,
    Each,
    OnError,
    Parallel,
    Race,
    Repeat,
    Run,
    Sequence,
    SetState,
    Step,
    Wait,
    WaitUntil,
)

_BACKOFFS: Final = typing.get_args(Backoff)
_ON_ERROR: Final = typing.get_args(OnError)
_DURATION: Final = "must be a number of milliseconds or a timedelta"
_UNUSUAL: Final = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_SHORT: Final = Repr()
_SHORT.maxother = _SHORT.maxstring = 60
_BUILDER: Final = f"{__package__}.builder"


class Place:
    """One step of one flow, or the flow itself; its checks raise errors that begin with where that is."""

    __slots__ = ("flow", "id", "plan")

    def __init__(self, flow: str, plan: Plan | None = None, id: int = 0) -> None:
        self.flow = flow
        self.plan = plan
        self.id = id

    def __str__(self) -> str:
        return f"{self.flow}, {self.plan.path(self.id)}" if self.plan else self.flow

    def wrong(self, error: type[Exception], argument: str, value: object, why: str) -> NoReturn:
        shown = spell(value) if callable(value) else _SHORT.repr(value)
        raise error(f"{self}: {argument}={shown} {why}")

    def duration(self, argument: str, value: object, *, positive: bool = False) -> None:
        """Milliseconds; the builder has turned a ``timedelta`` into them."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.wrong(TypeError, argument, value, _DURATION)
        if not _finite(value):
            self.wrong(ValueError, argument, value, "must be finite")
        if value < 0:
            self.wrong(ValueError, argument, value, "must not be negative")
        if positive and value == 0:
            self.wrong(ValueError, argument, value, "must be more than 0")

    def fraction(self, argument: str, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.wrong(TypeError, argument, value, "must be a number from 0 to 1")
        if not 0 <= value <= 1:
            self.wrong(ValueError, argument, value, "must be from 0 to 1")

    def whole(self, argument: str, value: object, least: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            self.wrong(TypeError, argument, value, "must be a whole number")
        if value < least:
            self.wrong(ValueError, argument, value, f"must be at least {least}")

    def word(self, argument: str, value: object) -> None:
        if not isinstance(value, str):
            self.wrong(TypeError, argument, value, "must be a str")
        if not value:
            self.wrong(ValueError, argument, value, "must not be empty")

    def choice(self, argument: str, value: object, known: tuple[str, ...]) -> None:
        if not isinstance(value, str):
            self.wrong(TypeError, argument, value, f"must be one of {', '.join(map(repr, known))}")
        if value not in known:
            self.wrong(ValueError, argument, value, f"is unknown; known are {', '.join(map(repr, known))}")

    def executor(self, value: object) -> None:
        if value == "process":
            raise NotImplementedError(f"{self}: executor='process' comes with step processes")
        self.choice("executor", value, ("thread",))

    def function(
        self, argument: str, value: object, *takes: str, body: bool = False, builds: bool = False, more: bool = False
    ) -> None:
        """A function of the arguments in ``takes``, and of others after them if there may be ``more``.

        ``body``: may be ``async def``; all else runs between two events. ``builds``: returns a list, so it may yield.
        """
        if _is_plainly_right(value, len(takes), more=more):
            return
        if not callable(value):
            self.wrong(TypeError, argument, value, f"must be a function, {_signature(takes, more)}")
        if not body and _is(value, inspect.iscoroutinefunction):
            self.wrong(TypeError, argument, value, "is async def; only bodies of run, parallel, race, each may be")
        if _is(value, inspect.isasyncgenfunction) or (not builds and _is(value, inspect.isgeneratorfunction)):
            self.wrong(TypeError, argument, value, "yields; it must return")
        if not _can_take(value, len(takes), more=more):
            self.wrong(TypeError, argument, value, f"cannot be called as {_signature(takes, more)}")


def check_name(name: object) -> None:
    Place("flow").word("name", name)


def check_signal(what: str, function: object) -> None:
    """A function that is sent: runs between two events, so it may neither wait nor yield."""
    Place(what).function("function", function, "state", more=True)


def check_listener(function: object) -> None:
    """A function that gets events."""
    Place("start").function("notify", function, "event")


def check_signals(flow: str, signals: object) -> None:
    place = Place(f"flow {flow!r}")
    if not isinstance(signals, Mapping):
        place.wrong(TypeError, "signals", signals, "must be a mapping of names to functions")
    for name, function in signals.items():
        if not isinstance(name, str):
            place.wrong(TypeError, "name of a signal", name, "must be a str")
        if not name.isidentifier():
            place.wrong(ValueError, "name of a signal", name, "must be an identifier")
        place.function(f"signals[{name!r}]", function, "state", more=True)


def check_flow(flow: Flow) -> None:
    """All steps and the initial state. ``TypeError``, ``ValueError``, ``NotImplementedError``: the first one found."""
    name, plan = f"flow {flow.name!r}", flow.plan
    busy = _busy(plan)
    for node in plan.nodes:
        step = node.step
        if not isinstance(step, Flat):
            place = Place(name, plan, node.parent)
            place.wrong(TypeError, f"steps[{node.index}]", step, f"is not a step{_hint(step)}")
        place = Place(name, plan, node.id)
        if isinstance(step, Repeat) and isinstance(step.steps, tuple) and not busy[node.id]:
            place.wrong(ValueError, "steps", step.steps, "would spin for ever: there is nothing to repeat")
        check_step(place, cast("Step", step))  # the ten are all there are
    if is_factory(flow.initial_state):
        Place(name).function("initial_state", flow.initial_state)


def check_step(place: Place, step: Step) -> None:
    match step:
        case Sequence(steps) | Repeat(steps):
            if not isinstance(steps, tuple):
                place.wrong(TypeError, "steps", steps, "must be a tuple of steps")
        case Wait(ms):
            place.duration("ms", ms)
        case WaitUntil(pred, timeout):
            place.function("pred", pred, "state")
            _timeout(place, timeout)
        case Debounce(ms, max_wait):
            place.duration("ms", ms)
            if max_wait is not None:
                place.duration("max_wait", max_wait)
        case SetState(fn):
            place.function("fn", fn, "state")
        case Run():
            _run(place, step)
        case Parallel():
            place.function("fn", step.fn, "state", builds=True)
            place.word("collect_as", step.collect_as)
            _timeout(place, step.timeout)
            if step.max_concurrency is not None:
                place.whole("max_concurrency", step.max_concurrency, 1)
            place.choice("on_error", step.on_error, _ON_ERROR)
            place.executor(step.executor)
        case Race():
            _race(place, step)
        case Each(key, fn, executor):
            place.word("key", key)
            place.function("fn", fn, "item", "state", body=True)
            place.executor(executor)
        case _:
            assert_never(step)


def _run(place: Place, step: Run) -> None:
    place.function("fn", step.fn, "state", body=True)
    place.whole("retries", step.retries, 0)
    place.choice("backoff", step.backoff, _BACKOFFS)
    place.duration("base_delay", step.base_delay)
    if step.max_delay is not None:
        place.duration("max_delay", step.max_delay)
    place.fraction("jitter", step.jitter)
    _timeout(place, step.timeout)
    place.executor(step.executor)


def _race(place: Place, step: Race) -> None:
    if isinstance(step.tasks, tuple):
        if not step.tasks:
            place.wrong(ValueError, "tasks", step.tasks, "must not be empty: nobody could win")
        for at, task in enumerate(step.tasks):
            place.function(f"tasks[{at}]", task, body=True)
    elif callable(step.tasks):
        place.function("tasks", step.tasks, "state", builds=True)
    else:
        place.wrong(TypeError, "tasks", step.tasks, "must be a list of functions, or a function, fn(state)")
    place.word("collect_as", step.collect_as)
    _timeout(place, step.timeout)
    place.executor(step.executor)


def _timeout(place: Place, value: object) -> None:
    if value is not None:
        place.duration("timeout", value, positive=True)


def _busy(plan: Plan) -> bytearray:
    """For every node whether anything but holders is in it: a repeat of empty sequences has nothing to do either."""
    busy = bytearray(len(plan.nodes))
    for node in reversed(plan.nodes):
        if busy[node.id] or not isinstance(node.step, Branching):
            busy[node.id] = True
            if node.parent >= 0:
                busy[node.parent] = True
    return busy


def _hint(value: object) -> str:
    match value:
        case Flow():
            return "; put its steps there: *flow.root.steps"
        case list() | tuple():
            return "; unpack it: *steps"
        case FunctionType(__module__=module, __name__=name) if module == _BUILDER:
            return f"; call it: {name}(…)"
        case _ if callable(value):
            return "; wrap it: run(fn) or set_state(fn)"
        case _:
            return ""


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond every float
        return False


def _signature(takes: tuple[str, ...], more: bool) -> str:
    return f"fn({', '.join([*takes, '...'] if more else takes)})"


def _is(function: Any, kind: Callable[[Any], bool]) -> bool:
    """Looks through partials and at what calling an object calls."""
    while isinstance(function, partial):
        function = function.func
    return kind(function) or (
        not isinstance(function, type) and kind(inspect.getattr_static(type(function), "__call__", None))
    )


def _is_plainly_right(function: object, given: int, *, more: bool) -> bool:
    """A plain function of as many places as are given: nearly all are, and looking at one through ``inspect`` costs
    every worker that imports its flow half a millisecond."""
    if type(function) is not FunctionType or function.__dict__:
        return False
    code = function.__code__
    least = 0 if more else code.co_argcount - len(function.__defaults__ or ())
    return not code.co_flags & _UNUSUAL and not code.co_kwonlyargcount and least <= given <= code.co_argcount


def _can_take(function: Callable[..., Any], given: int, *, more: bool) -> bool:
    """False only when that is sure: decorators may hide, or claim, another signature than the one that counts."""
    if hasattr(function, "__signature__"):
        return True
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return True
    try:
        (signature.bind_partial if more else signature.bind)(*[None] * given)
    except TypeError:
        return False
    return True
