"""``FlowHandle``: how everybody but the supervisor meets a flow. Valid over restarts, and after the end."""

import time
from collections.abc import Callable
from typing import Any

from caravela.errors import Cause, FlowCrashed, FlowFailed, FlowTimeout, SignalFailed, StepRaised

from ..flows.checks import check_signal
from ..protocol import messages, payload
from ..protocol.functions import export
from .calls import Call
from .entries import Asking, Sending
from .events import Encoded, Event, FlowDone, FlowError, FlowStopped, Terminal
from .interrupts import uninterrupted
from .latch import Latch
from .patience import check_may_wait
from .runner import Runner
from .spec import seconds
from .subscribers import DEFAULT_KINDS, Subscription

Function = Callable[..., Any] | str


class Known:
    """A flow in the hand of a caller: what is known of it without asking it, and what all kinds of handles share."""

    __slots__ = ("__weakref__", "_check", "_runner")
    __caravela_unportable__ = "a handle stays in the process of its supervisor"

    def __init__(self, runner: Runner, check: Callable[[], None]) -> None:
        self._runner = runner
        self._check = check

    def __eq__(self, other: object) -> bool:
        """Two handles of one flow are equal."""
        return isinstance(other, Known) and other._runner is self._runner

    def __hash__(self) -> int:
        return hash(self._runner)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.status}, incarnation {self.incarnation}>"

    @property
    def id(self) -> str:
        """Unique in this process: the flow's name and a number."""
        return self._runner.id

    @property
    def name(self) -> str:
        """As given to ``start``, else the flow's."""
        return self._runner.name

    @property
    def pid(self) -> int | None:
        """Of the worker of the day; None between two."""
        return self._runner.pid

    @property
    def incarnation(self) -> int:
        """1, and one more at each restart."""
        return self._runner.incarnation

    @property
    def status(self) -> str:
        """``starting``, ``running``, ``restarting``, ``stopping``, ``done``, ``failed`` or ``stopped``."""
        return self._runner.status

    @property
    def cause(self) -> Cause | None:
        """Why the last incarnation died, if one did."""
        return self._runner.cause

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the declared signals."""
        return self._runner.signals

    @property
    def last_state(self) -> Any:
        """The last state that came, a copy; None where none ever did. Never asks the worker, see ``last_state_age``."""
        last = self._runner.last
        return None if last is None else Encoded(last[0], self._runner.policy.trust).get()

    @property
    def last_state_age(self) -> float | None:
        """Seconds since ``last_state`` came. States come by themselves only while somebody subscribes."""
        last = self._runner.last
        return None if last is None else time.monotonic() - last[1]

    def _begin(self, timeout: float | None, *, bounded: bool = True) -> None:
        self._check()
        if bounded or timeout is not None:
            seconds("timeout", timeout)

    def _sending(self, function: Function, args: tuple[Any, ...], what: str) -> Sending:
        if not (callable(function) or isinstance(function, str)):
            raise TypeError(f"{what} takes a function or the name of a declared signal, not {function!r}")
        if not isinstance(function, str):
            check_signal(what, function)
        return Sending(export(function, what=what), export(args, what=f"arguments of {what}") if args else None)

    def _decode(self, value: bytes) -> Any:
        return payload.decode(value, trust=self._runner.policy.trust)

    def _asked_to_update(self, function: Function, args: tuple[Any, ...], latch: Any = None) -> tuple[Call, Sending]:
        call = Call("update") if latch is None else Call("update", latch=latch)
        entry = self._sending(function, args, "update")
        entry.call = call
        return call, entry

    def _updated(self, call: Call, value: bytes) -> Any:
        if not call.ok:
            error = payload.decode(value, trust="data")
            assert isinstance(error, StepRaised)
            raise SignalFailed(error)
        return self._decode(value)

    def _result_of(self, end: Terminal) -> Any:
        match end:
            case FlowDone(state):
                return state
            case FlowError(Cause() as cause):
                raise FlowCrashed(self.name, cause, "")
            case FlowError(reason):
                raise FlowFailed(self.name, reason)
            case FlowStopped():
                raise self._runner.not_running()


class FlowHandle(Known):
    """One flow. All methods may be called from any thread, also from callables given as ``notify=``.

    Every call on a flow that has ended raises ``FlowNotRunning``, which says how it ended; a call in a forked child of
    the supervisor's process raises ``SupervisorForked``. ``timeout`` is in seconds.

    From a queue's own ``put`` or a log handler, and from a signal handler amid an ``update`` or ``get_state``, what
    waits for the flow raises ``RuntimeError``: it would wait for itself (``stop`` has asked for the stop all the same).
    Not from ``__del__`` or handlers of unusual signals (see README), which may interrupt a thread that holds a lock.
    """

    __slots__ = ()

    # -------------------------------------------------------------- asking

    def signal(self, function: Function, *args: Any, timeout: float = 5.0) -> None:
        """The state becomes ``function(state, *args)``; a str names a declared signal. Does not wait for the worker.

        Raises ``NotPortable`` for what cannot travel. Blocks only while 8 MiB of signals wait, at most ``timeout``,
        then raises ``FlowBusy`` (at once in callables and coroutines). One that raises there is reported as
        ``SignalRejected``. It may run twice (once more on the state that a body returns): keep it pure.
        """
        self._begin(timeout)
        self._runner.line.tell(self._sending(function, args, "signal"), timeout)

    def update(self, function: Function, *args: Any, timeout: float = 5.0) -> Any:
        """A signal that is waited for: returns the new state.

        Raises ``SignalFailed`` with the worker's traceback, ``FlowTimeout`` saying what the worker was doing (the
        signal may still be applied), and ``FlowCrashed`` where the worker died with it: nobody knows whether it was
        applied.
        """
        self._begin(timeout)
        call, entry = self._asked_to_update(function, args)
        return self._updated(call, self._runner.line.ask(call, entry, timeout))

    def get_state(self, timeout: float = 5.0) -> Any:
        """The state now, after every signal that was sent before. Raises ``FlowTimeout``."""
        self._begin(timeout)
        call = Call("get_state")
        return self._decode(self._runner.line.ask(call, Asking(messages.Query(call.id), call), timeout))

    # -------------------------------------------------------------- listening

    def subscribe(
        self, kinds: type[Event] | tuple[type[Event], ...] = DEFAULT_KINDS, maxsize: int = 1024
    ) -> Subscription:
        """Events from now on; on a flow that has ended, its terminal event. See :class:`Subscription`."""
        self._check()
        subscription = Subscription(kinds, maxsize, self._runner.unsubscribe, of_one=True)
        return subscription.begin(self._runner.subscribe)

    # -------------------------------------------------------------- the end

    def wait(self, timeout: float | None = None) -> Terminal:
        """Until the flow has ended: its terminal event. Raises ``FlowTimeout``; a second call returns the same."""
        return self._ended("wait", timeout)

    def result(self, timeout: float | None = None) -> Any:
        """The final state. Raises what ended it: ``FlowFailed``, ``FlowCrashed``, ``FlowNotRunning`` (stopped)."""
        return self._result_of(self._ended("result", timeout))

    def stop(self, timeout: float | None = None) -> Terminal:
        """End the flow: bodies get the supervisor's ``shutdown`` seconds, then SIGTERM, then SIGKILL.

        Returns its terminal event once its process is gone; ``timeout`` bounds only this call (``FlowTimeout``; the
        flow ends all the same).
        """
        self._begin(timeout, bounded=False)
        with uninterrupted():
            self._runner.stop()
        self._await(self._runner.gone, "stop", timeout)
        return self._ended("stop", None)

    def _ended(self, call: str, timeout: float | None) -> Terminal:
        self._begin(timeout, bounded=False)
        self._await(self._runner.ended, call, timeout)
        assert self._runner.end is not None
        return self._runner.end.for_another()

    def _await(self, latch: Latch, call: str, timeout: float | None) -> None:
        if latch.is_set():
            return
        if timeout != 0:
            check_may_wait(call)
        if not latch.wait(timeout):
            raise FlowTimeout(call, self.name, timeout or 0.0, self._runner.doing())


def checked(handle: object) -> FlowHandle:
    if not isinstance(handle, FlowHandle):
        raise TypeError(f"handle={handle!r} must be a FlowHandle, as start(…) returns it")
    return handle
