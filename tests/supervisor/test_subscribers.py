"""From an event to those who wait for it: nothing blocks, and what is missing is counted."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caravela.errors import FlowNotRunning
from caravela.protocol import payload
from caravela.supervisor import subscribers
from caravela.supervisor.events import (
    TERMINAL,
    Encoded,
    Event,
    FlowDone,
    FlowError,
    FlowRestarted,
    FlowStarted,
    FlowState,
    FlowStopped,
    Lagged,
    Progress,
    SignalRejected,
    StepEntered,
)
from caravela.supervisor.latch import Changes
from caravela.supervisor.subscribers import (
    DEFAULT_KINDS,
    NOTIFY_KINDS,
    Delivery,
    Subscription,
    interest,
    publish,
    sink_for,
)

ALL = (Event,)


def subscription(kinds: tuple[type[Event], ...] = ALL, maxsize: int = 1024, *, of_one: bool = True) -> Subscription:
    return Subscription(kinds, maxsize, lambda _: None, of_one=of_one)


def state(seq: int, incarnation: int = 1, flow_id: str = "f") -> FlowState:
    return FlowState({"n": seq}, flow_id=flow_id, incarnation=incarnation, seq=seq)


def drain(subscription: Subscription) -> list[Event]:
    """All that can be had now."""
    found: list[Event] = []
    while True:
        try:
            found.append(subscription.get(timeout=0.0))
        except (queue.Empty, FlowNotRunning):
            return found


def short(events: list[Event]) -> list[object]:
    """States by their number, ``Lagged`` by its count, else the name of the class."""
    found: list[object] = []
    for event in events:
        match event:
            case Lagged(n):
                found.append(f"lagged {n}")
            case FlowState():
                found.append(event.seq)
            case _:
                found.append(type(event).__name__)
    return found


@pytest.fixture
def delivery() -> Iterator[Delivery]:
    delivery = Delivery()
    yield delivery
    delivery.close(10.0)


# ------------------------------------------------------------------ a subscription


def test_events_come_in_order() -> None:
    one = subscription()
    for seq in range(5):
        one.offer(state(seq))
    assert short(drain(one)) == [0, 1, 2, 3, 4]


def test_only_what_was_asked_for() -> None:
    one = subscription((FlowState,))
    publish([one], StepEntered(path="run"))
    publish([one], state(1))
    one.offer(SignalRejected())
    assert short(drain(one)) == [1]


def test_the_default_kinds() -> None:
    assert set(DEFAULT_KINDS) == {FlowState, FlowDone, FlowError, FlowStopped, FlowRestarted}


def test_the_newest_state_takes_the_place_of_the_last() -> None:
    one = subscription(maxsize=3)
    for seq in range(10):
        one.offer(state(seq))
    assert short(drain(one)) == [0, 1, "lagged 7", 9]


def test_lagged_says_which_it_was() -> None:
    one = subscription(maxsize=1)
    for seq in range(4):
        one.offer(state(seq, incarnation=2))
    lagged = one.get(timeout=0.0)
    assert lagged == Lagged(n=3, flow_id="f", incarnation=2, seq=2)


def test_room_again_means_no_more_lag() -> None:
    one = subscription(maxsize=2)
    for seq in range(4):
        one.offer(state(seq))
    assert short(drain(one)) == [0, "lagged 2", 3]
    for seq in range(4, 7):
        one.offer(state(seq))
    assert short(drain(one)) == [4, "lagged 1", 6]


def test_a_state_that_waits_behind_its_lag_may_still_be_replaced() -> None:
    one = subscription(maxsize=1)
    for seq in range(3):
        one.offer(state(seq))
    assert short([one.get(timeout=0.0)]) == ["lagged 2"]
    one.offer(state(3))
    assert short(drain(one)) == ["lagged 1", 3]


def test_terminal_events_and_restarts_are_never_dropped() -> None:
    one = subscription(maxsize=1)
    one.offer(FlowStarted())
    for incarnation in range(1, 5):
        for seq in range(3):
            one.offer(state(seq, incarnation))
        one.offer(FlowRestarted())
    one.offer(FlowError("no"))
    found = short(drain(one))
    assert found == ["FlowStarted", *["lagged 2", 2, "FlowRestarted"] * 4, "FlowError"]


def test_the_newest_state_comes_whatever_stands_behind_the_last() -> None:
    """Else whoever was slow believes an old state until the next change."""
    one = subscription(maxsize=2)
    one.offer(state(1))
    one.offer(state(2))
    one.offer(SignalRejected(seq=2))
    one.offer(state(3))
    one.offer(FlowRestarted(incarnation=2))
    one.offer(state(0, incarnation=2))
    assert short(drain(one)) == [1, "lagged 2", 3, "FlowRestarted", 0]


def test_the_states_of_one_flow_do_not_replace_those_of_another() -> None:
    one = subscription(maxsize=1, of_one=False)
    for seq in range(3):
        for flow_id in "abc":
            one.offer(state(seq, flow_id=flow_id))
    found = drain(one)
    assert [(e.flow_id, e.seq) for e in found if isinstance(e, FlowState)] == [("a", 2), ("b", 2), ("c", 2)]
    assert sum(e.n for e in found if isinstance(e, Lagged)) == 6


def test_what_is_dropped_last_is_told_too() -> None:
    one = subscription(maxsize=1)
    one.offer(StepEntered(path="a"))
    one.offer(StepEntered(path="b"))
    assert short(drain(one)) == ["StepEntered", "lagged 1"]


KINDS = st.sampled_from(["state", "state", "state", "restart", "rejected", "entered", "take", "take"])


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(KINDS, st.sampled_from("ab")), max_size=60), st.integers(1, 5), st.booleans())
def test_every_event_is_delivered_or_counted(steps: list[tuple[str, str]], maxsize: int, ends: bool) -> None:
    one = subscription(maxsize=maxsize, of_one=False)
    seqs: dict[str, list[int]] = {"a": [1, -1], "b": [1, -1]}  # incarnation and number of the last state
    offered: list[Event] = []
    found: list[Event] = []

    def offer(event: Event) -> None:
        offered.append(event)
        one.offer(event)

    for what, flow_id in steps:
        incarnation, seq = seqs[flow_id]
        common: dict[str, Any] = {"flow_id": flow_id, "incarnation": incarnation, "seq": max(seq, 0)}
        match what:
            case "state":
                seqs[flow_id][1] += 1
                offer(state(seq + 1, incarnation, flow_id))
            case "restart":
                seqs[flow_id] = [incarnation + 1, -1]
                offer(FlowRestarted(flow_id=flow_id, incarnation=incarnation + 1))
            case "rejected":
                offer(SignalRejected(**common))
            case "entered":
                offer(StepEntered(**common))
            case _:
                with suppress(queue.Empty):
                    found.append(one.get(timeout=0.0))
    if ends:
        for flow_id in "ab":
            offer(FlowDone({}, flow_id=flow_id, incarnation=seqs[flow_id][0], seq=seqs[flow_id][1] + 1))
    found += drain(one)

    real = [event for event in found if not isinstance(event, Lagged)]
    assert len(real) + sum(event.n for event in found if isinstance(event, Lagged)) == len(offered)
    places = {id(event): place for place, event in enumerate(offered)}
    assert [places[id(event)] for event in real] == sorted(places[id(event)] for event in real)
    kept = (*TERMINAL, FlowRestarted)
    assert [e for e in real if isinstance(e, kept)] == [e for e in offered if isinstance(e, kept)]
    newest = {(e.flow_id, e.incarnation): e for e in offered if isinstance(e, FlowState)}
    delivered = {(e.flow_id, e.incarnation): e for e in real if isinstance(e, FlowState)}
    assert delivered == newest
    holes_are_told(found)
    assert not one._newest and not one._events


@pytest.mark.parametrize("moment", range(4))
def test_what_was_taken_in_vain_is_taken_again(moment: int) -> None:
    """A Ctrl-C at the end of a call: nothing that it took is lost."""

    def read(in_vain: bool) -> list[object]:
        one = subscription(maxsize=2)
        for event in (state(0), StepEntered(path="a"), StepEntered(path="b"), state(1)):
            one.offer(event)
        found = [one.get(0.0) for _ in range(moment)]
        if in_vain:
            with one._lock:
                taken = one._next()
                if taken is not None:
                    one._put_back(taken)
        one.offer(state(2))
        return short(found + drain(one))

    assert read(in_vain=True) == read(in_vain=False)


def holes_are_told(found: list[Event]) -> None:
    """Between two states that do not follow each other stands a ``Lagged``."""
    last: dict[tuple[str, int], int] = {}
    lags = 0
    seen: dict[tuple[str, int], int] = {}
    for event in found:
        if isinstance(event, Lagged):
            lags += 1
        elif isinstance(event, FlowState):
            place = event.flow_id, event.incarnation
            if event.seq != last.get(place, -1) + 1:
                assert lags > seen.get(place, 0)
            last[place], seen[place] = event.seq, lags


def test_iteration_ends_after_the_terminal_event() -> None:
    one = subscription()
    for event in (state(1), FlowDone({}, seq=2), state(3), FlowDone({}, seq=4)):
        one.offer(event)
    assert short(list(one)) == [1, "FlowDone"]
    assert list(one) == []


def test_iteration_ends_at_the_end_also_when_nobody_asked_for_it() -> None:
    one = subscription((FlowState,))
    for event in (state(1), FlowDone({}, seq=2)):
        publish([one], event)
    assert short(list(one)) == [1]
    with pytest.raises(FlowNotRunning):
        one.get()


def test_the_end_of_one_flow_does_not_end_the_subscription_of_all() -> None:
    one = subscription(of_one=False)
    one.offer(FlowDone({}))
    one.offer(state(1))
    one.close()
    assert short(list(one)) == ["FlowDone", 1]


def test_close_lets_what_waits_be_read() -> None:
    closed: list[Subscription] = []
    with Subscription(ALL, 2, closed.append, of_one=True) as one:
        for seq in range(4):
            one.offer(state(seq))
    one.offer(state(9))
    one.close()
    assert short(list(one)) == [0, "lagged 2", 3]
    assert closed == [one, one]
    with pytest.raises(FlowNotRunning):
        one.get()


def test_get_times_out() -> None:
    one = subscription()
    for timeout in (0.0, 0.01):
        with pytest.raises(queue.Empty):
            one.get(timeout)


class Watched(Changes):
    """Says when somebody begins to wait."""

    def __init__(self, lock: threading.Lock) -> None:
        super().__init__(lock)
        self.entered = threading.Semaphore(0)

    def wait(self, timeout: float | None) -> None:
        self.entered.release()  # with the lock, which is let go only to wait
        super().wait(timeout)


class Readers:
    """Threads that read until the end; at first all of them wait."""

    def __init__(self, one: Subscription, count: int) -> None:
        self.found: list[list[Event]] = [[] for _ in range(count)]
        one._changes = watched = Watched(one._lock)

        def read(mine: list[Event]) -> None:
            mine += list(one)

        self.threads = [threading.Thread(target=read, args=(mine,), daemon=True) for mine in self.found]
        for thread in self.threads:
            thread.start()
        for _ in self.threads:
            assert watched.entered.acquire(timeout=10.0)

    def join(self) -> list[Event]:
        for thread in self.threads:
            thread.join(10.0)
        assert not any(thread.is_alive() for thread in self.threads)
        return [event for mine in self.found for event in mine]


def test_several_readers_share_the_events_and_all_see_the_end() -> None:
    for _ in range(20):
        one = subscription()
        readers = Readers(one, 4)
        for seq in range(50):
            one.offer(state(seq))
        one.offer(FlowDone({}, seq=50))
        found = readers.join()
        assert sorted(event.seq for event in found) == list(range(51))


def test_one_end_ends_all_that_wait() -> None:
    one = subscription()
    readers = Readers(one, 4)
    one.offer(FlowDone({}))
    assert short(readers.join()) == ["FlowDone"]


def test_close_lets_all_readers_go() -> None:
    one = subscription()
    readers = Readers(one, 4)
    one.close()
    assert readers.join() == []


def test_offers_while_it_is_closed() -> None:
    one = subscription()
    readers = Readers(one, 1)
    begun = threading.Barrier(4)

    def offer() -> None:
        begun.wait()
        for seq in range(500):
            one.offer(state(seq))

    threads = [threading.Thread(target=offer) for _ in range(3)]
    for thread in threads:
        thread.start()
    begun.wait()
    one.close()
    for thread in threads:
        thread.join()
    readers.join()
    assert drain(one) == []


@pytest.mark.parametrize("maxsize", ["5", 2.0, True, None])
def test_maxsize_of_a_wrong_type(maxsize: Any) -> None:
    with pytest.raises(TypeError, match="maxsize="):
        subscription(maxsize=maxsize)


def test_maxsize_of_nothing() -> None:
    with pytest.raises(ValueError, match="maxsize=0 must be at least 1"):
        subscription(maxsize=0)


@pytest.mark.parametrize("kinds", [("FlowState",), (FlowState, int), (state(1),), "FlowState", int, None])
def test_kinds_that_are_none(kinds: Any) -> None:
    with pytest.raises(TypeError, match="is not a class of events"):
        subscription(kinds)


# ------------------------------------------------------------------ what a worker must send


@pytest.mark.parametrize(
    ("kinds", "level"),
    [
        ([], 0),
        ([(FlowDone,)], 0),
        ([()], 0),
        ([(FlowState,)], 1),
        ([NOTIFY_KINDS], 1),
        ([DEFAULT_KINDS], 1),
        ([(FlowDone,), (StepEntered,)], 2),
        ([(Event,)], 2),
    ],
)
def test_interest(kinds: list[tuple[type[Event], ...]], level: int) -> None:
    assert interest([subscription(some) for some in kinds]) == level


# ------------------------------------------------------------------ foreign queues


def received(inbox: "queue.Queue[Event] | queue.SimpleQueue[Event]") -> list[Event]:
    found = []
    while not inbox.empty():
        found.append(inbox.get_nowait())
    return found


@pytest.mark.parametrize("make", [queue.Queue, queue.SimpleQueue, queue.LifoQueue], ids=lambda make: make.__name__)
def test_a_foreign_queue_gets_what_notify_gets(make: Callable[[], Any], delivery: Delivery) -> None:
    inbox = make()
    sink = sink_for(inbox, delivery)
    for event in (FlowStarted(), state(1), StepEntered(), FlowRestarted(), FlowStopped({}), FlowDone({}), Progress()):
        publish([sink], event)
    assert sorted(map(str, short(received(inbox)))) == ["1", "FlowDone"]


def test_a_full_foreign_queue_drops_and_lags(delivery: Delivery) -> None:
    inbox: queue.Queue[Event] = queue.Queue(maxsize=1)
    sink = sink_for(inbox, delivery)
    found: list[Event] = []
    for seq in range(4):
        sink.offer(state(seq))
    found += received(inbox)
    assert short(found) == [0]
    sink.offer(state(4))  # only one place: it goes to the Lagged
    found += received(inbox)
    sink.offer(state(5))
    found += received(inbox)
    sink.offer(state(6))
    found += received(inbox)
    assert short(found) == [0, "lagged 3", "lagged 1", "lagged 1"]
    inbox = queue.Queue(maxsize=2)
    sink = sink_for(inbox, delivery)
    for seq in range(5):
        sink.offer(state(seq))
    found = received(inbox)
    sink.offer(state(5))
    found += received(inbox)
    assert short(found) == [0, 1, "lagged 3", 5]
    assert found[2] == Lagged(n=3, flow_id="f", seq=4)


def test_a_foreign_queue_that_raises_is_logged(delivery: Delivery, caplog: pytest.LogCaptureFixture) -> None:
    class Closed:
        def put_nowait(self, event: Event) -> None:
            raise ValueError("closed")

    sink = sink_for(Closed(), delivery)
    sink.offer(state(1))
    assert "notify= of flow f raised" in caplog.text and "closed" in caplog.text


def test_what_only_has_put_may_block_but_not_us(delivery: Delivery) -> None:
    """As ``multiprocess.SimpleQueue`` while its pipe is full."""
    room = threading.Semaphore(0)
    taken: list[Event] = []
    last = threading.Event()

    class Blocking:
        def put(self, event: Event) -> None:
            room.acquire()
            taken.append(event)
            if isinstance(event, FlowDone):
                last.set()

    sink = sink_for(Blocking(), delivery)
    for event in (state(1), state(2), FlowDone({})):
        sink.offer(event)
    assert not taken
    for _ in range(3):
        room.release()
    assert last.wait(10.0)
    assert short(taken) == [1, 2, "FlowDone"]


@pytest.mark.parametrize("notify", [3, "inbox", [], object()], ids=repr)
def test_what_is_no_queue_and_no_callable(notify: Any, delivery: Delivery) -> None:
    with pytest.raises(TypeError, match="must be a queue"):
        sink_for(notify, delivery)


async def coroutine(event: Event) -> None: ...


class AsyncCallable:
    async def __call__(self, event: Event) -> None: ...


@pytest.mark.parametrize("notify", [coroutine, partial(coroutine), AsyncCallable()], ids=["def", "partial", "object"])
def test_async_functions_are_refused(notify: Any, delivery: Delivery) -> None:
    with pytest.raises(TypeError, match="async"):
        sink_for(notify, delivery)


# ------------------------------------------------------------------ callables


class Calls:
    """A callable, and how to wait for it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.threads: set[threading.Thread] = set()
        self._more = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._more:
            self.events.append(event)
            self.threads.add(threading.current_thread())
            self._more.notify_all()

    def wait(self, count: int) -> list[Event]:
        with self._more:
            assert self._more.wait_for(lambda: len(self.events) >= count, 10.0)
            return list(self.events)


