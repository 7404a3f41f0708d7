"""What waits in an outbox: messages in the making."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..protocol import messages
from ..protocol.codec import encode
from ..protocol.functions import Portable

if TYPE_CHECKING:
    from .calls import Call

OVERHEAD = 32
"""Bytes of a frame around its payloads, roughly."""


@dataclass(slots=True)
class Sending:
    """A signal, or with a ``call`` an update."""

    function: Portable
    args: Portable | None
    call: "Call | None" = None
    numbered: bool = True

    @property
    def size(self) -> int:
        return OVERHEAD + len(self.function.data) + (len(self.args.data) if self.args else 0)

    @property
    def withdrawn(self) -> bool:
        return self.call is not None and self.call.given_up

    @property
    def needs(self) -> Sequence[messages.Code | messages.Define]:
        return self.function.needs if self.args is None else self.function.needs + self.args.needs

    def frame(self, number: int) -> bytes:
        call = self.call.id if self.call else 0
        args = self.args.data if self.args else b""
        return encode(messages.Signal(number, call, self.function.data, args))

    def written(self) -> None:
        if self.call is not None:
            self.call.written = True


@dataclass(slots=True)
class Asking:
    """A message that is not a signal, for a call or for nobody."""

    message: messages.Query | messages.Ping | messages.Interest | messages.Stop
    call: "Call | None" = None
    size: int = OVERHEAD
    numbered: bool = False
    needs: Sequence[messages.Code | messages.Define] = ()

    @property
    def withdrawn(self) -> bool:
        return self.call is not None and self.call.given_up

    def frame(self, number: int) -> bytes:
        return encode(self.message)

    def written(self) -> None:
        if self.call is not None:
            self.call.written = True
