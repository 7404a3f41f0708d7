"""``Supervisor``: starts flows, each in a process of its own, and keeps them."""

import atexit
import os
import threading
import weakref
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from types import TracebackType
from typing import Any, Literal

from caravela.errors import BootError, Cause, FlowNotRunning, SupervisorForked

from ..flows.flow import Flow
from ..flows.outcomes import UNSET
from .boot import Boot
from .engines.inline import InlineEngine
from .engines.process import ProcessEngine
from .events import Event, FlowError, Terminal
from .handle import FlowHandle, checked
from .household import Household
from .interrupts import uninterrupted
from .loop import hands_free
from .patience import check_may_wait, this_thread
from .runner import Runner
from .spec import Policy, Restart, Trust, check_engine, modules
from .subscribers import DEFAULT_KINDS, Subscription, sink_for

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

    The module of a flow that travels by name is imported in the first worker and, when that one is ready, once more in
    a process of its own from which later workers are forked. ``preload``: modules to import there for all flows, from
    now on; ``False``: every worker imports for itself. What a module does when it is imported, all those workers then
    share a copy of.

    All methods may be called from any thread, also from callables given as ``notify=``. From a queue's own ``put`` or a
    log handler, what waits (``close``, ``start`` with ``wait=True``) raises ``RuntimeError``; so it does in a signal
    handler amid an ``update`` or ``get_state``. Not from ``__del__`` or handlers of unusual signals (see README), which
    may interrupt a thread that holds a lock. In a forked child they raise ``SupervisorForked``.
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
        check_engine(engine)
        self._engine = engine
        self._preload = modules(preload)
        self._policy = Policy(restart, max_restarts, max_seconds, shutdown, boot_timeout, trust)
        self._household: Household | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._pid = os.getpid()

    # -------------------------------------------------------------- life

    def __enter__(self) -> "Supervisor":
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self, *, private: bool = False) -> "Supervisor":
        """What ``with`` does first. ``private``: :func:`running`, and so ``caravela.start``, does not find it.

        Raises ``OSError`` without descriptors for it and ``RuntimeError`` without a thread; then it is as new.
        """
        self.check_process()
        opened = False
        try:
            with uninterrupted():
                self._open(private)
                opened = True
        except BaseException:
            if opened:  # a Ctrl-C: nobody will close it
                self.close()
            raise
        return self

    def _open(self, private: bool) -> None:
        household = None
        try:
            with hands_free, self._lock:  # in the order in which a loop takes them: what it calls may open another one
                if self._household or self._closed:
                    raise RuntimeError(f"this supervisor is {'closed' if self._closed else 'open'}; make a new one")
                process = self._engine == "process"
                household = Household(ProcessEngine(preload=self._preload) if process else InlineEngine())
                household.begin()
                self._household = household
                _all.add(self)
                if not private:
                    _entered.append(self)
        except BaseException:
            if household:  # there is no thread
                self._household = None
                household.end(0.0)
            raise

    def close(self) -> None:
        """Stop all flows, at once and with their grace, then end what served them. Idempotent: all callers wait for it.

        A Ctrl-C in here kills instead of waiting. Callables (``notify=``) have ``shutdown`` seconds, at least 1, for
        what still waits for them. Called by one of them while another thread closes, it returns at once.
        """
        if self._pid != os.getpid():
            return  # a copy in a forked child: nothing here is ours
        if not self._closed:
            check_may_wait("close")
        with uninterrupted():
            with self._lock:
                household, self._closed = self._household, True
                if self in _entered:
                    _entered.remove(self)
            if household:
                household.end(self._policy.shutdown)

    def check_process(self) -> None:
        if self._pid != os.getpid():
            raise SupervisorForked(self._pid)

    def _here(self) -> Household:
        self.check_process()
        if self._closed:
            raise RuntimeError("this supervisor is closed; make a new one")
        if self._household is None:
            raise RuntimeError("this supervisor is not yet open; use it as a context manager: with Supervisor() as …")
        return self._household

    @property
    def running(self) -> bool:
        """Open, and in the process that opened it."""
        return self._household is not None and not self._closed and self._pid == os.getpid()

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

        Raises ``NotPortable`` for what cannot travel, ``BootError`` where the worker cannot load the flow or make its
        first state, and ``FlowNotRunning`` where it was stopped meanwhile. With ``wait=False`` it returns at once, and
        a failed boot is a ``FlowError``.
        """
        household = self._here()
        if wait:
            check_may_wait("start(…, wait=True)")
        runner = self.prepare(flow, initial_state, notify, tag, name, restart, quiet=wait)
        try:
            with uninterrupted():
                household.admit(runner, unique=name is not None)
                if wait:
                    runner.up.wait()
                    if not runner.was_up:
                        runner.gone.wait()
                        raise why_refused(runner)
            return FlowHandle(runner, self.check_process)
        except BaseException:  # a Ctrl-C: nobody will hold a handle to stop it by
            with uninterrupted():
                household.expel(runner)
            raise

    def prepare(
        self,
        flow: Flow | str,
        initial_state: Any,
        notify: Any,
        tag: Any,
        name: str | None,
        restart: Restart | None,
        *,
        quiet: bool,
    ) -> Runner:
        """What :meth:`start` starts. ``quiet``: who starts it raises what keeps it from being ready."""
        household = self._here()
        short = _short_name(flow)
        if name is not None and (not isinstance(name, str) or not name):
            raise TypeError(f"name={name!r} must be a non-empty str")
        policy = self._policy if restart is None else replace(self._policy, restart=restart)
        sinks = [] if notify is None else [sink_for(notify, household.delivery)]
        boot = Boot.of(flow, initial_state)
        return Runner(household, f"{short}-{next(_ids)}", name, tag, policy, boot, sinks, quiet=quiet)

    def admit(self, runner: Runner, *, unique: bool) -> None:
        """Starts what was prepared. Raises ``ValueError`` for a name that is taken."""
        with uninterrupted():
            self._here().admit(runner, unique=unique)

    def hurry(self) -> None:
        """While it is being closed: kills instead of waiting."""
        if self._household:
            self._household.hurry()

    def get(self, name_or_id: str) -> FlowHandle:
        """A flow that has not ended, by its id or by the ``name`` given to ``start``. Raises ``FlowNotRunning``."""
        if not isinstance(name_or_id, str):
            raise TypeError(f"name_or_id={name_or_id!r} must be a str")
        living = self._living()
        runner = next((r for r in living if r.id == name_or_id), None)
        runner = runner or next((r for r in living if r.name == name_or_id), None)
        if runner is None:
            raise FlowNotRunning(name_or_id, "no such flow here")
        return FlowHandle(runner, self.check_process)

    def children(self) -> list[FlowHandle]:
        """The flows that have not ended, oldest first."""
        return [FlowHandle(runner, self.check_process) for runner in self._living()]

    def count_children(self) -> int:
        """How many flows have not ended."""
        return len(self._living())

    def _living(self) -> list[Runner]:
        self.check_process()
        return self._household.living() if self._household else []

    def stop(self, handle: FlowHandle, timeout: float | None = None) -> Terminal:
        """``handle.stop(timeout)``."""
        return checked(handle).stop(timeout)

    def subscribe(
        self, kinds: type[Event] | tuple[type[Event], ...] = DEFAULT_KINDS, maxsize: int = 1024
    ) -> Subscription:
        """The events of all flows, from now on until the supervisor is closed."""
        household = self._here()
        subscription = Subscription(kinds, maxsize, household.unlisten, of_one=False)
        return subscription.begin(household.listen)

    def _forked(self) -> None:
        """In a forked child."""
        self._closed = True
        if self._household:
            self._household.forked()


def why_refused(runner: Runner) -> BootError | FlowNotRunning:
    """Of a flow that is gone and was never ready."""
    match runner.end:
        case FlowError(Cause() as cause):
            return BootError(runner.name, str(cause), cause.error)
        case _:
            return FlowNotRunning(runner.name, "it was stopped before it was ready")


def _short_name(flow: object) -> str:
    match flow:
        case Flow():
            return flow.name
        case str() if all(flow.partition(":")):
            return flow.rpartition(":")[2]
        case _:
            raise TypeError(f"flow={flow!r} must be a Flow or 'package.module:attribute'")


def _before_fork() -> None:
    with uninterrupted():  # what is raised in here Python ignores, and forks
        hands_free.acquire()


def _after_fork_in_child() -> None:
    hands_free.release()
    this_thread.serving = False
    for supervisor in list(_all):
        supervisor._forked()


@atexit.register
def _at_exit() -> None:
    with ExitStack() as each:  # also when one raises: a Ctrl-C
        for supervisor in list(_all):
            each.callback(supervisor.close)


os.register_at_fork(before=_before_fork, after_in_parent=hands_free.release, after_in_child=_after_fork_in_child)