def test_callables_are_called_in_order_on_one_thread(delivery: Delivery) -> None:
    one, other = Calls(), Calls()
    sinks = [sink_for(one, delivery), sink_for(other, delivery)]
    for seq in range(200):
        publish(sinks, state(seq))
    assert short(one.wait(200)) == short(other.wait(200)) == list(range(200))
    assert len(one.threads | other.threads) == 1 and threading.current_thread() not in one.threads


def test_a_callable_may_call_what_calls_it(delivery: Delivery) -> None:
    calls = Calls()

    def again(event: Event) -> None:
        calls(event)
        if event.seq < 5:
            sink.offer(state(event.seq + 1))
            assert event.seq + 1 > len(calls.events) - 1  # later, not inside

    sink = sink_for(again, delivery)
    sink.offer(state(0))
    assert short(calls.wait(6)) == [0, 1, 2, 3, 4, 5]


def test_here_is_true_only_in_callables(delivery: Delivery) -> None:
    seen: list[bool] = []
    done = threading.Event()
    sink = sink_for(lambda event: (seen.append(delivery.here), done.set()), delivery)
    assert not delivery.here
    sink.offer(state(1))
    assert done.wait(10.0)
    assert seen == [True] and not delivery.here


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_a_raise_is_logged_and_goes_on(
    error: BaseException, delivery: Delivery, caplog: pytest.LogCaptureFixture
) -> None:
    calls = Calls()

    def fail(event: Event) -> None:
        raise error

    sinks = [sink_for(fail, delivery), sink_for(calls, delivery)]
    for seq in range(3):
        publish(sinks, state(seq))
    assert short(calls.wait(3)) == [0, 1, 2]
    assert [record.message for record in caplog.records] == ["a subscriber of flow f raised"] * 3


