"""One flow as its supervisor sees it, over all its incarnations: the shell around the pure :class:`core.Child`.

    callers ▶ Line ▶ Outbox ══pipe══▶ worker ══pipe══▶ Inbox ▶ calls, subscribers, and by the loop ▶ Child ▶ effects

Frames that change the flow's life are posted to the loop in the order in which they came, and the worker's death behind
them, so that it is judged last.
"""

import secrets
import time
from dataclasses import replace
from functools import partial
from logging import ERROR, WARNING
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, assert_never

from caravela.errors import Cause, FlowNotRunning, ProtocolError, StepRaised

from ..protocol import messages, payload
from ..protocol.functions import Held
from ..protocol.status import Status
from . import core, events
from .audience import Audience
from .boot import Boot, environment
from .endings import End, LastWord, Refused, terminal
from .engines.base import Engine, Setting
from .entries import Asking
from .events import Encoded
from .inbox import Inbox, error_in
from .latch import Latch
from .line import Line
from .link import Link
from .logs import say
from .loop import Loop
from .outbox import Outbox
from .spec import Policy
from .subscribers import Sink
from .turns import Turns, Work

if TYPE_CHECKING:
    from collections.abc import Callable

Life: TypeAlias = messages.Ready | LastWord | messages.BootFailed | messages.Crashed


class Home(Protocol):
    """What a runner needs of its supervisor."""

    loop: Loop
    engine: Engine
    sinks: list[Sink]

    def next_key(self, runner: "Runner") -> int: ...

    def forget(self, runner: "Runner") -> None: ...

    def impatient(self) -> bool:
        """This thread must not wait for a flow to read its signals."""
        ...


