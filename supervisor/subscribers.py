"""Fan-out: what happens between an event and the people who wait for it. Nothing here ever blocks the supervisor."""

import inspect
import logging
import os
import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any, Final, Protocol

from caravela.errors import FlowNotRunning, SupervisorForked

from ..flows.checks import check_listener
from .events import TERMINAL, Event, FlowRestarted, FlowStarted, FlowState, Lagged, StepEntered

log = logging.getLogger("caravela")

CALLABLE_LIMIT: Final = 65_536
"""Events that may wait for the callables of one supervisor."""

NOTIFY_KINDS: Final[tuple[type[Event], ...]] = (FlowState, *TERMINAL[:2])
"""What ``notify=`` gets: states, done, error; nothing at a stop."""

DEFAULT_KINDS: Final[tuple[type[Event], ...]] = (FlowState, *TERMINAL, FlowRestarted)

LASTING: Final[tuple[type[Event], ...]] = (*TERMINAL, FlowRestarted, FlowStarted)
"""Never dropped by a :class:`Subscription`."""


class Sink(Protocol):
    kinds: tuple[type[Event], ...]

    def offer(self, event: Event) -> None:
        """Take it or drop it, at once. Called by one thread at a time per flow, in order."""
        ...


def interest(sinks: "list[Sink]") -> int:
    """What a worker must send for them: 0 ends only, 1 states, 2 also steps entered."""
    if any(issubclass(StepEntered, sink.kinds) for sink in sinks):
        return 2
    return int(any(issubclass(FlowState, sink.kinds) for sink in sinks))


def lagged(before: Lagged | None, event: Event, more: int = 1) -> Lagged:
    """``event`` is missing, with ``more - 1`` others, besides what is already."""
    n = more + (before.n if before else 0)
    return Lagged(n=n, flow_id=event.flow_id, tag=event.tag, incarnation=event.incarnation, seq=event.seq)


# ------------------------------------------------------------------ ours: bounded, coalescing


def _classes(kinds: Any) -> tuple[type[Event], ...]:
    given = tuple(kinds) if isinstance(kinds, Iterable) else (kinds,)
    for kind in given:
        if not (isinstance(kind, type) and issubclass(kind, Event)):
            raise TypeError(f"kinds={kinds!r}: {kind!r} is not a class of events, such as FlowState")
    return given


class Subscription:
    """The events of one flow (or of all flows of a supervisor), in order.

    Holds at most ``maxsize`` events. Beyond that the newest state of a flow takes the place of the last one that
    waits (one for each incarnation is always kept), anything else is dropped, and ``Lagged(n)`` says where and how
    many are missing. Starts, restarts and ends are never dropped. Iterating stops after ``close()`` and, for one flow,
    at its end, whether or not ``kinds`` asks for the terminal event.
    """

    __caravela_unportable__ = "a subscription stays in the process of its supervisor"

    def __init__(
        self,
        kinds: type[Event] | tuple[type[Event], ...],
        maxsize: int,
        closed: Callable[["Subscription"], None],
        *,
        of_one: bool,
    ) -> None:
        kinds = _classes(kinds)
        if type(maxsize) is not int:
            raise TypeError(f"maxsize={maxsize!r} must be an int")
        if maxsize < 1:
            raise ValueError(f"maxsize={maxsize} must be at least 1")
        self.kinds = (*kinds, *TERMINAL)
        self._wanted = kinds
        self._maxsize = maxsize
        self._closed_by = closed
        self._of_one = of_one
        self._events: OrderedDict[int, tuple[Lagged | None, Event]] = OrderedDict()
        """By number of arrival, each with what was dropped before it."""
        self._newest: dict[tuple[str, int], int] = {}
        """The number of the newest state that waits, by flow and incarnation."""
        self._dropped: Lagged | None = None
        """What was dropped behind the last that waits."""
        self._numbers = count()
        self._change = threading.Condition(threading.Lock())
        self._over = False
        self._pid = os.getpid()

    def offer(self, event: Event) -> None:
        with self._change:
            if self._over:
                return
            if isinstance(event, self._wanted):
                self._take_in(event)
            self._over = self._of_one and isinstance(event, TERMINAL)
            self._change.notify_all()

    def _take_in(self, event: Event) -> None:
        if len(self._events) >= self._maxsize and not isinstance(event, LASTING):
            if not isinstance(event, FlowState):
                self._dropped = lagged(self._dropped, event)
                return
            last = self._newest.get((event.flow_id, event.incarnation))
            if last is not None:
                before, state = self._events.pop(last)
                self._dropped = lagged(self._dropped, state, before.n + 1 if before else 1)
        number = next(self._numbers)
        self._events[number] = self._dropped, event
        self._dropped = None
        if isinstance(event, FlowState):
            self._newest[event.flow_id, event.incarnation] = number

    def _next(self) -> Event | None:
        if not self._events:
            dropped, self._dropped = self._dropped, None
            return dropped
        number, (before, event) = self._events.popitem(last=False)
        if before is not None:
            self._events[number] = None, event
            self._events.move_to_end(number, last=False)
            return before
        place = event.flow_id, event.incarnation
        if self._newest.get(place) == number:
            del self._newest[place]
        return event

    def _some(self) -> bool:
        return bool(self._events or self._dropped or self._over)

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise SupervisorForked(self._pid)

    def get(self, timeout: float | None = None) -> Event:
        """The next event. ``queue.Empty`` after ``timeout`` seconds; ``FlowNotRunning`` where none will ever come."""
        self._check_process()
        with self._change:
            if not self._change.wait_for(self._some, timeout):
                raise queue.Empty
            if (event := self._next()) is None:
                raise FlowNotRunning("", "this subscription has ended")
            return event

    def __iter__(self) -> Iterator[Event]:
        while True:
            self._check_process()
            with self._change:
                self._change.wait_for(self._some)
                event = self._next()
            if event is None:
                return
            yield event

    def __aiter__(self) -> Any:
        raise NotImplementedError("asynchronous iteration of subscriptions comes with AsyncSupervisor")

    def close(self) -> None:
        """No more events; what waits can still be read. Idempotent."""
        if self._pid != os.getpid():
            return  # a copy in a forked child: nothing here is ours
        with self._change:
            self._over = True
            self._change.notify_all()
        self._closed_by(self)

    def __enter__(self) -> "Subscription":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ------------------------------------------------------------------ foreign queues and callables