def test_callables_that_are_too_slow_lag(delivery: Delivery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribers, "CALLABLE_LIMIT", 3)
    begun, go, calls = threading.Event(), threading.Event(), Calls()

    def slow(event: Event) -> None:
        begun.set()
        go.wait()
        calls(event)

    sink = sink_for(slow, delivery)
    sink.offer(state(0))
    assert begun.wait(10.0)
    for seq in range(1, 10):
        sink.offer(state(seq))
    go.set()
    assert short(calls.wait(4)) == [0, 1, 2, 3]
    sink.offer(state(10))
    assert short(calls.wait(6)) == [0, 1, 2, 3, "lagged 6", 10]


def test_what_waits_is_delivered_before_the_close() -> None:
    delivery, calls = Delivery(), Calls()
    sink = sink_for(calls, delivery)
    for seq in range(100):
        sink.offer(state(seq))
    delivery.close(10.0)
    assert short(calls.events) == list(range(100))
    delivery.close(10.0)


def test_closed_by_a_callable() -> None:
    delivery, calls, go = Delivery(), Calls(), threading.Event()

    def close(event: Event) -> None:
        go.wait()
        delivery.close(10.0)
        calls(event)

    sink = sink_for(close, delivery)
    sink.offer(state(1))
    sink.offer(FlowDone({}))
    go.set()
    calls.wait(2)
    delivery.close(10.0)
    assert short(calls.events) == [1, "FlowDone"]


def test_without_callables_there_is_no_thread() -> None:
    before = threading.active_count()
    delivery = Delivery()
    sink_for(queue.SimpleQueue(), delivery).offer(state(1))
    assert threading.active_count() == before
    delivery.close(10.0)


# ------------------------------------------------------------------ copies


def test_each_subscriber_has_its_own_copy_of_the_state(delivery: Delivery) -> None:
    inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
    calls, one, other = Calls(), subscription(), subscription()
    sinks = [sink_for(inbox, delivery), sink_for(calls, delivery), one, other]
    publish(sinks, FlowState(carried=Encoded(payload.encode({"n": [1]}))))
    events = [inbox.get(), *calls.wait(1), one.get(), other.get()]
    states = [event.state for event in events if isinstance(event, FlowState)]
    assert states == [{"n": [1]}] * 4
    states[0]["n"].append(2)
    assert states[1:] == [{"n": [1]}] * 3
