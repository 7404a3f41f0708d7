"""Fan-out: what happens between an event and the people who wait for it. Nothing here ever blocks the supervisor."""

import inspect
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final, Protocol

from caravela.errors import FlowNotRunning

from .events import TERMINAL, Event, FlowRestarted, FlowStarted, FlowState, Lagged, StepEntered

log = logging.getLogger("caravela")

CALLABLE_LIMIT: Final = 65_536
"""Events that may wait for the callables of one supervisor."""

NOTIFY_KINDS: Final[tuple[type[Event], ...]] = (FlowState, *TERMINAL[:2])
"""What ``notify=`` gets: states, done, error; nothing at a stop."""

DEFAULT_KINDS: Final[tuple[type[Event], ...]] = (FlowState, *TERMINAL, FlowRestarted)


class Sink(Protocol):
    kinds: tuple[type[Event], ...]

    def offer(self, event: Event) -> None:
        """Take it or drop it, at once. Called by one thread at a time per flow, in order."""
        ...


def interest(sinks: "list[Sink]") -> int:
    """What a worker must send for them: 0 ends only, 1 states, 2 also steps entered."""
    if any(StepEntered in sink.kinds for sink in sinks):
        return 2
    return int(any(FlowState in sink.kinds for sink in sinks))


# ------------------------------------------------------------------ ours: bounded, coalescing


class Subscription:
    """The events of one flow (or of all flows of a supervisor), in order.

    Holds at most ``maxsize`` events: beyond that the newest state takes the place of the last one waiting and
    ``Lagged(n)`` before it says how many are missing. Ends and restarts are never dropped. Iterating stops after
    ``close()`` and, for one flow, after its terminal event.
    """

    def __init__(
        self, kinds: tuple[type[Event], ...], maxsize: int, closed: Callable[["Subscription"], None], *, of_one: bool
    ) -> None:
        if type(maxsize) is not int:
            raise TypeError(f"maxsize={maxsize!r} must be an int")
        if maxsize < 1:
            raise ValueError(f"maxsize={maxsize} must be at least 1")
        self.kinds = kinds
        self._maxsize = maxsize
        self._closed_by = closed
        self._of_one = of_one
        self._events: deque[Event] = deque()
        self._change = threading.Condition(threading.Lock())
        self._over = False

    def offer(self, event: Event) -> None:
        with self._change:
            if self._over:
                return
            if len(self._events) < self._maxsize or isinstance(event, (*TERMINAL, FlowRestarted, FlowStarted)):
                self._events.append(event)
            else:
                self._squeeze(event)
            if self._of_one and isinstance(event, TERMINAL):
                self._over = True
            self._change.notify()

    def _squeeze(self, event: Event) -> None:
        """Full: one event goes, and ``Lagged`` before the place where it stood counts it."""
        events = self._events
        latest = isinstance(event, FlowState) and isinstance(events[-1], FlowState)
        if latest:
            events.pop()
        missing = 1
        if events and isinstance(events[-1], Lagged):
            missing += events.pop().n  # type: ignore[attr-defined]  # isinstance does not narrow an item
        events.append(
            Lagged(n=missing, flow_id=event.flow_id, tag=event.tag, incarnation=event.incarnation, seq=event.seq)
        )
        if latest:
            events.append(event)

    def get(self, timeout: float | None = None) -> Event:
        """The next event. ``queue.Empty`` after ``timeout`` seconds; ``FlowNotRunning`` where none will ever come."""
        with self._change:
            if not self._change.wait_for(lambda: self._events or self._over, timeout):
                raise queue.Empty
            if not self._events:
                raise FlowNotRunning("", "this subscription has ended")
            return self._events.popleft()

    def __iter__(self) -> Iterator[Event]:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._events or self._over)
                if not self._events:
                    return
                event = self._events.popleft()
            yield event

    def __aiter__(self) -> Any:
        raise NotImplementedError("asynchronous iteration of subscriptions comes with AsyncSupervisor")

    def close(self) -> None:
        """No more events; what waits can still be read. Idempotent."""
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

    kinds = NOTIFY_KINDS

    def __init__(self, put: Callable[[Event], object]) -> None:
        self._put = put
        self._dropped = 0

    def offer(self, event: Event) -> None:
        try:
            if self._dropped:
                self._put(Lagged(n=self._dropped, flow_id=event.flow_id, tag=event.tag, incarnation=event.incarnation))
                self._dropped = 0
            self._put(event)
        except queue.Full:
            self._dropped += 1
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
                self._thread = threading.Thread(target=self._run, name="caravela-delivery", daemon=True)
                self._thread.start()
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
            except Exception:
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
    put = getattr(notify, "put_nowait", None) or getattr(notify, "put", None)
    if put is not None:
        if inspect.iscoroutinefunction(put) or type(notify).__module__.partition(".")[0] == "asyncio":
            raise NotImplementedError("delivery to an asyncio.Queue comes with AsyncSupervisor")
        return QueueSink(put)
    if callable(notify):
        if inspect.iscoroutinefunction(notify):
            raise TypeError(f"notify={notify!r} is an async function; a plain function or a queue is needed")
        return delivery.sink(notify)
    raise TypeError(f"notify={notify!r} must be a queue (with put_nowait or put) or a callable")


def publish(sinks: list[Sink], event: Event) -> None:
    """Each subscriber gets an event of its own: what one does to its state no other sees."""
    kind = type(event)
    takers = [sink for sink in sinks if kind in sink.kinds]
    for sink in islice(takers, 1, None):
        sink.offer(event.for_another())
    if takers:
        takers[0].offer(event)
