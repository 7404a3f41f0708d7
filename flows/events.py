"""What goes into the flow machine and what comes out. Values only; the shells do the rest.

States and reasons are encoded: the bytes are the canonical form (see :class:`Codec`). Times are seconds on a
monotonic clock; only differences matter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from caravela.errors import StepRaised

from .steps import Executor


class Codec(Protocol):
    """Values to canonical bytes and back; a decoded value is nobody else's."""

    def encode(self, value: Any, /) -> bytes:
        """Raises a ``CaravelaError`` (``NotPortable``, ``LimitExceeded``) for what cannot be a state."""
        ...

    def decode(self, data: bytes, /) -> Any: ...


# ------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class Signal:
    """``fn(state, *args)`` is the new state. ``call`` is not 0 when somebody waits for the answer (an update)."""

    no: int
    call: int
    fn: Callable[..., Any]
    args: tuple[Any, ...] = ()
    size: int = 0
    """Bytes it had on the wire: the rebase log is bounded by their sum."""


@dataclass(frozen=True, slots=True)
class Returned:
    value: Any


@dataclass(frozen=True, slots=True)
class Raised:
    error: StepRaised


@dataclass(frozen=True, slots=True)
class TaskDone:
    """A body came to an end; also a cancelled one, whatever it returned or raised. Unknown tasks are dropped."""

    task: int
    result: Returned | Raised


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed, or the machine said that it is runnable. The first one begins the flow."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End at the next possible moment: cancels bodies, waits for those that were running, then ``Stopped``."""


Event: TypeAlias = Signal | TaskDone | Tick | Stop


# ------------------------------------------------------------------ effects


@dataclass(frozen=True, slots=True)
class StartTask:
    """Call ``fn(*args)`` with ``executor``; answer with ``TaskDone(task, …)``. The arguments belong to the task.

    ``pooled``: one of several at once (``parallel``, ``race``); otherwise nothing else runs beside it.
    """

    task: int
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    executor: Executor
    path: str
    attempt: int
    pooled: bool


@dataclass(frozen=True, slots=True)
class CancelTask:
    """The task's result is no longer wanted, except after ``Stop``, where the machine waits for its end."""

    task: int


@dataclass(frozen=True, slots=True)
class Notify:
    seq: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Applied:
    """An update succeeded; ``state`` is what it made."""

    no: int
    call: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Rejected:
    """A signal raised, or returned what cannot be a state. ``late``: the verdict fell when a body ended."""

    no: int
    call: int
    error: StepRaised
    late: bool


@dataclass(frozen=True, slots=True)
class Entered:
    path: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Finish:
    seq: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Fail:
    """The flow failed; ``reason`` is an encoded value."""

    seq: int
    reason: bytes


@dataclass(frozen=True, slots=True)
class Stopped:
    seq: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Crash:
    """A predicate, a builder or a ``set_state`` raised: the runner is broken, not the flow's work."""

    error: StepRaised


Effect: TypeAlias = StartTask | CancelTask | Notify | Applied | Rejected | Entered | Finish | Fail | Stopped | Crash
