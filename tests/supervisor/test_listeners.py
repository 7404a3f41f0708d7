"""Listeners that misbehave: puts that raise, callables that do not return, queues that cannot be put into from here."""

import asyncio
import inspect
import math
import queue
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from caravela.supervisor import awaiting, patience, subscribers
from caravela.supervisor.events import Event, FlowDone, FlowState, Lagged
from caravela.supervisor.interrupts import uninterrupted
from caravela.supervisor.subscribers import Delivery, QueueSink, Subscription, publish, sink_for

SOON = 8.0


def state(seq: int) -> FlowState:
    return FlowState({"n": seq}, flow_id="f", seq=seq)


@pytest.fixture
def delivery() -> Iterator[Delivery]:
    delivery = Delivery()
    yield delivery
    delivery.close(SOON)


# ------------------------------------------------------------------ puts that raise


class Moody:
    """Raises what it is told to, as long as it is told to."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.taken: list[Event] = []

    def put_nowait(self, event: Event) -> None:
        if self.error is not None:
            raise self.error
        self.taken.append(event)


RAISED = [ValueError("no"), SystemExit(3), pytest.fail.Exception("no"), GeneratorExit()]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_what_a_raising_put_did_not_take_is_told(
    error: BaseException, delivery: Delivery, caplog: pytest.LogCaptureFixture
) -> None:
    moody = Moody()
    sink = sink_for(moody, delivery)
    sink.offer(state(1))
    moody.error = error
    for seq in (2, 3, 4):
        sink.offer(state(seq))
    moody.error = None
    sink.offer(state(5))
    assert [event.n if isinstance(event, Lagged) else event.seq for event in moody.taken] == [1, 3, 5]
    assert moody.taken[1] == Lagged(n=3, flow_id="f", seq=4)
    assert len(caplog.records) == 1, "only the first of a series is logged"
    moody.error = error
    sink.offer(state(6))
    assert len(caplog.records) == 2, "this is another series"


def test_a_raising_put_does_not_keep_others_from_the_end(delivery: Delivery) -> None:
    moody, inbox = Moody(), queue.SimpleQueue[Event]()
    moody.error = SystemExit(3)
    publish([sink_for(moody, delivery), sink_for(inbox, delivery)], FlowDone({}))
    assert isinstance(inbox.get_nowait(), FlowDone)


def test_a_ctrl_c_while_the_main_thread_puts_is_not_the_queues(
    delivery: Delivery, caplog: pytest.LogCaptureFixture
) -> None:
    class Struck(Moody):
        def put_nowait(self, event: Event) -> None:
            if self.error and threading.current_thread() is threading.main_thread():
                signal.raise_signal(signal.SIGINT)
            super().put_nowait(event)

    def offer_during_a_ctrl_c() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            sink.offer(state(1))
            offered.append(True)

    offered: list[bool] = []
    moody = Struck()
    moody.error = KeyboardInterrupt()
    sink = sink_for(moody, delivery)
    with pytest.raises(KeyboardInterrupt):
        offer_during_a_ctrl_c()
    assert offered and not caplog.records
    other = threading.Thread(target=sink.offer, args=(state(2),))
    other.start()
    other.join()
    assert len(caplog.records) == 1
    moody.error = None
    sink.offer(state(3))
    assert moody.taken == [Lagged(n=2, flow_id="f", seq=2), state(3)]


# ------------------------------------------------------------------ callables that do not return


class Stuck:
    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.begun.set()
        self.go.wait()
        self.events.append(event)


@pytest.mark.parametrize("kind", ["callable", "put"])
def test_close_does_not_wait_for_ever(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    delivery, stuck = Delivery(), Stuck()

    class PutOnly:
        put = staticmethod(stuck)

    sink = sink_for(stuck if kind == "callable" else PutOnly(), delivery)
    for seq in range(4):
        sink.offer(state(seq))
    assert stuck.begun.wait(SOON)
    delivery.close(0.01)
    why = "callables were not done 0.01 s after the close; events that they do not get: 3"
    assert [record.message for record in caplog.records] == [why]
    thread = delivery._thread
    assert thread is not None and thread.daemon
    delivery.close(SOON)  # not once more
    assert len(caplog.records) == 1
    stuck.go.set()
    thread.join(SOON)
    assert not thread.is_alive() and stuck.events == [state(0)]


# ------------------------------------------------------------------ what notify= accepts


class Mine(asyncio.Queue[Any]):
    """Somebody's own, made elsewhere."""