class QueueSink:
    """Somebody else's queue, never waited for: when it is full the event is dropped, and ``Lagged`` says so later."""

    kinds: tuple[type[Event], ...] = NOTIFY_KINDS

    def __init__(self, put: Callable[[Event], object]) -> None:
        self._put = put
        self._dropped: Lagged | None = None

    def offer(self, event: Event) -> None:
        try:
            if self._dropped:
                self._put(self._dropped)
                self._dropped = None
            self._put(event)
        except queue.Full:
            self._dropped = lagged(self._dropped, event)
        except Exception:
            log.exception("notify= of flow %s raised; the event is lost", event.flow_id)


class Delivery:
    """One thread that calls callables, in order. It starts with the first one."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Callable[[Event], object], Event]] = deque()
        self._change = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None
        self._over = False

    def sink(self, function: Callable[[Event], object]) -> "QueueSink":
        return QueueSink(lambda event: self._put(function, event))

    @property
    def here(self) -> bool:
        """In a callable, right now: such a caller must not wait for what only it can bring about."""
        return threading.current_thread() is self._thread

    def _put(self, function: Callable[[Event], object], event: Event) -> None:
        with self._change:
            if len(self._waiting) >= CALLABLE_LIMIT:
                raise queue.Full
            self._waiting.append((function, event))
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="caravela-delivery", daemon=True)
                thread.start()  # may raise: then the next event tries again
                self._thread = thread
            self._change.notify()

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._over)
                if not self._waiting:
                    return
                function, event = self._waiting.popleft()
            try:
                function(event)
            except BaseException:  # also a SystemExit: the others' events come through this thread too
                log.exception("a subscriber of flow %s raised", event.flow_id)

    def close(self) -> None:
        """What waits is still delivered; waits for that unless called by a callable."""
        with self._change:
            self._over = True
            self._change.notify()
        if self._thread is not None and not self.here:
            self._thread.join()


def sink_for(notify: Any, delivery: Delivery) -> Sink:
    """What ``notify=`` accepts: a queue (``put_nowait`` or ``put``) or a callable of one argument."""
    polite = hasattr(notify, "put_nowait")
    put = getattr(notify, "put_nowait" if polite else "put", None)
    if put is not None and not isinstance(notify, type):
        if inspect.iscoroutinefunction(put) or type(notify).__module__.partition(".")[0] == "asyncio":
            raise NotImplementedError("delivery to an asyncio.Queue comes with AsyncSupervisor")
        # A mere ``put`` may block (multiprocess.SimpleQueue: while a pipe is full): in no thread but the callables'.
        return QueueSink(put) if polite else delivery.sink(QueueSink(put).offer)
    if callable(notify):
        check_listener(notify)
        return delivery.sink(notify)
    raise TypeError(f"notify={notify!r} must be a queue (with put_nowait or put) or a callable")


def publish(sinks: list[Sink], event: Event) -> None:
    """Each subscriber gets an event of its own: what one does to its state no other sees."""
    takers = [sink for sink in sinks if isinstance(event, sink.kinds)]
    for place, sink in enumerate(takers):
        sink.offer(event.for_another() if place else event)
