"""How a flow ends, and how that is told: which terminal event belongs to it."""

from dataclasses import dataclass
from typing import TypeAlias, assert_never

from caravela.errors import Cause

from ..protocol import messages
from .events import Encoded, FlowDone, FlowError, FlowStopped, Terminal
from .spec import Trust


@dataclass(frozen=True, slots=True)
class GaveUp:
    """Crashed, and may not start again."""

    cause: Cause


@dataclass(frozen=True, slots=True)
class Refused:
    """Never ran."""

    cause: Cause


@dataclass(frozen=True, slots=True)
class Silenced:
    """Stopped without a last word: killed by the ladder, or dead before it."""


LastWord: TypeAlias = messages.Done | messages.Failed | messages.Stopped
End: TypeAlias = LastWord | GaveUp | Refused | Silenced


def terminal(end: End, last: bytes | None, trust: Trust) -> tuple[type[Terminal], int | None, Encoded | Cause | None]:
    """The event's class, its ``seq`` (None: the next number) and what it carries; ``last`` is the last state known."""
    match end:
        case messages.Done(seq, state):
            return FlowDone, seq, Encoded(state, trust)
        case messages.Stopped(seq, state):
            return FlowStopped, seq, Encoded(state, trust)
        case messages.Failed(seq, reason):
            return FlowError, seq, Encoded(reason, trust)
        case GaveUp(cause) | Refused(cause):
            return FlowError, None, cause
        case Silenced():
            return FlowStopped, None, None if last is None else Encoded(last, trust)
        case _:
            assert_never(end)
