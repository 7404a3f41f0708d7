"""Fan-out: what happens between an event and the people who wait for it. Nothing here ever blocks the supervisor."""

import inspect
import os
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from itertools import count
from logging import ERROR, WARNING
from types import MethodType
from typing import Any, Final, Protocol

from caravela.errors import FlowNotRunning, SupervisorForked

from ..flows.checks import check_listener
from .events import TERMINAL, Event, FlowRestarted, FlowStarted, FlowState, Lagged, StepEntered, lagged
from .interrupts import foreign, uninterrupted, was_interrupted
from .latch import Changes, Latch, Waiter
from .logs import say
from .patience import check_may_wait
from .spec import seconds

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


# ------------------------------------------------------------------ ours: bounded, coalescing


def _classes(kinds: Any) -> tuple[type[Event], ...]:
    given = tuple(kinds) if isinstance(kinds, Iterable) else (kinds,)
    for kind in given:
        if not (isinstance(kind, type) and issubclass(kind, Event)):
            raise TypeError(f"kinds={kinds!r}: {kind!r} is not a class of events, such as FlowState")
    return given


def expected(event: Event | None) -> Event:
    if event is None:
        raise FlowNotRunning("", "this subscription has ended")
    return event


class Subscription:
    """The events of one flow (or of all flows of a supervisor), in order.

    Holds at most ``maxsize`` events. Beyond that the newest state of a flow takes the place of the last one that
    waits (one for each incarnation is always kept), anything else is dropped, and ``Lagged(n)`` says where and how
    many are missing. Starts, restarts and ends are never dropped. Iterating stops after ``close()`` and, for one flow,
    at its end, whether or not ``kinds`` asks for the terminal event.

    Until then it takes events although nobody reads them, and so its flow sends every state: close what you leave, or
    use it as a context manager.
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
        self._lock = threading.Lock()
        self._changes = Changes(self._lock)
        self._over = False
        self._pid = os.getpid()

    def begin(self, join: Callable[["Subscription"], None]) -> "Subscription":
        try:
            with uninterrupted():
                join(self)
        except BaseException:  # a Ctrl-C: nobody will close it
            self.close()
            raise
        return self

    def offer(self, event: Event) -> None:
        with self._lock:
            if self._over:
                return
            if isinstance(event, self._wanted):
                self._take_in(event)
            self._over = self._of_one and isinstance(event, TERMINAL)
            self._changes.tell()

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

    def _put_back(self, event: Event) -> None:
        """As if it had never been taken. The first that waits follows it, so nothing was dropped between the two."""
        first = next(iter(self._events), None)
        if isinstance(event, Lagged):
            if first is None:
                self._dropped = event if self._dropped is None else lagged(event, self._dropped, self._dropped.n)
            else:
                self._events[first] = event, self._events[first][1]
            return
        number = next(self._numbers) if first is None else first - 1
        self._events[number] = None, event
        self._events.move_to_end(number, last=False)
        if isinstance(event, FlowState):
            self._newest.setdefault((event.flow_id, event.incarnation), number)

    def _take(self, timeout: float | None) -> Event | None:
        """The next one; None where none will ever come."""
        if self._pid != os.getpid():
            raise SupervisorForked(self._pid)
        event = None
        try:
            with uninterrupted(), self._lock:
                self._wait(timeout)
                event = self._next()
        except BaseException:  # a Ctrl-C at the end
            if event is not None:
                with uninterrupted(), self._lock:
                    self._put_back(event)
            raise
        return event

    def _wait(self, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (self._events or self._dropped or self._over):
            if timeout != 0:
                check_may_wait("waiting for an event")
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise queue.Empty
            self._changes.wait(left)

    def get(self, timeout: float | None = None) -> Event:
        """The next event. ``queue.Empty`` after ``timeout`` seconds; ``FlowNotRunning`` where none will ever come."""
        if timeout is not None:
            seconds("timeout", timeout)
        return expected(self._take(timeout))

    def __iter__(self) -> Iterator[Event]:
        while (event := self._take(None)) is not None:
            yield event

    def __aiter__(self) -> AsyncIterator[Event]:
        from .awaiting import every_event

        return every_event(self)

    def poll(self, waiter: Waiter) -> bool:
        """Whether :meth:`take` would wait for nothing; else ``waiter`` is released at the next change."""
        if self._pid != os.getpid():
            raise SupervisorForked(self._pid)
        with uninterrupted(), self._lock:
            some = bool(self._events or self._dropped or self._over)
            if not some:
                self._changes.attach(waiter)
            return some

    def forget(self, waiter: Waiter) -> None:
        with uninterrupted(), self._lock:
            self._changes.detach(waiter)

    def take(self) -> Event | None:
        """The next one, now; None where none will ever come. ``queue.Empty`` where another reader was quicker."""
        return self._take(0.0)

    def close(self) -> None:
        """No more events; what waits can still be read. Idempotent."""
        if self._pid != os.getpid():
            return  # a copy in a forked child: nothing here is ours
        with uninterrupted():
            with self._lock:
                self._over = True
                self._changes.tell()
            self._closed_by(self)

    def __enter__(self) -> "Subscription":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ------------------------------------------------------------------ foreign queues and callables


class QueueSink:
    """Somebody else's queue, never waited for: what it does not take is dropped, and ``Lagged`` says so later."""

    kinds: tuple[type[Event], ...] = NOTIFY_KINDS

    def __init__(self, put: Callable[[Event], object]) -> None:
        self._put = put
        self._dropped: Lagged | None = None
        self._raises = False
        """Since it last took an event."""

    def offer(self, event: Event) -> None:
        try:
            if self._dropped:
                foreign(self._put, self._dropped)
                self._dropped = None
            foreign(self._put, event)
            self._raises = False
        except queue.Full:
            self._dropped = lagged(self._dropped, event)
        except BaseException as error:  # whatever it is, be it a SystemExit: the flow must go on, and must end
            self._dropped = lagged(self._dropped, event)
            if was_interrupted(error):
                return  # no fault of the queue's
            if not self._raises:
                say(ERROR, "notify= of flow %s raised; what it does not take is lost", event.flow_id, exc_info=True)
            self._raises = True