class Bus:
    """As the queues of other event loops are."""

    async def put(self, event: Event) -> None: ...

    def put_nowait(self, event: Event) -> None: ...

    def on_event(self, event: Event) -> None: ...


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (asyncio.Queue, "is told on the loop that runs at start, and none runs here"),
        (Mine, "is told on the loop that runs at start, and none runs here"),
        (Bus, "of what lives on an event loop only an asyncio.Queue can be told"),
        (lambda: asyncio.Queue().put, "give the queue itself"),  # type: ignore[var-annotated]  # of whatever
        (lambda: asyncio.Queue().put_nowait, "give the queue itself"),  # type: ignore[var-annotated]  # of whatever
        (lambda: Mine().put_nowait, "give the queue itself"),
        (lambda: Bus().put_nowait, "give the queue itself"),
    ],
    ids=["queue", "subclass", "put beside put_nowait", "put", "put_nowait", "its put_nowait", "bus.put_nowait"],
)
def test_what_belongs_to_an_event_loop(make: Any, words: str, delivery: Delivery) -> None:
    with pytest.raises(TypeError, match=words):
        sink_for(make(), delivery)


@pytest.mark.parametrize("kind", [asyncio.Queue, Mine])
def test_a_queue_is_told_on_its_loop(kind: Any, delivery: Delivery) -> None:
    """What the queue does not take is dropped and counted, and so is what its loop has no time for."""

    async def main() -> list[Event]:
        inbox = kind(3)
        sink = sink_for(inbox, delivery)
        other = threading.Thread(target=lambda: [sink.offer(state(seq)) for seq in range(5)])
        other.start()
        other.join()
        assert inbox.empty(), "the loop has not turned yet"
        found = [await inbox.get() for _ in range(3)]
        sink.offer(state(5))
        return [*found, await inbox.get(), await inbox.get()]

    assert asyncio.run(main()) == [state(0), state(1), state(2), Lagged(n=2, flow_id="f", seq=4), state(5)]


def test_what_waits_for_a_loop_is_bounded(delivery: Delivery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awaiting, "WAITING", 2)

    async def main() -> list[Event]:
        inbox: asyncio.Queue[Event] = asyncio.Queue()
        sink = sink_for(inbox, delivery)
        for seq in range(5):
            sink.offer(state(seq))
        found = [await inbox.get(), await inbox.get()]
        sink.offer(state(5))
        return [*found, await inbox.get(), await inbox.get()]

    assert asyncio.run(main()) == [state(0), state(1), Lagged(n=3, flow_id="f", seq=4), state(5)]


def test_a_loop_that_is_closed_is_told_nothing(delivery: Delivery) -> None:
    async def main() -> Any:
        return sink_for(asyncio.Queue(), delivery)

    asyncio.run(main()).offer(state(1))


@pytest.mark.parametrize("kind", [queue.Queue, queue.SimpleQueue, asyncio.Queue])
def test_a_class_of_queues_is_none(kind: Any, delivery: Delivery) -> None:
    with pytest.raises(TypeError, match="is a class: give an instance of it"):
        sink_for(kind, delivery)


def test_methods_of_other_names_and_other_queues_may_be_given(delivery: Delivery) -> None:
    for notify in (Bus().on_event, queue.Queue[Event]().put_nowait, [].append, Moody()):
        assert isinstance(sink_for(notify, delivery), QueueSink)


# ------------------------------------------------------------------ reading


def subscription() -> Subscription:
    return Subscription((FlowState,), 10, lambda _: None, of_one=True)


@pytest.mark.parametrize(
    ("timeout", "error"), [("x", TypeError), (True, TypeError), (-1, ValueError), (math.inf, ValueError)]
)
def test_a_timeout_that_is_none(timeout: Any, error: type[Exception]) -> None:
    one = subscription()
    one.offer(state(1))
    with pytest.raises(error, match="timeout="):
        one.get(timeout)
    with pytest.raises(ValueError, match="timeout=nan"):
        one.get(math.nan)
    assert one.get(None) == state(1)


def test_a_thread_that_others_wait_for_may_look_but_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    one = subscription()
    one.offer(state(1))
    monkeypatch.setattr(patience.this_thread, "serving", True)
    assert one.get() == state(1)
    with pytest.raises(queue.Empty):
        one.get(0)
    for wait in (one.get, lambda: one.get(1.0), lambda: next(iter(one))):
        with pytest.raises(RuntimeError, match="waiting for an event: not from a queue's put"):
            wait()


def test_what_is_left_open_says_so() -> None:
    assert "close what you leave" in (inspect.getdoc(subscribers.Subscription) or "")
