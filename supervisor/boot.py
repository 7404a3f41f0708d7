"""What every incarnation of a flow starts from: the flow and its state, encoded once, and this process as it is now."""

import logging
import os
import sys
from dataclasses import dataclass
from typing import Any

from ..flows.flow import Flow
from ..flows.outcomes import UNSET
from ..protocol import messages, payload
from ..protocol.codec import encode
from ..protocol.functions import Held, Portable, export
from ..protocol.importable import importable


@dataclass(frozen=True, slots=True)
class Boot:
    """``state`` None: the flow's own. ``modules``: what the worker imports for the flow, as far as it has a name."""

    flow: Portable
    state: Portable | None
    modules: tuple[str, ...] = ()

    @classmethod
    def of(cls, flow: Flow | str, state: Any) -> "Boot":
        """Raises ``NotPortable`` and ``LimitExceeded``; ``state`` may be ``UNSET``."""
        portable = export(flow, what="flow") if isinstance(flow, Flow) else Portable(payload.encode(flow))
        return cls(portable, None if state is UNSET else export(state, what="initial_state"), _modules(flow))

    def frames(self, nonce: bytes, interest: int, held: Held) -> bytes:
        """All that a worker needs to begin; nothing has to be answered first."""
        needs = self.flow.needs + (self.state.needs if self.state else ())
        options = payload.encode({"interest": interest}, what="options")
        start = messages.Start(self.flow.data, self.state.data if self.state else b"", options, environment())
        hello = messages.Hello(messages.VERSION, os.getpid(), nonce)
        return b"".join(map(encode, [hello, *held.missing(needs), start]))


def _modules(flow: Flow | str) -> tuple[str, ...]:
    if isinstance(flow, str):
        return (flow.partition(":")[0],)
    place = flow.__caravela_name__()
    return (place[0],) if place is not None and importable(place[0]) else ()


def environment() -> bytes:
    """What a worker takes over from this process."""
    try:
        cwd = os.getcwd()
    except FileNotFoundError:  # deleted under us
        cwd = ""
    return payload.encode(
        {
            "path": [entry for entry in sys.path if isinstance(entry, str)],
            "cwd": cwd,
            "environ": dict(os.environ),
            "argv": list(sys.argv),
            "log_level": logging.getLogger().level,
        },
        what="environment",
    )
