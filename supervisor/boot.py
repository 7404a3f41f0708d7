"""What every incarnation of a flow starts from: the flow and its state, encoded once, and this process as it is now."""

import logging
import os
import sys
from dataclasses import dataclass

from ..protocol import messages, payload
from ..protocol.codec import encode
from ..protocol.functions import Held, Portable


@dataclass(frozen=True, slots=True)
class Boot:
    """``state`` None: the flow's own."""

    flow: Portable
    state: Portable | None

    def frames(self, nonce: bytes, interest: int, held: Held) -> bytes:
        """All that a worker needs to begin; nothing has to be answered first."""
        needs = self.flow.needs + (self.state.needs if self.state else ())
        options = payload.encode({"interest": interest}, what="options")
        start = messages.Start(self.flow.data, self.state.data if self.state else b"", options, _environment())
        hello = messages.Hello(messages.VERSION, os.getpid(), nonce)
        return b"".join(map(encode, [hello, *held.missing(needs), start]))


def _environment() -> bytes:
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
