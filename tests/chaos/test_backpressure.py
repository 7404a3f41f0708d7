"""Who does not read is waited for by nobody but those who speak to him, and not for long."""

import asyncio
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from witness import await_state, stat

from caravela import FlowBusy, FlowDone, FlowRestarted, FlowState, Lagged, Ok, Supervisor, flow, run, wait_until
from caravela.protocol import codec, messages, payload
from caravela.protocol.functions import Held, export
from caravela.protocol.status import Page
from caravela.supervisor.outbox import LIMIT
from caravela.worker.main import run as run_worker
from caravela.worker.pipe import FULL

SOON = 10.0  # seconds that never pass unless something hangs
AT_ONCE = 2.0  # seconds, on a busy machine
MIB = 2**20

collector = flow("collector", wait_until(lambda s: False), initial_state=lambda: {"seen": []})


def collect(state: Any, number: int, ballast: bytes) -> Any:
    return {"seen": [*state["seen"], number]}


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    with Supervisor(shutdown=0.2) as supervisor:
        yield supervisor


class Frozen:
    """A flow whose worker is stopped, and fed until no more goes in. ``fed``: how many signals it took."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.handle = supervisor.start(collector)
        for _ in range(2):  # by the second answer it stands in its first step
            self.handle.get_state()
        pid = self.handle.pid
        assert pid
        self.pid = pid
        os.kill(pid, signal.SIGSTOP)
        await_state(pid, "T")
        self.fed = 0

    def feed(self) -> FlowBusy:
        while True:
            try:
                self.handle.signal(collect, self.fed, bytes(MIB), timeout=0.0)
            except FlowBusy as busy:
                return busy
            self.fed += 1

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


def test_a_signal_waits_for_room_and_then_says_why_there_is_none(supervisor: Supervisor) -> None:
    frozen, other = Frozen(supervisor), supervisor.start(collector)
    busy = frozen.feed()
    assert LIMIT // MIB <= frozen.fed <= LIMIT // MIB + 2
    began = time.monotonic()
    with pytest.raises(FlowBusy) as raised:
        frozen.handle.signal(collect, -1, b"", timeout=0.3)
    assert 0.3 <= time.monotonic() - began < 0.3 + AT_ONCE
    for error in (busy, raised.value):
        assert error.waiting >= LIMIT and "wait_until" in error.doing and error.flow == "collector"
    assert other.update(collect, 1, b"") == {"seen": [1]}  # nobody else waits
    assert frozen.handle.last_state == {"seen": []}
    frozen.thaw()
    assert frozen.handle.get_state(SOON) == {"seen": [*range(frozen.fed)]}  # all that was taken, in order, and no more


def test_a_waiting_signal_goes_when_there_is_room(supervisor: Supervisor) -> None:
    frozen = Frozen(supervisor)
    frozen.feed()
    waits = threading.Thread(target=frozen.handle.signal, args=(collect, -1, b""), kwargs={"timeout": SOON})
    waits.start()
    frozen.thaw()
    waits.join()
    assert frozen.handle.get_state(SOON) == {"seen": [*range(frozen.fed), -1]}


def test_a_flow_that_ends_lets_go_of_who_waits_for_room(supervisor: Supervisor) -> None:
    frozen = Frozen(supervisor)
    frozen.feed()
    errors: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def wait_for_room() -> None:
        try:
            frozen.handle.signal(collect, -1, b"", timeout=60)
        except Exception as error:
            errors.put(error)

    thread = threading.Thread(target=wait_for_room)
    thread.start()
    frozen.handle.stop()
    thread.join(SOON)
    assert "not running" in str(errors.get(timeout=SOON))


def test_in_a_callback_it_is_an_error_at_once(supervisor: Supervisor) -> None:
    frozen, met = Frozen(supervisor), queue.SimpleQueue[tuple[Any, float]]()
    frozen.feed()

    def callback(event: Any) -> None:
        began = time.monotonic()
        try:
            frozen.handle.signal(collect, -1, b"", timeout=60)
        except FlowBusy as busy:
            met.put((busy, time.monotonic() - began))

    supervisor.start(collector, notify=callback).signal(collect, 1, b"")
    busy, took = met.get(timeout=SOON)
    assert busy.waiting >= LIMIT and took < AT_ONCE
    frozen.thaw()


def test_in_a_coroutine_it_is_an_error_at_once(supervisor: Supervisor) -> None:
    frozen = Frozen(supervisor)
    frozen.feed()

    async def speak() -> float:
        began = time.monotonic()
        with pytest.raises(FlowBusy):
            frozen.handle.signal(collect, -1, b"", timeout=60)
        return time.monotonic() - began

    assert asyncio.run(speak()) < AT_ONCE
    frozen.thaw()


def test_what_waits_outlives_the_worker(supervisor: Supervisor) -> None:
    frozen = Frozen(supervisor)
    frozen.feed()
    events = frozen.handle.subscribe(kinds=(FlowRestarted,))
    os.kill(frozen.pid, signal.SIGKILL)
    restarted = events.get(SOON)
    assert isinstance(restarted, FlowRestarted)
    seen = frozen.handle.get_state(SOON)["seen"]
    assert seen == [
        *range(restarted.lost_signals, frozen.fed)
    ]  # the first may have gone into the pipe, with the worker


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    os.mkfifo(tmp_path / "go")
    return str(tmp_path / "go")


def test_a_body_that_takes_long_fills_its_log_and_gets_everything_in_the_end(supervisor: Supervisor, fifo: str) -> None:
    """The worker reads on while the log of the signals that it has to replay has room; then the pipe fills up."""

    def long(state: Any) -> Ok:
        with open(state["fifo"]) as go:
            go.read()
        return Ok(state | {"seen": ["done"]})

    patient = flow("patient", run(long), wait_until(lambda s: -1 in s["seen"]))
    handle = supervisor.start(patient, initial_state={"fifo": fifo, "seen": []})
    other = supervisor.start(collector)
    fed = 0

    def keep(state: Any, number: int, ballast: bytes) -> Any:
        return state | {"seen": [*state["seen"], number]}

    busy = None
    while busy is None:
        try:
            handle.signal(keep, fed, bytes(MIB), timeout=0.5)
            fed += 1
        except FlowBusy as error:
            busy = error
    assert fed >= 2 * (8 - 1)  # its log took some, and then the outbox
    assert "run" in busy.doing
    assert other.update(collect, 1, b"") == {"seen": [1]}
    with open(fifo, "w"):
        pass
    handle.signal(keep, -1, b"", timeout=SOON)
    assert handle.result(SOON)["seen"] == ["done", *range(fed), -1]


def test_a_slow_subscriber_holds_up_nobody(supervisor: Supervisor) -> None:
    go, states = threading.Event(), 1500
    full: queue.Queue[Any] = queue.Queue(maxsize=1)
    slow = supervisor.start(collector, notify=lambda event: go.wait())
    deaf = supervisor.start(collector, notify=full)
    lagging = deaf.subscribe(maxsize=2)

    def number(state: Any, n: int) -> Any:
        return {"seen": [n]}

    for handle in (slow, deaf):
        for n in range(states):
            handle.signal(number, n)
        assert handle.get_state(SOON) == {"seen": [states - 1]}
    assert full.get_nowait().state == {"seen": [0]}
    got = [lagging.get(SOON), lagging.get(SOON), lagging.get(SOON)]
    assert isinstance(got[-1], FlowState) and got[-1].state == {"seen": [states - 1]}
    assert sum(event.n for event in got if isinstance(event, Lagged)) == states - sum(
        isinstance(event, FlowState) for event in got
    )
    assert slow.stop() and deaf.stop()
    go.set()


# ------------------------------------------------------------------ a host that does not read


class Unread:
    """A worker on raw pipes, in a process of its own, whose answers are read when the test wants to."""

    def __init__(self, made: Any) -> None:
        (reads, self.tells), (self.hears, writes) = os.pipe(), os.pipe()
        self.page, page = Page.create()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                self._let_go()
                os._exit(run_worker(reads, writes, page))
            finally:
                os._exit(99)
        for fd in (reads, writes, page):
            os.close(fd)
        self._decoder = codec.Decoder("to_supervisor")
        self._held = Held()
        ported = export(made, what="flow")
        environ = payload.encode(
            {"path": [], "cwd": os.getcwd(), "environ": dict(os.environ), "argv": [], "log_level": 30}
        )
        start = messages.Start(ported.data, b"", payload.encode({"interest": 1}), environ)
        self.tell(messages.Hello(messages.VERSION, 1, b"nonce"), *self._held.missing(ported.needs), start)

    def tell(self, *said: Any) -> None:
        os.write(self.tells, b"".join(map(codec.encode, said)))

    def signal(self, function: Callable[..., Any], times: int) -> None:
        ported = export(function, what="signal")
        signals = [messages.Signal(no, 0, ported.data, b"") for no in range(1, times + 1)]
        self.tell(*self._held.missing(ported.needs), *signals)

    def hear(self) -> list[Any]:
        data = os.read(self.hears, MIB)
        return self._decoder.feed(data) if data else []

    def full(self) -> int:
        """Waits until it applies signals no more and sleeps; how many it has applied."""
        while not (self.page.read().applied and stat(self.pid)[0] == "S"):
            os.sched_yield()
        return self.page.read().applied

    def _let_go(self) -> None:
        os.close(self.tells)
        os.close(self.hears)

    def close(self) -> int:
        """Returns the exit code."""
        self._let_go()
        self.page.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def grow(state: Any) -> Any:
    return {"n": state["n"] + 1, "ballast": bytes(2**20)}


WANTED = 40


@pytest.fixture
def unread() -> Unread:
    """It was told to announce 40 states of a MiB each, and has stopped somewhere on the way."""
    worker = Unread(flow("grows", wait_until(lambda s: s["n"] == 40), initial_state={"n": 0}))
    worker.signal(grow, WANTED)
    applied = worker.full()
    assert FULL // MIB <= applied <= FULL // MIB + 2
    return worker


def test_a_worker_with_too_much_unsent_goes_on_when_it_is_read(unread: Unread) -> None:
    heard: list[Any] = []
    while not (heard and isinstance(heard[-1], messages.Done)):
        heard += unread.hear()
    states = [message for message in heard if isinstance(message, messages.State)]
    assert [state.seq for state in states] == [*range(1, WANTED + 1)]  # nothing is missing, nothing twice
    assert unread.close() == 0


def test_a_worker_with_too_much_unsent_still_sees_its_host_go(unread: Unread) -> None:
    assert unread.close() == -signal.SIGKILL


def test_a_worker_with_too_much_unsent_stops_when_it_is_told_and_read(unread: Unread) -> None:
    unread.tell(messages.Stop("stop"))
    heard: list[Any] = []
    while not (heard and isinstance(heard[-1], messages.Done | messages.Stopped)):
        heard += unread.hear()
    assert unread.close() == 0


def test_a_host_that_is_slow_to_read_gets_a_big_last_word(supervisor: Supervisor) -> None:
    big = flow("big", run(lambda s: Ok({"ballast": bytes(30 * 2**20)})))
    notes: queue.SimpleQueue[Any] = queue.SimpleQueue()
    handle = supervisor.start(big, notify=notes)
    assert len(handle.result(SOON)["ballast"]) == 30 * MIB
    assert isinstance(notes.get(timeout=SOON), FlowState) and isinstance(notes.get(timeout=SOON), FlowDone)