class Delivery:
    """One thread that calls callables, in order. It starts with the first one."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Callable[[Event], object], Event]] = deque()
        self._lock = threading.Lock()
        self._change = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._done = Latch()
        self._over = False
        self._given_up = False

    def sink(self, function: Callable[[Event], object]) -> "QueueSink":
        return QueueSink(lambda event: self._put(function, event))

    @property
    def here(self) -> bool:
        """In a callable, right now: such a caller must not wait for what only it can bring about."""
        return threading.current_thread() is self._thread

    def _put(self, function: Callable[[Event], object], event: Event) -> None:
        with self._lock:
            if len(self._waiting) >= CALLABLE_LIMIT:
                raise queue.Full
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="caravela-delivery", daemon=True)
                thread.start()  # may raise: then the next event tries again
                self._thread = thread
            self._waiting.append((function, event))
            self._change.notify()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._change.wait_for(lambda: self._waiting or self._over)
                if not self._waiting:
                    self._done.set()
                    return
                function, event = self._waiting.popleft()
            try:
                function(event)
            except BaseException:  # also a SystemExit: the others' events come through this thread too
                say(ERROR, "a subscriber of flow %s raised", event.flow_id, exc_info=True)

    def close(self, patience: float) -> None:
        """What waits is still delivered, for at most ``patience`` seconds; a callable that closes waits for nothing."""
        with self._lock:
            self._over = True
            self._change.notify()
        if self._thread is None or self.here or self._given_up:
            return
        if self._done.wait(patience):
            self._thread.join()
            return
        with self._lock:
            told, self._given_up = self._given_up, True
            left = len(self._waiting)
            self._waiting.clear()
        if told:  # by another who closed
            return
        words = "callables were not done %g s after the close; events that they do not get: %d"
        say(WARNING, words, patience, left)


PUTS: Final = ("put_nowait", "put")


def sink_for(notify: Any, delivery: Delivery) -> Sink:
    """What ``notify=`` accepts: a queue (``put_nowait`` or ``put``) or a callable of one argument."""
    puts = {name: put for name in PUTS if callable(put := getattr(notify, name, None))}
    if puts and isinstance(notify, type):
        raise TypeError(f"notify={notify!r} is a class: give an instance of it")
    if isinstance(notify, MethodType) and notify.__name__ in PUTS and _lives_on_a_loop(notify.__self__):
        raise TypeError(f"notify={notify!r}: give the queue itself; only the thread of its loop may put into it")
    if _lives_on_a_loop(notify):
        return _on_its_loop(notify)
    if put := puts.get("put_nowait"):
        return QueueSink(put)
    if put := puts.get("put"):
        # It may block (multiprocess.SimpleQueue: while a pipe is full): in no thread but the callables'.
        return delivery.sink(QueueSink(put).offer)
    if callable(notify):
        check_listener(notify)
        return delivery.sink(notify)
    raise TypeError(f"notify={notify!r} must be a queue (with put_nowait or put) or a callable")


def _on_its_loop(notify: Any) -> Sink:
    import asyncio

    from .awaiting import LoopSink

    if not isinstance(notify, asyncio.Queue):
        raise TypeError(f"notify={notify!r}: of what lives on an event loop only an asyncio.Queue can be told")
    if asyncio._get_running_loop() is None:
        raise TypeError("notify=: an asyncio.Queue is told on the loop that runs at start, and none runs here")
    return LoopSink(QueueSink(notify.put_nowait))


def _lives_on_a_loop(queue: Any) -> bool:
    """No other thread may put into it."""
    if any(kind.__module__ == "asyncio.queues" for kind in type(queue).__mro__):
        return True
    return any(inspect.iscoroutinefunction(getattr(queue, name, None)) for name in PUTS)


def publish(sinks: list[Sink], event: Event) -> None:
    """Each subscriber gets an event of its own: what one does to its state no other sees."""
    takers = [sink for sink in sinks if isinstance(event, sink.kinds)]
    for place, sink in enumerate(takers):
        sink.offer(event.for_another() if place else event)
