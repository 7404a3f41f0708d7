"""``Supervisor``: starts flows, each in a process of its own, and keeps them."""

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, Literal

from caravela.errors import BootError, FlowNotRunning, SupervisorForked

from ..flows.flow import Flow
from ..flows.outcomes import UNSET
from . import core
from .boot import Boot
from .engines.base import Engine, Exited, Launched, LaunchFailed, Report
from .engines.inline import InlineEngine
from .engines.process import ProcessEngine
from .events import Event
from .handle import FlowHandle
from .limits import with_enough_fds
from .loop import Loop, hands_free
from .runner import Runner
from .spec import Policy, Restart, Trust, modules, one_of
from .subscribers import DEFAULT_KINDS, Delivery, Sink, Subscription, sink_for

_ids = count(1)
_all: "weakref.WeakSet[Supervisor]" = weakref.WeakSet()
_entered: "list[Supervisor]" = []
"""Open ones that were not made by :mod:`.default`, in the order in which they were entered."""


def running() -> "Supervisor | None":
    """The first supervisor that was entered and is still open in this process."""
    return next((supervisor for supervisor in list(_entered) if supervisor.running), None)


class Supervisor:
    """A context manager; everything in it ends with it.

    ``restart``: ``permanent`` (always), ``transient`` (after a crash), ``temporary`` (never). More than
    ``max_restarts`` within ``max_seconds`` end a flow, and no other. ``shutdown``: seconds that a flow has to stop
    before it is killed. ``boot_timeout``: seconds to load a flow. ``engine``: ``"process"``, or ``"inline"`` (threads
    of this process, for tests: no isolation, nothing can be killed). ``trust="data"`` refuses pickles from workers.

    The module of a flow that travels by name is imported once, at the flow's first start, into a process of its own
    from which later workers are forked. ``preload``: modules to import there for all flows, from now on; ``False``:
    every worker imports for itself. What a module does when it is imported, all those workers then share a copy of.

    All methods may be called from any thread. In a forked child they raise ``SupervisorForked``.
    """

    __caravela_unportable__ = "a supervisor stays in its process"

    def __init__(
        self,
        *,
        restart: Restart = "transient",
        max_restarts: int = 3,
        max_seconds: float = 5.0,
        shutdown: float = 5.0,
        engine: Literal["process", "inline"] = "process",
        preload: tuple[str, ...] | list[str] | Literal[False] = (),
        boot_timeout: float = 10.0,
        trust: Trust = "pickle",
    ) -> None:
        one_of("engine", engine, ("process", "inline"))
        self._preload = modules(preload)
        self._policy = Policy(restart, max_restarts, max_seconds, shutdown, boot_timeout, trust)
        self._engine_name = engine
        self._runners: dict[str, Runner] = {}
        self._by_key: dict[int, Runner] = {}
        self._keys = count(1)
        self._lock = threading.Lock()
        self._state: Literal["new", "open", "closed"] = "new"
        self._pid = os.getpid()
        self._empty = threading.Event()
        self._empty.set()
        self.sinks: list[Sink] = []
        self.delivery = Delivery()

    # -------------------------------------------------------------- life

    def __enter__(self) -> "Supervisor":
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self, *, private: bool = False) -> "Supervisor":
        """What ``with`` does first. ``private``: ``caravela.start`` does not use it."""
        self._check_process()
        with self._lock:
            if self._state != "new":
                raise RuntimeError(f"this supervisor is {self._state}; make a new one")
            self._state = "open"
        with hands_free:
            self.loop = with_enough_fds(lambda: Loop("caravela-supervisor"))
            self.engine: Engine = (
                ProcessEngine(preload=self._preload) if self._engine_name == "process" else InlineEngine()
            )
            _all.add(self)
        self.loop.post(lambda: self.engine.open(_EngineLoop(self.loop, self._report)))
        self.loop.start()
        if not private:
            _entered.append(self)
        return self

    def close(self) -> None:
        """Stop all flows, at once and with their grace, then end what served them. Idempotent.

        A second Ctrl-C, or any other exception in here, kills instead of waiting.
        """
        if self._pid != os.getpid():
            return  # a copy in a forked child: nothing here is ours
        with self._lock:
            if self._state != "open":
                self._state = "closed"
                return
            self._state = "closed"
            if self in _entered:
                _entered.remove(self)
        try:
            self._end_all(core.StopAsked(self._policy.shutdown))
            self._empty.wait()
        except BaseException:
            self._end_all(core.KillAsked())
            self._empty.wait()
            raise
        finally:
            self.loop.post(self._close_engine)
            self.loop.thread.join()
            self.delivery.close()
            for sink in self.sinks:
                if isinstance(sink, Subscription):
                    sink.close()

    def _end_all(self, event: core.Event) -> None:
        for runner in list(self._runners.values()):
            self.loop.post(partial(runner.feed, event))

    def _close_engine(self) -> None:
        self.engine.close()
        self.loop.end()

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise SupervisorForked(self._pid)

    def _check_open(self) -> None:
        self._check_process()
        if self._state != "open":
            raise RuntimeError(f"this supervisor is {'not yet open' if self._state == 'new' else 'closed'}")

    @property
    def running(self) -> bool:
        return self._state == "open" and self._pid == os.getpid()

    # -------------------------------------------------------------- flows

    def start(
        self,
        flow: Flow | str,
        *,
        initial_state: Any = UNSET,
        notify: Any = None,
        tag: Any = None,
        name: str | None = None,
        wait: bool = True,
        restart: Restart | None = None,
    ) -> FlowHandle:
        """Start a flow in a worker of its own and return its handle once it is ready.

        ``flow``: a ``Flow``, or ``"package.module:attribute"`` to have it imported in the worker only.
        ``initial_state`` replaces the declared one; a function, method, partial or class is called in the worker at
        every incarnation, anything else is the state. ``notify``: a queue or a callable that gets ``FlowState``,
        ``FlowDone``, ``FlowError`` and ``Lagged``. ``tag`` comes back in every event. ``name`` finds the flow in
        :meth:`get` and must be free. ``restart`` overrides the supervisor's.

        Raises ``NotPortable`` for what cannot travel and ``BootError`` where the worker cannot load the flow or make
        its first state. With ``wait=False`` it returns at once, and a failed boot is a ``FlowError``.
        """
        self._check_open()
        flow_name = _name_of(flow)
        if name is not None and (not isinstance(name, str) or not name):
            raise TypeError(f"name={name!r} must be a non-empty str")
        policy = self._policy if restart is None else replace(self._policy, restart=restart)
        sinks = [] if notify is None else [sink_for(notify, self.delivery)]
        boot = Boot.of(flow, initial_state)
        runner = Runner(
            self,
            f"{flow_name}-{next(_ids)}",
            name or flow_name,
            tag,
            policy,
            boot,
            sinks,
            quiet=wait,
        )
        if isinstance(flow, Flow):
            runner.signals = tuple(flow.signals)
        with self._lock:
            if self._state != "open":
                raise RuntimeError("this supervisor is closed")
            if name is not None and any(other.name == name for other in self._living()):
                raise ValueError(f"name={name!r} is taken by a flow that runs")
            self._runners[runner.id] = runner
            self._empty.clear()
            self.loop.post(partial(runner.feed, core.StartAsked()))  # in the lock: before the stop of a close()
        if wait:
            self._await_boot(runner)
        return FlowHandle(runner, self._check_process)

    def _await_boot(self, runner: Runner) -> None:
        try:
            runner.up.wait()
        except BaseException:  # Ctrl-C: nobody will hold a handle to stop it by
            runner.stop()
            raise
        if runner.refused is not None:
            runner.gone.wait()
            raise BootError(runner.name, str(runner.refused), runner.refused.error)

    def get(self, name_or_id: str) -> FlowHandle:
        """A flow that has not ended, by its id or by the ``name`` given to ``start``. Raises ``FlowNotRunning``."""
        self._check_process()
        living = self._living()
        runner = next((r for r in living if r.id == name_or_id), None)
        runner = runner or next((r for r in living if r.name == name_or_id), None)
        if runner is None:
            raise FlowNotRunning(name_or_id, "no such flow here")
        return FlowHandle(runner, self._check_process)

    def children(self) -> list[FlowHandle]:
        """The flows that have not ended, oldest first."""
        self._check_process()
        return [FlowHandle(runner, self._check_process) for runner in self._living()]

    def count_children(self) -> int:
        self._check_process()
        return len(self._living())

    def _living(self) -> list[Runner]:
        """Oldest first; a flow ends with its terminal event, a moment before its process is gone."""
        return [runner for runner in list(self._runners.values()) if runner.end is None]

    def stop(self, handle: FlowHandle, timeout: float | None = None) -> Any:
        """``handle.stop(timeout)``."""
        return handle.stop(timeout)

    def subscribe(self, kinds: tuple[type[Event], ...] = DEFAULT_KINDS, maxsize: int = 1024) -> Subscription:
        """The events of all flows, from now on until the supervisor is closed."""
        self._check_open()
        subscription = Subscription(tuple(kinds), maxsize, self._unsubscribe, of_one=False)
        self._set_sinks([*self.sinks, subscription])
        return subscription

    def _unsubscribe(self, sink: Sink) -> None:
        self._set_sinks([other for other in self.sinks if other is not sink])

    def _set_sinks(self, sinks: list[Sink]) -> None:
        self.sinks = sinks
        for runner in list(self._runners.values()):
            runner.tune()

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

    # -------------------------------------------------------------- forks

    def forked(self) -> None:
        """In a forked child: the parent's pipes must not live on here, or nobody sees the parent die."""
        self._state = "closed"
        self.loop.forget()
        self.engine.forget()
        for runner in self._runners.values():
            runner.forget()


class _EngineLoop:
    """The loop as an engine sees it."""

    def __init__(self, loop: Loop, report: Callable[[Report], None]) -> None:
        self.watch, self.unwatch, self.later = loop.watch, loop.unwatch, loop.later
        self._report = report

    def report(self, report: Report) -> None:
        self._report(report)


def _name_of(flow: object) -> str:
    match flow:
        case Flow():
            return flow.name
        case str() if all(flow.partition(":")):
            return flow.rpartition(":")[2]
        case _:
            raise TypeError(f"flow={flow!r} must be a Flow or 'package.module:attribute'")


def _after_fork_in_child() -> None:
    hands_free.release()
    for supervisor in list(_all):
        supervisor.forked()


@atexit.register
def _at_exit() -> None:
    for supervisor in list(_all):
        supervisor.close()


os.register_at_fork(before=hands_free.acquire, after_in_parent=hands_free.release, after_in_child=_after_fork_in_child)
