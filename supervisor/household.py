"""What lives under one supervisor: its flows, the loop and the engine that serve them, and who hears of them all."""

import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import Final

from caravela.errors import Cause

from . import core
from .engines.base import Engine, Exited, Launched, LaunchFailed, Report
from .latch import Latch
from .limits import with_enough_fds
from .loop import Loop
from .patience import check_may_wait, this_thread
from .runner import Runner
from .subscribers import Delivery, Sink, Subscription

DELIVERY: Final = 1.0
"""Seconds that callables have for what still waits for them at the end, at least; ``shutdown``, where that is more."""


class Household:
    """Runners know it as their :class:`.runner.Home`. Raises ``OSError`` where no fds are left for its loop."""

    def __init__(self, engine: Engine) -> None:
        self.loop = with_enough_fds(lambda: Loop("caravela-supervisor"))
        self.engine = engine
        self.delivery = Delivery()
        self.sinks: list[Sink] = []
        self._runners: dict[str, Runner] = {}
        self._by_key: dict[int, Runner] = {}
        self._keys = count(1)
        self._lock = threading.Lock()
        self._ender: threading.Thread | None = None
        self._empty = Latch()
        self._engine_closed = False
        self._silent = False
        """Nobody is told anything any more."""
        self._over = Latch()

    def begin(self) -> None:
        """Raises ``RuntimeError`` where the system has no more threads; it must be ended all the same."""
        self.loop.post(self._open_engine)
        self.loop.start()

    def _open_engine(self) -> None:
        this_thread.serving = True
        self.engine.open(_EngineLoop(self.loop, self._report))

    def admit(self, runner: Runner, *, unique: bool) -> None:
        """Starts it. Raises ``RuntimeError`` when everything is ending, ``ValueError`` for a name that is taken."""
        with self._lock:
            if self._ender:
                raise RuntimeError("this supervisor is closed")
            if unique and any(other.name == runner.name for other in self.living()):
                raise ValueError(f"name={runner.name!r} is taken by a flow that runs")
            self._runners[runner.id] = runner
            self.loop.post(partial(runner.feed, core.StartAsked()))  # in the lock: before the stop of a close()

    def expel(self, runner: Runner) -> None:
        """Stops it, if it was admitted at all."""
        if runner.id in self._runners:
            runner.stop()

    def living(self) -> list[Runner]:
        """Oldest first; a flow ends with its terminal event, a moment before its process is gone."""
        return [runner for runner in list(self._runners.values()) if runner.end is None]

    # -------------------------------------------------------------- who hears of all

    def listen(self, subscription: Subscription) -> None:
        """It is closed where nothing will come any more."""
        with self._lock:
            silent = self._silent
            if not silent:
                self.sinks = [*self.sinks, subscription]
        if silent:
            subscription.close()
        else:
            self._tune()

    def unlisten(self, sink: Sink) -> None:
        with self._lock:
            self.sinks = [other for other in self.sinks if other is not sink]
        self._tune()

    def _tune(self) -> None:
        for runner in list(self._runners.values()):
            runner.tune()

    def _hush(self) -> None:
        with self._lock:
            self._silent = True
            sinks = self.sinks
        for sink in sinks:
            if isinstance(sink, Subscription):
                sink.close()

    # -------------------------------------------------------------- the end

    def end(self, shutdown: float) -> None:
        """Everything, the flows with a grace of ``shutdown`` seconds; who is interrupted while he waits kills them.

        To be called uninterrupted. Whoever comes second waits for the first; only threads that the first waits for do
        not.
        """
        patience = max(shutdown, DELIVERY)
        with self._lock:
            first = self._ender is None
            if first:
                check_may_wait("close")
                self._ender = threading.current_thread()
        if first:
            self._end(shutdown, patience)
        elif not (self._in_a_callback or self._ender is threading.current_thread()):
            self._wait_or_kill(self._over)
            self.delivery.close(patience)  # where a callable came first, its thread goes on

    def _end(self, shutdown: float, patience: float) -> None:
        with ExitStack() as afterwards:  # the last one first, whatever happens
            afterwards.callback(self._over.set)
            afterwards.callback(self.delivery.close, patience)
            afterwards.callback(self._hush)  # before callables are waited for: they may wait for this
            afterwards.callback(self._end_serving)
            self._tell_all(core.StopAsked(shutdown))
            self.loop.post(self._look_around)
            if self._serves:
                self._wait_or_kill(self._empty)

    def _end_serving(self) -> None:
        if self._serves:
            self.loop.post(self._close_engine)
            self.loop.thread.join()
        else:
            self.loop.forget()

    @property
    def _serves(self) -> bool:
        """Its thread was started."""
        return self.loop.thread.ident is not None

    def _wait_or_kill(self, latch: Latch) -> None:
        try:
            latch.wait()
        except BaseException:
            self.hurry()
            latch.wait()
            raise

    def hurry(self) -> None:
        self._tell_all(core.KillAsked())

    def _tell_all(self, event: core.Event) -> None:
        for runner in list(self._runners.values()):
            self.loop.post(partial(runner.feed, event))

    def _close_engine(self) -> None:
        """On the loop's thread, which ends when all have been told: also those for whom nobody would wait."""
        try:
            self.engine.close()
        finally:
            self._engine_closed = True
            while self._by_key:
                self._by_key.popitem()[1].exited(Cause("signal", "SIGKILL"))
            self._look_around()

    def forked(self) -> None:
        """In a forked child: the parent's pipes must not live on here, or nobody sees the parent die."""
        self.loop.forget()
        self.engine.forget()
        for runner in self._runners.values():
            runner.let_go()

    # -------------------------------------------------------------- what runners need

    def next_key(self, runner: Runner) -> int:
        key = next(self._keys)
        self._by_key[key] = runner
        return key

    def forget(self, runner: Runner) -> None:
        with self._lock:
            self._runners.pop(runner.id, None)
        self._look_around()

    def _look_around(self) -> None:
        """On the loop's thread."""
        with self._lock:
            empty = self._ender is not None and not self._runners
        if empty:
            self._empty.set()
            if self._engine_closed:
                self.loop.end()

    def impatient(self) -> bool:
        """In a callable, a put or a coroutine a full flow is an error at once: waiting would hold up everybody."""
        if self._in_a_callback:
            return True
        asyncio = sys.modules.get("asyncio")
        return asyncio is not None and asyncio._get_running_loop() is not None

    @property
    def _in_a_callback(self) -> bool:
        return self.delivery.here or this_thread.serving

    def _report(self, report: Report) -> None:
        match report:
            case Launched(key, pid, death):
                self._by_key[key].launched(key, pid, death)
            case LaunchFailed(key, why):
                self._by_key.pop(key).launch_failed(why)
            case Exited(key, cause):
                self._by_key.pop(key).exited(cause)


class _EngineLoop:
    """The loop as an engine sees it."""

    def __init__(self, loop: Loop, report: Callable[[Report], None]) -> None:
        self.watch, self.unwatch, self.later, self.report = loop.watch, loop.unwatch, loop.later, report