class Runner:
    def __init__(
        self,
        home: Home,
        id: str,
        name: str | None,
        tag: Any,
        policy: Policy,
        boot: Boot,
        sinks: list[Sink],
        *,
        quiet: bool,
    ) -> None:
        self.id, self._given_name, self.tag = id, name, tag
        self.name = name or boot.name
        """As given; else the flow's own, which is known once it is loaded."""
        self.home, self.policy, self._boot, self._quiet = home, policy, boot, quiet
        self.signals = boot.signals
        self.last: tuple[bytes, float] | None = None
        """The last state known, encoded, and when it came."""
        self.up = Latch()
        """The first incarnation is ready, or never will be."""
        self.ended = Latch()
        self.gone = Latch()
        self.was_up = False
        self._child = core.Child(policy)
        self._outbox = Outbox(self._watch_room, home.loop.unwatch_writable)
        self._inbox = Inbox(home.loop, self._receive, self._broken)
        self.line = Line(self, self._outbox, self._inbox)
        self._link: Link | None = None
        self._key = 0
        self._audience = Audience(id, tag, sinks, lambda: home.sinks)
        self._lost = 0
        self._turns = Turns(home.loop.post)
        self._cancel_tick: Callable[[], None] | None = None

    # -------------------------------------------------------------- what callers see

    @property
    def end(self) -> events.Terminal | None:
        return self._audience.end

    @property
    def pid(self) -> int | None:
        return self._link.pid if self._link else None

    @property
    def incarnation(self) -> int:
        return max(self._child.incarnation, 1)

    @property
    def cause(self) -> Cause | None:
        return self._child.cause

    @property
    def status(self) -> str:
        match self.end:
            case events.FlowDone():
                return "done"
            case events.FlowError():
                return "failed"
            case events.FlowStopped():
                return "stopped"
            case None:
                return self._child.status

    def doing(self) -> str:
        """What the worker was doing last, in words, from the page that it shares."""
        told = self._link.doing() if self._link and self._child.up else None
        return told or f"it is {self.status}"

    def not_running(self) -> FlowNotRunning:
        return FlowNotRunning(self.name, events.how(self.end))

    @property
    def stopping(self) -> bool:
        return self._child.phase is core.Phase.STOPPING

    def patience(self, timeout: float) -> float:
        return 0.0 if self.home.impatient() else timeout

    # -------------------------------------------------------------- what the worker says

    def _receive(self, link: Link, message: messages.ToSupervisor) -> None:
        """In the thread of whoever reads. What changes the flow's life goes to the loop."""
        match message:
            case messages.State(seq, state):
                self._turns.now(partial(self._state, seq, state))
            case messages.Reply(number, ok, value):
                if ok:
                    self.last = value, time.monotonic()
                self._inbox.answer(number, ok, value)
            case messages.Pong(number):
                self._inbox.answer(number, True, b"")
            case messages.Rejected(_, error, late):
                self._turns.now(partial(self._rejected, error_in(error), late))
            case messages.Entered(path, attempt):
                self._turns.now(partial(self._audience.publish, events.StepEntered, path=path, attempt=attempt))
            case messages.Progress(done, total):
                self._turns.now(partial(self._audience.publish, events.Progress, done=done, total=total))
            case messages.Log(record):
                self._log(payload.decode(record, trust="data"))
            case messages.Hello(version, pid, nonce):
                if version != messages.VERSION or nonce != link.nonce:
                    raise ProtocolError(f"hello of another worker, or version {version} instead of {messages.VERSION}")
                link.pid = pid  # the engine's word may come later than the readiness
            case _:
                self._turns.on_loop(partial(self._live, message))

    def _live(self, message: Life) -> None:
        match message:
            case messages.Ready(state, name, signals):
                self.name = self._given_name or name
                self._audience.incarnation, self._audience.seq = self.incarnation, 0
                self.last = state, time.monotonic()
                self.signals = tuple(payload.decode(signals, trust="data"))
                self.feed(core.Ready())
                self.home.engine.booted(self._key)
            case messages.Done() | messages.Failed() | messages.Stopped():
                self.feed(core.Ended(message))
            case messages.BootFailed(error):
                self.feed(core.BootFailed(error_in(error)))
            case messages.Crashed(error):
                self.feed(core.Crashed(error_in(error)))
            case _:
                assert_never(message)

    def _state(self, seq: int, state: bytes) -> None:
        self._audience.seq = seq
        self.last = state, time.monotonic()
        self._audience.publish(events.FlowState, carried=Encoded(state, self.policy.trust))

    def _rejected(self, error: StepRaised, late: bool) -> None:
        say(WARNING, "flow %s rejected a signal: %s", self.id, error, extra={"flow_id": self.id})
        self._audience.publish(events.SignalRejected, error=error, late=late)

    def _log(self, record: Any) -> None:
        extra = {"flow_id": self.id, "incarnation": self.incarnation, "path": record["path"]}
        say(record["level"], "flow %s: %s", self.id, record["message"], logger=record["name"], extra=extra)

    # -------------------------------------------------------------- subscribers

    def subscribe(self, sink: Sink) -> None:
        self._audience.join(sink)
        self.tune()

    def unsubscribe(self, sink: Sink) -> None:
        self._audience.leave(sink)
        self.tune()

    def tune(self, told: int | None = None) -> None:
        """``told``: what the worker was told to send; by default what it was told last."""
        self._audience.tune(lambda level: self._outbox.overtake(Asking(messages.Interest(level))), told)

    # -------------------------------------------------------------- the loop: effects

    def stop(self) -> None:
        """From any thread; idempotent."""
        self.home.loop.post(partial(self.feed, core.StopAsked(self.policy.shutdown)))

    def feed(self, event: core.Event) -> None:
        """On the loop's thread."""
        try:
            for effect in self._child.advance(event, time.monotonic()):
                self._perform(effect)
        finally:
            self._arm()

    def _arm(self) -> None:
        if self._cancel_tick:
            self._cancel_tick()
            self._cancel_tick = None
        if self._child.deadline is not None:
            wait = max(self._child.deadline - time.monotonic(), 0.0)
            self._cancel_tick = self.home.loop.later(wait, partial(self.feed, core.Tick()))

    def _perform(self, effect: core.Effect) -> None:
        match effect:
            case core.Launch():
                self._launch()
            case core.SendStop():
                self._outbox.overtake(Asking(messages.Stop("stop")))
            case core.Terminate():
                if self._link:
                    self.home.engine.terminate(self._link.key)
            case core.Kill():
                if self._link:
                    self.home.engine.kill(self._link.key)
            case core.Up(cause):
                self._is_up(cause)
            case core.Publish(end):
                self._finish(end)
            case core.Forget():
                self.home.loop.between_batches(self._forget)  # behind the closing of its fds
            case _:
                assert_never(effect)

    def _is_up(self, cause: Cause | None) -> None:
        if cause is None:
            self._audience.publish(events.FlowStarted, pid=self.pid or 0)
        else:
            self._audience.publish(events.FlowRestarted, cause=cause, lost_signals=self._lost)
            self._lost = 0
            assert self.last is not None
            self._audience.publish(events.FlowState, carried=Encoded(self.last[0], self.policy.trust))
        self._outbox.release()
        self.was_up = True
        self.up.set()

    def _finish(self, end: End) -> None:
        if not self._child.up:  # nothing came from this incarnation: its end is its number 0
            self._audience.incarnation, self._audience.seq = self.incarnation, -1
        if isinstance(end, messages.Done | messages.Stopped):
            self.last = end.state, time.monotonic()
        kind, seq, carried = terminal(end, self.last and self.last[0], self.policy.trust)
        self._audience.seq = self._audience.seq + 1 if seq is None else seq
        event = self._audience.event(kind, carried=carried)
        # ``start`` raises a refusal itself where it waits for it.
        try:
            self._audience.conclude(event, quiet=self._quiet and isinstance(end, Refused))
        except BaseException:  # whoever waits for the end must not wait for ever
            say(ERROR, "the end of flow %s was not told to all", self.id, exc_info=True)
        self.line.end()
        self.up.set()
        self.ended.set()

    # -------------------------------------------------------------- the loop: one incarnation

    def _launch(self) -> None:
        nonce, held, level = secrets.token_bytes(16), Held(), self._audience.level()
        try:
            here = environment()
            frames = self._boot.frames(nonce, level, held, here)
            self._link, ends = Link.make(nonce)
        except OSError as error:
            return self._not_launched(f"no pipes: {error.strerror}")
        except Exception as error:  # of this process: somebody put something into `sys.argv` that cannot travel
            return self._not_launched(f"{type(error).__name__}: {error}")
        link = self._link
        link.key = self._key = self.home.next_key(self)
        self._inbox.attach(link)
        self._outbox.attach(link.writes, frames, held)
        self.tune(level)  # somebody may have begun to listen meanwhile
        self.home.engine.launch(link.key, ends, Setting(self._boot.modules, here))

    def _not_launched(self, why: str) -> None:
        self.home.loop.post(partial(self.feed, core.LaunchFailed(why)))

    def launched(self, key: int, pid: int, death: int) -> None:
        if self._link and self._link.key == key:
            self._link.pid, self._link.death = pid, death
            self.feed(core.Launched())

    def launch_failed(self, why: str) -> None:
        if self._unlink(partial(self.launch_failed, why)) is not None:
            self.feed(core.LaunchFailed(why))

    def exited(self, cause: Cause) -> None:
        """Judged behind the frames that it still sent: those are posted first."""
        if (unlinked := self._unlink(partial(self.exited, cause))) is None:
            return
        written, page = unlinked
        self._lost += max(written - page.applied, 0)
        if not cause.path:
            cause = replace(cause, path=page.path, attempt=page.attempt)
        self.home.loop.post(partial(self._dead, cause))

    def _unlink(self, again: Work) -> tuple[int, Status] | None:
        """Let go of the worker's pipes: how many signals it had in full, and what its page says.

        None: a caller still reads; ``again`` comes when it does not.
        """
        link = self._link
        assert link is not None
        if not self._inbox.drained(link, again):
            return None
        self._link = None
        written = self._outbox.detach()
        self.home.loop.unwatch(link.writes, close=True)
        page = link.page.read()
        link.page.close()
        return written, page

    def _dead(self, cause: Cause) -> None:
        self.line.lost(self._child.verdict(cause))
        self.feed(core.Exited(cause))

    def _forget(self) -> None:
        self.gone.set()
        self.home.forget(self)

    def let_go(self) -> None:
        """In a forked child: let the copies of the fds go."""
        if link := self._link:
            self._link = None
            link.forget()

    def _broken(self, link: Link, why: str) -> None:
        if link.key == self._key:  # also of a worker that has died meanwhile
            self.feed(core.Broken(why))

    def _watch_room(self, fd: int) -> None:
        self.home.loop.watch_writable(fd, self._outbox.pump)
