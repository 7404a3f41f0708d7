"""``caravela run``: starts one flow, writes what it announces, ends with it."""

import os
import queue
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from caravela.errors import FlowNotRunning, FlowTimeout

from ..flows.outcomes import UNSET
from ..supervisor.events import (
    TERMINAL,
    Event,
    FlowDone,
    FlowRestarted,
    FlowStarted,
    FlowState,
    Lagged,
    Progress,
    SignalRejected,
    StepEntered,
    Terminal,
)
from ..supervisor.handle import FlowHandle
from ..supervisor.spec import Restart
from ..supervisor.subscribers import Subscription
from ..supervisor.supervisor import Supervisor
from .codes import DONE, FAILED, INTERRUPTED, TERMINATED, TIMED_OUT
from .overlay import overlaid
from .targets import BadTarget, Target

KINDS: Final = (FlowStarted, FlowState, FlowRestarted, SignalRejected, Progress, Lagged, *TERMINAL)
CODES: Final = {int(signal.SIGINT): INTERRUPTED, int(signal.SIGTERM): TERMINATED}
HELD: Final = 65_536
"""Events that may wait for a slow reader of our output before states are left out."""


class Writer(Protocol):
    def write(self, event: Event) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Order:
    """What the command line asks for. ``timeout``, ``shutdown``: seconds."""

    target: Target
    state: Any = UNSET
    signals: tuple[str, ...] = ()
    restart: Restart = "transient"
    shutdown: float = 5.0
    timeout: float | None = None
    steps: bool = False


def run(order: Order, writer: Writer) -> int:
    """Returns the exit code. Raises ``BadTarget``, and ``BootError`` or ``NotPortable`` for what cannot start."""
    target = order.target if order.target.name else order.target.load()[0]
    state = order.state
    if isinstance(state, dict):
        state = partial(overlaid, target.module, target.name, state)
    kinds = (*KINDS, StepEntered) if order.steps else KINDS
    with (
        Stopping(writer).heard() as stopping,
        Supervisor(restart=order.restart, shutdown=order.shutdown) as supervisor,
        supervisor.subscribe(kinds, maxsize=HELD) as events,
    ):
        try:
            handle = stopping.handle = supervisor.start(str(target), initial_state=state)
        except KeyboardInterrupt:
            return stopping.code or INTERRUPTED
        _send(handle, order.signals)
        end = _follow(events, writer, stopping, order.timeout)
        return stopping.code or (DONE if isinstance(end, FlowDone) else FAILED)


def _send(handle: FlowHandle, signals: tuple[str, ...]) -> None:
    for name in signals:
        if name not in handle.signals:
            declared = ", ".join(handle.signals) or "none"
            raise BadTarget(f"flow {handle.name!r} declares no signal {name!r}; it declares {declared}")
        with suppress(FlowNotRunning):  # it was quick
            handle.signal(name)


def _follow(events: Subscription, writer: Writer, stopping: "Stopping", timeout: float | None) -> Terminal:
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = None if deadline is None or stopping.code else max(deadline - time.monotonic(), 0.0)
        try:
            event = events.get(left)
        except queue.Empty:
            stopping.late(timeout or 0.0)
            continue
        writer.write(event)
        if isinstance(event, Terminal):
            return event


class Stopping:
    """What stops the flow before its time: the first asks it to, a second one kills it. ``code``: then our own."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.handle: FlowHandle | None = None
        self.code = 0

    @contextmanager
    def heard(self) -> Iterator["Stopping"]:
        """Signals are, meanwhile."""
        before = {number: signal.signal(number, self._hear) for number in CODES}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, _: object) -> None:
        if self.handle is None:
            self.code = CODES[number]
            raise KeyboardInterrupt  # ends the start, and what was started
        again, self.code = self.code, CODES[number]
        _ask(self.handle)  # before it is killed, or it would be started again
        if not again:
            self._writer.note("stopping it; once more: at once")
        elif self.handle.pid:
            with suppress(ProcessLookupError):
                os.killpg(self.handle.pid, signal.SIGKILL)

    def late(self, seconds: float) -> None:
        """It has had its time."""
        assert self.handle
        self.code = TIMED_OUT
        _ask(self.handle)
        self._writer.note(f"stopping it after {seconds:g} s")


def _ask(handle: FlowHandle) -> None:
    with suppress(FlowTimeout):
        handle.stop(timeout=0)
