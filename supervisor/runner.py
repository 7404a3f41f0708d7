"""One flow as its supervisor sees it, over all its incarnations: the shell around the pure :class:`core.Child`.

    callers ──▶ Outbox ══pipe══▶ worker ══pipe══▶ Inbox ──▶ calls, subscribers, and by the loop ──▶ Child ──▶ effects

Frames that change the flow's life are posted to the loop in the order in which they came, and the worker's death behind
them, so that it is judged last.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeAlias, assert_never

from caravela.errors import Cause, FlowBusy, FlowCrashed, FlowNotRunning, FlowTimeout, ProtocolError, StepRaised

from ..protocol import messages, payload
from ..protocol.functions import Held
from ..protocol.status import Status
from . import core, events
from .audience import Audience
from .boot import Boot, environment
from .calls import Call
from .engines.base import Engine, Setting
from .entries import Asking, Sending
from .events import Encoded
from .inbox import Inbox, error_in
from .link import Link
from .loop import Loop
from .outbox import Outbox
from .spec import Policy
from .subscribers import Sink
from .turns import Turns

log = logging.getLogger("caravela")


Life: TypeAlias = messages.Ready | core.LastWord | messages.BootFailed | messages.Crashed


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
        self.up = threading.Event()
        """The first incarnation is ready, or never will be."""
        self.ended = threading.Event()
        self.gone = threading.Event()
        self.refused: Cause | None = None
        self._child = core.Child(policy)
        self._outbox = Outbox(self._watch_room, home.loop.unwatch_writable)
        self._inbox = Inbox(home.loop, self._receive, self._broken)
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
        return self._child.incarnation

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

    # -------------------------------------------------------------- signals and calls

    def tell(self, entry: Sending | Asking, timeout: float) -> None:
        self._put(entry, lambda: self._patience(timeout))

    def ask(self, call: Call, entry: Sending | Asking, timeout: float) -> bytes:
        """Waits for the answer; reads it itself where nothing stands in the way."""
        deadline = time.monotonic() + timeout
        self._inbox.expect(call)
        link = None if self._outbox.waiting else self._inbox.begin_reading()

        def let_go() -> float:
            """Who reads must not wait for room to write: the worker may be waiting for us to read."""
            nonlocal link
            if link is not None:
                self._inbox.end_reading(link)
                link = None
            return self._patience(timeout)

        try:
            self._put(entry, let_go)
            if link is not None:
                self._inbox.read_for(call, link, deadline)
        except BaseException:
            self._inbox.give_up(call)
            raise
        finally:
            if link is not None:
                self._inbox.end_reading(link)
        if not call.wait(deadline - time.monotonic()):
            self._inbox.give_up(call)
            if not call.done:
                raise FlowTimeout(call.kind, self.name, timeout, self.doing())
        if call.error is not None:
            raise call.error
        if call.ended:
            raise self.not_running()
        return call.value

    def _put(self, entry: Sending | Asking, patience: Callable[[], float]) -> None:
        stopping = isinstance(entry, Sending) and self._child.phase is core.Phase.STOPPING
        if stopping or not self._outbox.put(entry, patience, self._busy):
            raise self.not_running()

    def _patience(self, timeout: float) -> float:
        return 0.0 if self.home.impatient() else timeout

    def _busy(self, waiting: int) -> FlowBusy:
        return FlowBusy(self.name, waiting, self.doing())

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
            case messages.Hello(version, _, nonce):
                if version != messages.VERSION or nonce != link.nonce:
                    raise ProtocolError(f"hello of another worker, or version {version} instead of {messages.VERSION}")
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
        log.warning("flow %s rejected a signal: %s", self.id, error, extra={"flow_id": self.id})
        self._audience.publish(events.SignalRejected, error=error, late=late)

    def _log(self, record: Any) -> None:
        extra = {"flow_id": self.id, "incarnation": self.incarnation, "path": record["path"]}
        told = "flow %s: %s", self.id, record["message"]
        logging.getLogger(record["name"]).log(record["level"], *told, extra=extra)

    # -------------------------------------------------------------- subscribers

    def subscribe(self, sink: Sink) -> None:
        self._audience.join(sink)
        self.tune()

    def unsubscribe(self, sink: Sink) -> None:
        self._audience.leave(sink)
        self.tune()

    def tune(self) -> None:
        self._audience.tune(lambda level: self._outbox.overtake(Asking(messages.Interest(level))))

    # -------------------------------------------------------------- the loop: effects

    def stop(self) -> None:
        """From any thread; idempotent."""
        self.home.loop.post(partial(self.feed, core.StopAsked(self.policy.shutdown)))

    def feed(self, event: core.Event) -> None:
        """On the loop's thread."""
        for effect in self._child.advance(event, time.monotonic()):
            self._perform(effect)
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
            case core.Died():
                pass  # told when it is up again
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
        self.up.set()

    def _finish(self, end: core.End) -> None:
        match end:
            case messages.Done(seq, state) | messages.Stopped(seq, state):
                self._audience.seq, self.last = seq, (state, time.monotonic())
                kind = events.FlowDone if isinstance(end, messages.Done) else events.FlowStopped
                event = self._audience.event(kind, carried=Encoded(state, self.policy.trust))
            case messages.Failed(seq, reason):
                self._audience.seq = seq
                event = self._audience.event(events.FlowError, carried=Encoded(reason, self.policy.trust))
            case core.GaveUp(cause):
                self._audience.seq += 1
                event = self._audience.event(events.FlowError, carried=cause)
            case core.Refused(cause):
                self.refused = cause
                event = self._audience.event(events.FlowError, carried=cause)
            case core.Silenced():
                self._audience.seq += 1
                state_known = Encoded(self.last[0], self.policy.trust) if self.last else None
                event = self._audience.event(events.FlowStopped, carried=state_known)
            case _:
                assert_never(end)
        # ``start`` raises a refusal itself where it waits for it.
        self._audience.conclude(event, quiet=self._quiet and isinstance(end, core.Refused))
        self._outbox.close()
        for call in self._inbox.open_calls():
            self._inbox.give_up(call)
            call.end()
        self.up.set()
        self.ended.set()

    # -------------------------------------------------------------- the loop: one incarnation

    def _launch(self) -> None:
        try:
            self._link, ends = Link.make()
        except OSError as error:
            self.home.loop.post(partial(self.feed, core.LaunchFailed(f"no pipes: {error.strerror}")))
            return
        link, held = self._link, Held()
        link.key = self._key = self.home.next_key(self)
        self._inbox.attach(link)
        here = environment()
        self._outbox.attach(link.writes, self._boot.frames(link.nonce, self._audience.level(), held, here), held)
        self.home.engine.launch(link.key, ends, Setting(self._boot.modules, here))

    def launched(self, key: int, pid: int, death: int) -> None:
        if self._link and self._link.key == key:
            self._link.pid, self._link.death = pid, death

    def launch_failed(self, why: str) -> None:
        self._unlink()
        self.feed(core.LaunchFailed(why))

    def exited(self, cause: Cause) -> None:
        """Judged behind the frames that it still sent: those are posted first."""
        written, page = self._unlink()
        self._lost += max(written - page.applied, 0)
        if not cause.path:
            cause = replace(cause, path=page.path, attempt=page.attempt)
        self.home.loop.post(partial(self._dead, cause))

    def _unlink(self) -> tuple[int, Status]:
        """Let go of the worker's pipes: how many signals it had in full, and what its page says."""
        link, self._link = self._link, None
        assert link is not None
        self._inbox.drain(link)
        written = self._outbox.detach()
        self.home.loop.unwatch(link.writes, close=True)
        page = link.page.read()
        link.page.close()
        return written, page

    def _dead(self, cause: Cause) -> None:
        self._settle_calls(cause)
        self.feed(core.Exited(cause))

    def _settle_calls(self, cause: Cause) -> None:
        """What the dead worker had and did not answer: reading can be asked again, writing cannot."""
        for call in self._inbox.open_calls():
            if not call.written:
                continue
            if call.kind == "get_state":
                call.written = False
                self._outbox.put_back(Asking(messages.Query(call.id), call))
            else:
                self._inbox.give_up(call)
                call.fail(FlowCrashed(self.name, self._child.dying or cause))

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
