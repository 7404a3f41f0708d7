"""The DSL: functions that describe a flow. Nothing runs here.

All durations are milliseconds or a ``timedelta``. The functions of steps accept anything; ``flow`` checks the whole
tree, so that its errors name the flow and the path to the step.
"""

import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeAlias

from .checks import check_flow, check_name, check_signals
from .flow import Flow
from .outcomes import UNSET
from .steps import (
    Backoff,
    Debounce,
    Each,
    Executor,
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

__all__ = [
    "Duration",
    "Flow",
    "Task",
    "debounce",
    "each",
    "flow",
    "parallel",
    "race",
    "repeat",
    "run",
    "sequence",
    "set_state",
    "wait",
    "wait_until",
]

Duration: TypeAlias = float | timedelta
"""Milliseconds, or a ``timedelta``."""
Task: TypeAlias = Callable[[], Any]


def flow(
    name: str, *steps: Step, initial_state: Any = UNSET, signals: Mapping[str, Callable[..., Any]] | None = None
) -> Flow:
    """A flow that runs ``steps`` in order and then is done.

    ``initial_state`` is any value, by default ``{}``, or a function (method, partial, class) of no arguments that is
    called in the worker for the first state of every incarnation. The value is not copied here; the runtime encodes
    it at every start, so that runs never share it.
    ``signals`` gives names to functions ``fn(state, *args)`` that return the new state.

    Raises ``TypeError``, ``ValueError`` or ``NotImplementedError`` for whatever is wrong anywhere in the flow, and
    ``LimitExceeded`` (a ``ValueError``) for more than a million steps.
    """
    check_name(name)
    check_signals(name, {} if signals is None else signals)
    module = sys._getframe(1).f_globals.get("__name__")
    made = Flow(name, Sequence(steps), {} if initial_state is UNSET else initial_state, signals or {}, module)
    check_flow(made)
    return made


def sequence(*steps: Step) -> Sequence:
    """The steps in order; none at all is allowed."""
    return Sequence(steps)


def repeat(*steps: Step) -> Repeat:
    """The steps in order, for ever; there must be something in it."""
    return Repeat(steps)


def wait(ms: Duration) -> Wait:
    """A fixed pause. Signals are applied meanwhile, and do not end it."""
    return Wait(_ms(ms))


def wait_until(pred: Callable[[Any], object], timeout: Duration | None = None) -> WaitUntil:
    """Until ``pred(state)`` is true: asked on entry, and again after every signal that was applied.

    After ``timeout`` (more than 0) the flow fails with ``StepTimedOut``. ``pred`` runs on the loop and must be short.
    """
    return WaitUntil(pred, _ms(timeout))


def debounce(ms: Duration, max_wait: Duration | None = None) -> Debounce:
    """Until ``ms`` have passed without a signal that was applied, at most ``max_wait`` from entry."""
    return Debounce(_ms(ms), _ms(max_wait))


def set_state(fn: Callable[[Any], Any]) -> SetState:
    """The state becomes ``fn(state)``, which must not be ``None``. ``fn`` runs on the loop and must be short."""
    return SetState(fn)


def run(
    fn: Callable[[Any], Any],
    retries: int = 0,
    backoff: Backoff = "linear",
    base_delay: Duration = 100,
    max_delay: Duration | None = None,
    jitter: float = 0,
    timeout: Duration | None = None,
    executor: Executor = "thread",
) -> Run:
    """Work: ``fn(state)``, plain or ``async def``, returns ``None`` or ``Ok``, ``Retry`` or ``Error``.

    ``Retry``, ``Error`` and a raise are tried again up to ``retries`` times; then the flow fails. After attempt *n*
    the delay is ``base_delay`` (``constant``), times *n* (``linear``) or times 2^(n-1) (``exponential``), at most
    ``max_delay``. ``jitter`` is a fraction from 0 to 1: the delay is drawn uniformly from
    [delay · (1 - jitter), delay]. ``timeout`` (more than 0) is for one attempt; one that takes longer is an ``Error``.
    """
    return Run(fn, retries, backoff, _ms(base_delay), _ms(max_delay), jitter, _ms(timeout), executor)


def parallel(
    fn: Callable[[Any], Any],
    collect_as: str = "parallel_results",
    timeout: Duration | None = None,
    max_concurrency: int | None = None,
    on_error: OnError = "fail",
    executor: Executor = "thread",
) -> Parallel:
    """Tasks at once: ``fn(state)`` returns functions of no arguments, plain or ``async def``.

    Their results go, in their order, into the state under ``collect_as``; ``Ok(value)`` counts as its value. One that
    fails cancels the rest and fails the flow, or with ``on_error="collect"`` stands in the list as its ``Error``.
    At most ``max_concurrency`` (at least 1, by default 64) run at a time, all of them for at most ``timeout``.
    """
    return Parallel(fn, collect_as, _ms(timeout), max_concurrency, on_error, executor)


def race(
    tasks: list[Task] | tuple[Task, ...] | Callable[[Any], Any],
    collect_as: str = "race_winner",
    timeout: Duration | None = None,
    executor: Executor = "thread",
) -> Race:
    """The first of ``tasks`` to succeed goes into the state under ``collect_as``, at that moment.

    ``tasks`` are functions of no arguments, plain or ``async def``, or ``fn(state)`` that returns them. The losers are
    cancelled: an ``async def`` is, a plain function on a thread is abandoned and its result ignored. When all fail,
    the flow fails with ``AllFailed``.
    """
    return Race(tuple(tasks) if isinstance(tasks, list) else tasks, collect_as, _ms(timeout), executor)


def each(key: str, fn: Callable[[Any, Any], Any], executor: Executor = "thread") -> Each:
    """``fn(item, state)``, plain or ``async def``, for every item of ``state[key]`` as it stood on entry.

    ``Ok(state)`` or ``None`` go on, ``Skip(reason)`` leaves the item out, ``Error(reason)`` or a raise fail the flow.
    """
    return Each(key, fn, executor)


def _ms(duration: Any) -> Any:
    """Anything but a ``timedelta`` as it is: the flow complains, with the path, about what it cannot take."""
    if not isinstance(duration, timedelta):
        return duration
    ms = duration / timedelta(milliseconds=1)
    return int(ms) if ms.is_integer() else ms
