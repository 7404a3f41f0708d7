"""The worker's loop: pipe in → messages → machine → effects → frames out. One thread, one ``poll``, no work when idle.

One turn: at most one bounded read is applied input by input, then the results of bodies, then expired timers. So a
signal beats the timer that ends at the same moment, and no flood starves a timer (G6). A machine that is runnable is
ticked between looks at the pipe (G4).
"""

import math
import select
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, Final, assert_never

from caravela.errors import ProtocolError, StepRaised

from ..flows import events
from ..flows.machine import Machine
from ..protocol import messages, payload
from ..protocol.messages import ToWorker
from ..protocol.status import Page
from . import clones, exits
from .boot import Booted
from .pipe import TORN, Halted, HostGone, Pipe
from .tasks import TaskRunner

SLOW: Final = 0.050
"""Seconds after which a function that ran on the loop, where nothing else can run, is logged."""

FUEL: Final = 64
"""Transitions between two looks at the pipe."""

_LONGEST_LOOK: Final = 2**31 - 1
"""Milliseconds that ``poll`` can count, 24.8 days; a longer pause is slept in pieces."""

_LONGEST: Final = 64 * 2**10
"""Characters of an error's text that travel."""

_LOST: Final = select.POLLHUP | select.POLLERR


class Loop:
    def __init__(self, pipe: Pipe, page: Page, tasks: TaskRunner, booted: Booted, inbox: deque[ToWorker]) -> None:
        self._pipe = pipe
        self._page = page
        self._tasks = tasks
        self._inbox = inbox
        self._importer = booted.importer
        self._signals = booted.flow.signals
        self._interest = booted.interest
        self._machine = Machine(booted.flow.plan, booted.state, payload.ValueCodec(), probe=self._stand, fuel=FUEL)
        self._machine.interested = booted.interest >= 2
        self._machine.replaying = self._replays
        self._replayed = 0
        self._handled = 0
        self._path = ""
        self._since = 0.0
        self._code = exits.CRASHED
        self._masks: dict[int, int] = {}
        self._poll = select.poll()
        if pipe.halt is not None:
            self._listen(pipe.halt, select.POLLIN)

    @property
    def position(self) -> tuple[str, int]:
        """Path and attempt of the step entered last."""
        return self._machine.position

    def run(self) -> int:
        """Until the flow has ended and said so; returns the exit code."""
        while not self._machine.over:
            self._turn()
        self._pipe.finish()
        return self._code

    def _turn(self) -> None:
        machine, pipe = self._machine, self._pipe
        full = pipe.full
        reading = not (full or self._inbox or machine.saturated)
        self._listen(pipe.reads, select.POLLIN if reading else 0)  # its hang-up comes through 0
        self._listen(pipe.writes, select.POLLOUT if pipe.unsent else 0)
        self._listen(self._tasks.fileno(), 0 if full else select.POLLIN)
        looked = time.monotonic()
        self._page.looped(looked)
        done = self._wait(None if full else self._patience(looked))
        if pipe.full:
            return
        while self._inbox and not machine.saturated and not machine.over and not self._stuck():
            self._take(self._inbox.popleft())
        if done:
            for result in self._tasks.drain():
                self._advance(result)
        # What expired after the look waits for the next one: a signal may be there that came before it expired.
        if machine.deadline is not None and machine.deadline <= looked and not self._stuck():
            self._advance(events.Tick())
        pipe.flush()

    def _stuck(self) -> bool:
        if self._pipe.full:
            self._pipe.flush()
        return self._pipe.full

    def _patience(self, now: float) -> float | None:
        """Milliseconds that the poll may take; poll's are whole, and a timer must not fire early."""
        deadline = self._machine.deadline
        if self._inbox and not self._machine.saturated:
            return 0
        return None if deadline is None else max(0, math.ceil(min((deadline - now) * 1000, _LONGEST_LOOK)))

    def _wait(self, patience: float | None) -> bool:
        """Reads and writes what can be; returns whether bodies are done."""
        done = False
        for fd, mask in self._poll.poll(patience):
            if mask & select.POLLNVAL:
                raise OSError(TORN)
            if fd == self._pipe.reads:
                if not mask & select.POLLIN:
                    raise HostGone
                self._inbox.extend(self._pipe.read())
            elif fd == self._pipe.writes:
                if mask & _LOST:
                    raise HostGone
                self._pipe.flush()
            elif fd == self._pipe.halt:
                raise OSError(TORN) if self._pipe.torn else Halted
            else:
                done = True
        return done

    def _listen(self, fd: int, mask: int) -> None:
        if self._masks.get(fd) != mask:
            self._masks[fd] = mask
            self._poll.register(fd, mask)

    # ------------------------------------------------------------------ in

    def _take(self, message: ToWorker) -> None:
        match message:
            case messages.Signal():
                self._signal(message)
            case messages.Query(call):
                self._pipe.send(messages.Reply(call, True, self._machine.state))
            case messages.Code():
                self._importer.code(message)
            case messages.Define():
                self._define(message)
            case messages.Interest(level):
                self._interest = level
                self._machine.interested = level >= 2
            case messages.Ping(call):
                self._pipe.send(messages.Pong(call))
            case messages.Stop():
                self._advance(events.Stop())
            case messages.Hello() | messages.Start():
                raise ProtocolError(f"a second {type(message).__name__}")
            case _:
                assert_never(message)

    def _signal(self, message: messages.Signal) -> None:
        self._page.executing(message.no)
        try:
            fn = self._importer.load(message.function)
            if isinstance(fn, str):
                fn = self._declared(fn)
            args = self._importer.load(message.args) if message.args else ()
        except BaseException as error:  # loading runs code of the user's: it may even ask the interpreter to exit
            clones.came_back(self._pipe.born, error)
            why = StepRaised.of(error, self._machine.position[0])
            self._reject(events.Rejected(message.no, message.call, why, late=False))
        else:
            clones.came_back(self._pipe.born)
            size = len(message.function) + len(message.args)
            self._advance(events.Signal(message.no, message.call, fn, args, size))
        self._handled += 1
        self._page.applied(self._handled)
        self._page.executing(0)

    def _declared(self, name: str) -> Any:
        try:
            return self._signals[name]
        except KeyError:
            declared = ", ".join(map(repr, self._signals)) or "none"
            raise LookupError(f"the flow declares no signal {name!r}; it declares {declared}") from None

    def _define(self, message: messages.Define) -> None:
        """What cannot be defined is missed, by name, by the signal that needs it."""
        try:
            self._importer.define(message)
        except BaseException as error:
            clones.came_back(self._pipe.born, error)
            self._log(f"{message.module}.{message.name} cannot be loaded: {StepRaised.of(error)}")
        else:
            clones.came_back(self._pipe.born)

    # ------------------------------------------------------------------ the machine

    def _advance(self, event: events.Event) -> None:
        now = self._since = time.monotonic()
        effects = self._machine.advance(event, now)
        self._passed()
        for effect in effects:
            self._effect(effect)

    def _stand(self, path: str, attempt: int) -> None:
        """The machine enters a step."""
        self._passed()
        self._path = path
        self._page.enter(path, attempt)

    def _replays(self, no: int) -> None:
        """The machine replays signals: this one comes next, 0: that was the last."""
        self._passed()
        self._replayed = no
        self._page.executing(no)

    def _passed(self) -> None:
        """The machine has called functions of the user's. They ran in here, and in any fork that came out of them."""
        if clones.generation != self._pipe.born:
            clones.leave(_error_in(self._machine.effects))
        now = time.monotonic()
        took, self._since = now - self._since, now
        if took > SLOW:
            place = self._path or "its begin"
            ms = f"{took * 1000:.0f} ms"
            what = f"replaying signal {self._replayed}" if self._replayed else "a function, a signal or a large state"
            self._log(f"the flow was held up for {ms} at {place}: {what}")

    def _effect(self, effect: events.Effect) -> None:
        send = self._pipe.send
        match effect:
            case events.Notify(seq, state):
                if self._interest:
                    send(messages.State(seq, state))
            case events.Applied(call=call, state=state):
                send(messages.Reply(call, True, state))
            case events.Rejected():
                self._reject(effect)
            case events.Entered(path, attempt):
                send(messages.Entered(path, attempt))
            case events.StartTask():
                self._tasks.start(effect)
            case events.CancelTask(task):
                self._tasks.cancel(task)
            case events.Finish(seq, state):
                self._code = exits.ENDED
                send(messages.Done(seq, state))
            case events.Fail(seq, reason):
                self._code = exits.ENDED
                send(messages.Failed(seq, reason))
            case events.Stopped(seq, state):
                self._code = exits.ENDED
                send(messages.Stopped(seq, state))
            case events.Crash(error):
                send(messages.Crashed(text(error)))
            case _:
                assert_never(effect)

    def _reject(self, rejected: events.Rejected) -> None:
        if rejected.call:
            self._pipe.send(messages.Reply(rejected.call, False, text(rejected.error)))
        else:
            self._pipe.send(messages.Rejected(rejected.no, text(rejected.error), rejected.late))

    def _log(self, message: str) -> None:
        record = {"name": "caravela.worker", "level": 30, "message": message[:_LONGEST], "path": self._path}
        self._pipe.send(messages.Log(payload.encode(record)))


def _error_in(effects: Iterable[events.Effect]) -> StepRaised | None:
    """What a function of the user's raised in the machine, as far as that says it."""
    for effect in effects:
        if isinstance(effect, events.Crash | events.Rejected):
            return effect.error
    return None


def text(error: StepRaised) -> bytes:
    """An error for the pipe; its text has a length that people may still read."""
    cut = StepRaised(error.type, error.message[:_LONGEST], error.traceback[-_LONGEST:], error.path, error.attempt)
    return payload.encode(cut, what="error")
