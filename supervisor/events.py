"""What subscribers receive. Every event carries ``flow_id``, ``tag``, ``incarnation`` and ``seq``.

``seq`` numbers the states of an incarnation and its terminal event; other events repeat the last one. States and
reasons arrive encoded and are decoded on first access, in the thread that asks, for that event alone: each subscriber
has its own copy. What cannot be decoded raises ``UndecodableState``.
"""

from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias

from caravela.errors import Cause, StepRaised, UndecodableState

from ..flows.outcomes import UNSET
from ..protocol import payload
from .spec import Trust


class Encoded:
    """A value as bytes, until somebody looks."""

    __slots__ = ("_data", "_trust", "_value")

    def __init__(self, data: bytes, trust: Trust = "pickle") -> None:
        self._data = data
        self._trust: Trust = trust
        self._value: Any = UNSET

    def get(self) -> Any:
        if self._value is UNSET:
            self._value = payload.decode(self._data, trust=self._trust)
        return self._value

    def copy(self) -> "Encoded":
        """For another reader: what one changes in its value the other does not see."""
        return Encoded(self._data, self._trust)

    def __eq__(self, other: object) -> bool:
        """By value, also with one that never was encoded: what a test expects."""
        if isinstance(other, Encoded):
            return other._data == self._data or bool(other.get() == self.get())
        return bool(self.get() == other)

    def __hash__(self) -> int:
        return hash(self.get())

    def __repr__(self) -> str:
        try:
            return repr(self.get())
        except UndecodableState as error:
            return f"<{error}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Encoded, (self._data, self._trust)


@dataclass(frozen=True, slots=True, kw_only=True, match_args=False)
class Event:
    flow_id: str = ""
    tag: Any = None
    incarnation: int = 1
    seq: int = 0

    def for_another(self) -> Self:
        """The same event for one more subscriber."""
        return self


@dataclass(frozen=True, slots=True, match_args=False)
class Carrier(Event):
    """An event with a value of the user's in it, which may still be :class:`Encoded`."""

    carried: Any = None

    def for_another(self) -> Self:
        return replace(self, carried=self.carried.copy()) if isinstance(self.carried, Encoded) else self

    def __repr__(self) -> str:
        place = f"flow_id={self.flow_id!r}, incarnation={self.incarnation}, seq={self.seq}"
        return f"{type(self).__name__}({self.carried!r}, {place})"

    def _get(self) -> Any:
        return self.carried.get() if isinstance(self.carried, Encoded) else self.carried


class WithState(Carrier):
    __slots__ = ()
    __match_args__ = ("state",)

    def __init__(self, state: Any = None, *, carried: Any = UNSET, **event: Any) -> None:
        super().__init__(state if carried is UNSET else carried, **event)

    @property
    def state(self) -> Any:
        return self._get()


class FlowState(WithState):
    """The state has changed."""

    __slots__ = ()


class FlowDone(WithState):
    """The flow came to its end; terminal."""

    __slots__ = ()


class FlowStopped(WithState):
    """The flow was stopped; ``state`` is the last one known (None: it never had one); terminal."""

    __slots__ = ()


class FlowError(Carrier):
    """The flow failed; ``reason``: that of an ``Error(reason)``, a ``Reason``, or a crash's ``Cause``; terminal."""

    __slots__ = ()
    __match_args__ = ("reason",)

    def __init__(self, reason: Any = None, *, carried: Any = UNSET, **event: Any) -> None:
        super().__init__(reason if carried is UNSET else carried, **event)

    @property
    def reason(self) -> Any:
        return self._get()


@dataclass(frozen=True, slots=True)
class FlowStarted(Event):
    """The first incarnation is ready."""

    pid: int = 0


@dataclass(frozen=True, slots=True)
class FlowRestarted(Event):
    """A new incarnation is ready. ``lost_signals``: written to the last one, not applied before it died."""

    cause: Cause | None = None
    lost_signals: int = 0


@dataclass(frozen=True, slots=True)
class SignalRejected(Event):
    """A signal raised, or returned what cannot be a state; the state stands. ``late``: known when a body was done."""

    error: StepRaised | None = None
    late: bool = False


@dataclass(frozen=True, slots=True)
class StepEntered(Event):
    path: str = ""
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Progress(Event):
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Lagged(Event):
    """``n`` events were dropped here because this subscriber was too slow."""

    n: int = 0


def lagged(before: Lagged | None, event: Event, more: int = 1) -> Lagged:
    """``event`` is missing, with ``more - 1`` others, besides what is already."""
    n = more + (before.n if before else 0)
    return Lagged(n=n, flow_id=event.flow_id, tag=event.tag, incarnation=event.incarnation, seq=event.seq)


Terminal: TypeAlias = FlowDone | FlowError | FlowStopped
TERMINAL = (FlowDone, FlowError, FlowStopped)


def how(end: Terminal | None) -> str:
    """How a flow ended, in words; None: it is about to."""
    match end:
        case FlowDone():
            return "it is done"
        case FlowStopped():
            return "it was stopped"
        case FlowError():
            return _why(end)
        case None:
            return "it is being stopped"


def _why(end: FlowError) -> str:
    """A reason is the user's value: perhaps it cannot be decoded here, or has no text."""
    try:
        reason = end.reason
        if not isinstance(reason, Cause):
            return f"it failed: {reason}"
        return f"it {'ended too often' if reason.kind == 'ended' else 'crashed'}: {reason}"
    except Exception as error:
        return f"it failed, with a reason that cannot be shown ({type(error).__name__}: {error})"
