"""What every incarnation of a flow starts from: the flow and its state, encoded once, and this process as it is now."""

import logging
import os
import sys
from dataclasses import dataclass
from typing import Any

from ..flows.flow import Flow, is_factory
from ..flows.outcomes import UNSET
from ..protocol import messages, payload
from ..protocol.codec import encode
from ..protocol.functions import Held, Portable, address, export


@dataclass(frozen=True, slots=True)
class Boot:
    """``state`` None: the flow's own. ``modules``: what the worker imports for the flow, as far as it has a name.

    ``name`` and ``signals`` are the flow's; of one that only the worker imports they are not known yet.
    """

    flow: Portable
    state: Portable | None
    modules: tuple[str, ...]
    name: str
    signals: tuple[str, ...]

    @classmethod
    def of(cls, flow: Flow | str, state: Any) -> "Boot":
        """Raises ``NotPortable`` and ``LimitExceeded``; ``state`` may be ``UNSET``."""
        place = flow if isinstance(flow, str) else address(flow)
        sent = None if state is UNSET else export(state, what="initial_state")
        if sent and sent.needs and not is_factory(state):
            payload.encode(state, what="initial_state")  # as the worker sends it back, which knows no local classes
        return cls(
            flow=Portable(payload.encode(place)) if place else export(flow, what="flow"),
            state=sent,
            modules=(place.partition(":")[0],) if place else (),
            name=flow if isinstance(flow, str) else flow.name,
            signals=() if isinstance(flow, str) else tuple(flow.signals),
        )

    def frames(self, nonce: bytes, interest: int, held: Held, environment: bytes) -> bytes:
        """All that a worker needs to begin; nothing has to be answered first."""
        needs = self.flow.needs + (self.state.needs if self.state else ())
        options = payload.encode({"interest": interest}, what="options")
        start = messages.Start(self.flow.data, self.state.data if self.state else b"", options, environment)
        hello = messages.Hello(messages.VERSION, os.getpid(), nonce)
        return b"".join(map(encode, [hello, *held.missing(needs), start]))


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
