"""The ten steps, as frozen data. What each one means is in the machine, what it accepts in the builder.

Durations are milliseconds. Steps nest to any depth, so nothing here recurses: comparing, hashing, printing and
pickling all go through the flat form of :mod:`.flat`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from .flat import Branching, Flat

Backoff: TypeAlias = Literal["constant", "linear", "exponential"]
Executor: TypeAlias = Literal["thread"]
OnError: TypeAlias = Literal["fail", "collect"]


# eq=False and repr=False throughout: the generated ones recurse.


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Sequence(Branching):
    """Inner steps in order."""

    steps: tuple["Step", ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Repeat(Branching):
    """Inner steps in order, for ever."""

    steps: tuple["Step", ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Wait(Flat):
    """A fixed pause; signals are applied meanwhile."""

    ms: float


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WaitUntil(Flat):
    """Until ``pred(state)`` is true: asked on entry and after every applied signal."""

    pred: Callable[[Any], object]
    timeout: float | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Debounce(Flat):
    """Until ``ms`` have passed without an applied signal, at most ``max_wait`` from entry."""

    ms: float
    max_wait: float | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SetState(Flat):
    """The state becomes ``fn(state)``."""

    fn: Callable[[Any], Any]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Run(Flat):
    """A body with retries: ``fn(state)`` returns ``Ok``, ``Retry``, ``Error`` or ``None``."""

    fn: Callable[[Any], Any]
    retries: int = 0
    backoff: Backoff = "linear"
    base_delay: float = 100
    max_delay: float | None = None
    jitter: float = 0
    timeout: float | None = None
    executor: Executor = "thread"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Parallel(Flat):
    """``fn(state)`` returns zero-argument functions; their results, in their order, go under ``collect_as``."""

    fn: Callable[[Any], Any]
    collect_as: str = "parallel_results"
    timeout: float | None = None
    max_concurrency: int | None = None
    on_error: OnError = "fail"
    executor: Executor = "thread"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Race(Flat):
    """Zero-argument functions (or ``fn(state)`` that returns them); the first to succeed goes under ``collect_as``."""

    tasks: tuple[Callable[[], Any], ...] | Callable[[Any], Any]
    collect_as: str = "race_winner"
    timeout: float | None = None
    executor: Executor = "thread"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Each(Flat):
    """``fn(item, state)`` for every item of ``state[key]`` as it stood on entry."""

    key: str
    fn: Callable[[Any, Any], Any]
    executor: Executor = "thread"


Step: TypeAlias = Sequence | Repeat | Wait | WaitUntil | Debounce | SetState | Run | Parallel | Race | Each
