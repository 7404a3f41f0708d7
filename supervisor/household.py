"""What lives under one supervisor: its flows, the loop and the engine that serve them, and who hears of them all."""

import sys
import threading
from collections.abc import Callable
from functools import partial
from itertools import count

from . import core
from .engines.base import Engine, Exited, Launched, LaunchFailed, Report
from .limits import with_enough_fds
from .loop import Loop
from .runner import Runner
from .subscribers import Delivery, Sink, Subscription


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
        self._closing = False
        self._empty = threading.Event()
        self._empty.set()

    def begin(self) -> None:
        self.loop.post(lambda: self.engine.open(_EngineLoop(self.loop, self._report)))
        self.loop.start()

    def admit(self, runner: Runner, *, unique: bool) -> None:
        """Starts it. Raises ``RuntimeError`` when everything is ending, ``ValueError`` for a name that is taken."""
        with self._lock:
            if self._closing:
                raise RuntimeError("this supervisor is closed")
            if unique and any(other.name == runner.name for other in self.living()):
                raise ValueError(f"name={runner.name!r} is taken by a flow that runs")
            self._runners[runner.id] = runner
            self._empty.clear()
            self.loop.post(partial(runner.feed, core.StartAsked()))  # in the lock: before the stop of a close()

    def living(self) -> list[Runner]:
        """Oldest first; a flow ends with its terminal event, a moment before its process is gone."""
        return [runner for runner in list(self._runners.values()) if runner.end is None]

    def listen(self, sink: Sink) -> None:
        self._set_sinks([*self.sinks, sink])

    def unlisten(self, sink: Sink) -> None:
        self._set_sinks([other for other in self.sinks if other is not sink])

    def _set_sinks(self, sinks: list[Sink]) -> None:
        self.sinks = sinks
        for runner in list(self._runners.values()):
            runner.tune()

    def end(self, shutdown: float) -> None:
        """Everything, the flows with a grace of ``shutdown`` seconds; at any exception they are killed at once."""
        with self._lock:
            self._closing = True
        try:
            self._tell_all(core.StopAsked(shutdown))
            self._empty.wait()
        except BaseException:
            self._tell_all(core.KillAsked())
            self._empty.wait()
            raise
        finally:
            self.loop.post(self._close_engine)
            self.loop.thread.join()
            self.delivery.close()
            for sink in self.sinks:
                if isinstance(sink, Subscription):
                    sink.close()

    def _tell_all(self, event: core.Event) -> None:
        for runner in list(self._runners.values()):
            self.loop.post(partial(runner.feed, event))

    def _close_engine(self) -> None:
        self.engine.close()
        self.loop.end()

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
            if not self._runners:
                self._empty.set()

    def impatient(self) -> bool:
        """In a callback or a coroutine a full flow is an error at once: waiting there would hold up everybody."""
        if self.delivery.here or threading.current_thread() is self.loop.thread:
            return True
        asyncio = sys.modules.get("asyncio")
        return asyncio is not None and asyncio._get_running_loop() is not None

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
