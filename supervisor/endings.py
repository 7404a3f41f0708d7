"""How an end is told: which terminal event belongs to it."""

from typing import assert_never

from caravela.errors import Cause

from ..protocol import messages
from . import core
from .events import Encoded, FlowDone, FlowError, FlowStopped, Terminal
from .spec import Trust


def terminal(
    end: core.End, last: bytes | None, trust: Trust
) -> tuple[type[Terminal], int | None, Encoded | Cause | None]:
    """The event's class, its ``seq`` (None: the next number) and what it carries; ``last`` is the last state known."""
    match end:
        case messages.Done(seq, state):
            return FlowDone, seq, Encoded(state, trust)
        case messages.Stopped(seq, state):
            return FlowStopped, seq, Encoded(state, trust)
        case messages.Failed(seq, reason):
            return FlowError, seq, Encoded(reason, trust)
        case core.GaveUp(cause) | core.Refused(cause):
            return FlowError, None, cause
        case core.Silenced():
            return FlowStopped, None, None if last is None else Encoded(last, trust)
        case _:
            assert_never(end)
