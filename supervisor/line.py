"""The line to one flow: what is told and asked goes out by its outbox; who asks reads the answer himself if he can."""

import time
from collections.abc import Callable
from typing import Protocol

from caravela.errors import Cause, FlowBusy, FlowCrashed, FlowNotRunning, FlowTimeout

from ..protocol import messages
from .calls import Call
from .entries import Asking, Sending
from .inbox import Inbox
from .interrupts import uninterrupted
from .outbox import Outbox
from .patience import check_may_wait


class Flow(Protocol):
    """Who is at the other end."""

    name: str

    @property
    def stopping(self) -> bool: ...

    def doing(self) -> str: ...

    def not_running(self) -> FlowNotRunning: ...

    def patience(self, timeout: float) -> float:
        """Seconds for which this thread may wait until the flow has read its signals."""
        ...


class Line:
    def __init__(self, flow: Flow, outbox: Outbox, inbox: Inbox) -> None:
        self._flow, self._outbox, self._inbox = flow, outbox, inbox

    def tell(self, entry: Sending | Asking, timeout: float) -> None:
        with uninterrupted():
            self._put(entry, lambda: self._flow.patience(timeout))

    def ask(self, call: Call, entry: Sending | Asking, timeout: float) -> bytes:
        """Waits for the answer; reads it itself where nothing stands in the way."""
        check_may_wait(call.kind)
        with uninterrupted():
            self._wait_for(call, entry, timeout)
        return self.outcome(call)

    def post(self, call: Call, entry: Sending | Asking) -> None:
        """Asks and does not wait: the loop reads the answer."""
        with uninterrupted():
            self._inbox.expect(call)
            try:
                self._put(entry, lambda: 0.0)
            except BaseException:
                self._inbox.give_up(call)
                raise

    def forget(self, call: Call) -> None:
        """Nobody waits for it any more; what the worker does not have yet of it is not sent."""
        self._inbox.give_up(call)

    def give_up(self, call: Call, timeout: float) -> None:
        """Raises ``FlowTimeout``, unless it is done at the last moment."""
        self._inbox.give_up(call)
        if not call.done:
            raise FlowTimeout(call.kind, self._flow.name, timeout, self._flow.doing())

    def outcome(self, call: Call) -> bytes:
        """Of one that is done."""
        if call.error is not None:
            raise call.error
        if call.ended:
            raise self._flow.not_running()
        return call.value

    def _wait_for(self, call: Call, entry: Sending | Asking, timeout: float) -> None:
        deadline = time.monotonic() + timeout

        def let_go() -> float:
            """Who reads must not wait for room to write: the worker may be waiting for us to read."""
            self._inbox.end_reading(call)
            return self._flow.patience(timeout)

        try:
            self._inbox.expect(call)
            try:
                if not self._outbox.waiting:
                    self._inbox.begin_reading(call)
                self._put(entry, let_go)
                self._inbox.read_for(call, deadline)
            finally:
                self._inbox.end_reading(call)
            answered = call.wait(deadline - time.monotonic())
        except BaseException:
            self._inbox.give_up(call)
            raise
        if not answered:
            self.give_up(call, timeout)

    def _put(self, entry: Sending | Asking, patience: Callable[[], float]) -> None:
        stopping = isinstance(entry, Sending) and self._flow.stopping
        if stopping or not self._outbox.put(entry, patience, self._busy):
            raise self._flow.not_running()

    def _busy(self, waiting: int) -> FlowBusy:
        return FlowBusy(self._flow.name, waiting, self._flow.doing())

    # -------------------------------------------------------------- the loop

    def lost(self, cause: Cause) -> None:
        """What the dead worker had and did not answer: reading can be asked again, writing cannot."""
        for call in self._inbox.open_calls():
            if not call.written:
                continue
            if call.kind == "get_state":
                call.written = False
                self._outbox.put_back(Asking(messages.Query(call.id), call))
            else:
                self._inbox.give_up(call)
                call.fail(FlowCrashed(self._flow.name, cause))

    def end(self) -> None:
        """The flow has ended."""
        self._outbox.close()
        for call in self._inbox.open_calls():
            self._inbox.give_up(call)
            call.end()
