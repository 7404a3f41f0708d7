"""The worker's whole life over real pipes, on a thread of this process."""

import asyncio
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from caravela.errors import StepRaised
from caravela.flows import Ok, debounce, each, flow, repeat, run, sequence, set_state, wait, wait_until
from caravela.flows.flow import Flow
from caravela.protocol import codec, payload
from caravela.protocol.functions import Portable, export
from caravela.protocol.messages import (
    VERSION,
    BootFailed,
    Code,
    Crashed,
    Define,
    Done,
    Entered,
    Failed,
    Hello,
    Interest,
    Log,
    Ping,
    Pong,
    Query,
    Ready,
    Rejected,
    Reply,
    Signal,
    Start,
    State,
    Stop,
    Stopped,
)
from caravela.protocol.status import Page
from caravela.supervisor import boot as host_boot
from caravela.worker import boot, exits, pipe
from caravela.worker.main import run as worker

Frame = TypeVar("Frame")


class Host:
    """Plays the supervisor, blocking; the worker is a thread."""

    def __init__(self) -> None:
        reads, self._out = os.pipe()
        self._in, writes = os.pipe()
        self.halt = os.eventfd(0)
        self.page, page = Page.create()
        self._theirs = [reads, writes, page, self.halt]
        self._decoder = codec.Decoder("to_supervisor")
        self._came: deque[Any] = deque()
        self._no = 0
        self.code: int | None = None

        def live() -> None:
            self.code = worker(reads, writes, page, home=True, halt=self.halt)
            os.close(writes)

        self._greeted = False
        self._thread = threading.Thread(target=live)
        self._thread.start()

    # -------------------------------------------------------------- talking

    def write(self, *messages: Any) -> None:
        data = b"".join(map(codec.encode, messages))
        while data:
            data = data[os.write(self._out, data) :]

    def greet(self) -> None:
        """It answers with what it says next."""
        self.write(Hello(VERSION, os.getpid(), b"nonce"))

    def start(self, made: Flow | str, state: object = None, interest: int = 1, *more: Any) -> Ready:
        self.greet()
        sent = export(made, what="flow")
        initial = Portable(b"") if state is None else export(state, what="state")
        options = payload.encode({"interest": interest})
        self.write(*sent.needs, *initial.needs, Start(sent.data, initial.data, options, payload.encode({})), *more)
        return self.hear(Ready)

    def made(self, fn: Callable[..., Any] | str, *args: Any, call: int = 0) -> list[Code | Define | Signal]:
        self._no += 1
        sent = export(fn, what="signal")
        return [*sent.needs, Signal(self._no, call, sent.data, export(args, what="arguments").data if args else b"")]

    def signal(self, fn: Callable[..., Any] | str, *args: Any, call: int = 0) -> None:
        self.write(*self.made(fn, *args, call=call))

    def read(self) -> Any:
        while True:
            while not self._came:
                data = os.read(self._in, 65536)
                assert data, "the worker has closed its pipe"
                self._came += self._decoder.feed(data)
            frame = self._came.popleft()
            if self._greeted:
                return frame
            self._greeted = True
            assert frame == Hello(VERSION, os.getpid(), b"nonce")

    def hear(self, kind: type[Frame]) -> Frame:
        frame = self.read()
        assert isinstance(frame, kind), frame
        return frame

    def answer(self, call: int) -> Any:
        reply = self.hear(Reply)
        assert (reply.call, reply.ok) == (call, True), reply
        return payload.decode(reply.value)

    def refusal(self, call: int) -> StepRaised:
        reply = self.hear(Reply)
        assert (reply.call, reply.ok) == (call, False), reply
        return _error(reply.value)

    def end(self) -> int:
        self._thread.join()
        assert self.code is not None
        return self.code

    def hang_up(self) -> None:
        os.close(self._out)
        self._out = -1

    def close(self) -> None:
        os.eventfd_write(self.halt, 1)
        self._thread.join()
        self.page.close()
        for fd in (self._in, self._out, *self._theirs):
            if fd >= 0 and fd != self._theirs[1]:
                os.close(fd)


@pytest.fixture
def gates() -> Iterator[list[int]]:
    """Numbers of eventfds: what a flow may take with it to wait on, and to say that it waits."""
    fds = [os.eventfd(0), os.eventfd(0)]
    yield fds
    for fd in fds:
        os.eventfd_write(fd, 1)
        os.close(fd)


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


def _error(data: bytes) -> StepRaised:
    error = payload.decode(data)
    assert isinstance(error, StepRaised)
    return error


def waiting(**options: Any) -> Flow:
    return flow("waiting", wait_until(lambda s: s.get("go")), initial_state={"n": 0}, **options)


def plus(state: Any, n: int = 1) -> Any:
    return state | {"n": state["n"] + n}


def go(state: Any) -> Any:
    return state | {"go": True}


# ------------------------------------------------------------------ booting


def test_a_flow_runs_to_its_end(host: Host) -> None:
    ready = host.start(flow("short", set_state(plus), initial_state={"n": 1}, signals={"plus": plus}))
    assert (payload.decode(ready.state), ready.name, payload.decode(ready.signals)) == ({"n": 1}, "short", ["plus"])
    assert host.hear(State) == State(1, payload.encode({"n": 2}))
    assert host.hear(Done) == Done(2, payload.encode({"n": 2}))
    assert host.end() == exits.ENDED


def test_the_given_state_replaces_the_declared_one_and_a_factory_is_called(host: Host) -> None:
    ready = host.start(waiting(), lambda: {"given": True})
    assert payload.decode(ready.state) == {"given": True}


@pytest.mark.parametrize(
    ("named", "kind", "message"),
    [
        ("no.such.module:flow", "ModuleNotFoundError", "No module named 'no'"),
        ("os:no_such", "AttributeError", "module 'os' has no attribute 'no_such'"),
        ("os:path.sep", "TypeError", "os:path.sep is not a Flow but '/'"),
        ("os", "ValueError", "a flow is named as \"package.module:attribute\", not 'os'"),
    ],
)
def test_a_name_that_is_no_flow_fails_the_boot(host: Host, named: str, kind: str, message: str) -> None:
    host.greet()
    host.write(Start(payload.encode(named), b"", payload.encode({"interest": 1}), payload.encode({})))
    error = _error(host.hear(BootFailed).error)
    assert (error.type, error.message) == (kind, message)
    assert host.end() == exits.BOOT_FAILED


def exit_at_boot() -> Any:
    raise SystemExit("no state today")


@pytest.mark.parametrize(
    ("state", "kind"), [(exit_at_boot, "SystemExit"), (threading.Lock, "caravela.errors.NotPortable")]
)
def test_a_first_state_that_cannot_be_made_fails_the_boot(host: Host, state: Any, kind: str) -> None:
    with pytest.raises(AssertionError):
        host.start(flow("no", wait(1), initial_state=state))
    assert host.end() == exits.BOOT_FAILED


def test_what_came_before_and_after_start_is_kept_in_order(host: Host) -> None:
    host.greet()
    sent = export(waiting(), what="flow")
    start = Start(sent.data, b"", payload.encode({"interest": 0}), payload.encode({}))
    host.write(Ping(1), *sent.needs, Ping(2), start, Ping(3), *host.made(plus, call=4), Query(5))
    host.hear(Ready)
    assert [host.hear(Pong).call for _ in range(3)] == [1, 2, 3]
    assert host.answer(4) == host.answer(5) == {"n": 1}


def test_a_stop_that_overtook_the_start_stops_before_the_first_step(host: Host) -> None:
    host.greet()
    sent = export(flow("never", set_state(lambda s: 1 / 0), initial_state={"n": 0}), what="flow")
    host.write(Stop("early"), *sent.needs, Start(sent.data, b"", payload.encode({"interest": 0}), payload.encode({})))
    host.hear(Ready)
    assert payload.decode(host.hear(Stopped).state) == {"n": 0}
    assert host.end() == exits.ENDED


@pytest.mark.parametrize("frame", [Ping(1), Hello(VERSION + 1, 1, b"")])
def test_a_stranger_is_refused(host: Host, frame: Any, capfd: pytest.CaptureFixture[str]) -> None:
    host.write(frame)
    assert host.end() == exits.PROTOCOL
    assert "greeting" in capfd.readouterr().err


def test_bytes_that_are_no_message_end_the_worker(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    host.start(waiting())
    os.write(host._out, b"\xc1\xc1")
    assert host.end() == exits.PROTOCOL
    assert capfd.readouterr().err


@pytest.mark.parametrize("booted", [False, True])
def test_it_ends_with_its_host(host: Host, booted: bool) -> None:
    if booted:
        host.start(waiting())
    host.hang_up()
    assert host.end() == exits.HOST_GONE


@pytest.mark.parametrize("booted", [False, True])
def test_it_halts_when_told(host: Host, booted: bool) -> None:
    if booted:
        host.start(waiting())
    os.eventfd_write(host.halt, 1)
    assert host.end() == exits.HALTED


# ------------------------------------------------------------------ signals and questions


def test_signals_by_function_and_by_name(host: Host) -> None:
    host.start(waiting(signals={"plus": plus}))
    host.signal(plus)
    host.signal("plus", 5)
    host.signal(lambda s, n: plus(s, n), 10, call=7)
    host.write(Query(8))
    assert [payload.decode(host.hear(State).state)["n"] for _ in range(3)] == [1, 6, 16]
    assert host.answer(7) == host.answer(8) == {"n": 16}
    assert (host.page.read().applied, host.page.read().executing) == (3, 0)


def test_an_unknown_name_is_rejected_naming_the_declared_ones(host: Host) -> None:
    host.start(waiting(signals={"plus": plus, "go": go}))
    host.signal("minus")
    host.signal("minus", call=3)
    rejected = host.hear(Rejected)
    assert (rejected.no, rejected.late) == (1, False)
    said = "the flow declares no signal 'minus'; it declares 'plus', 'go'"
    assert _error(rejected.error).message == host.refusal(3).message == said


def test_a_signal_that_cannot_be_loaded_is_rejected_and_the_flow_goes_on(host: Host) -> None:
    host.start(waiting())
    host.write(Signal(1, 0, b"\x80no pickle", b""), Signal(2, 9, b"\x80no pickle", b""))
    assert host.hear(Rejected).no == 1
    assert host.refusal(9).type.endswith(("UnpicklingError", "ValueError", "EOFError"))
    host.signal(go)
    host.hear(State)
    host.hear(Done)
    assert host.page.read().applied == 3


def test_a_signal_that_raises_is_rejected_with_its_traceback(host: Host) -> None:
    host.start(waiting())
    host.signal(lambda s: s["no such key"])
    host.signal(lambda s: s["no such key"], call=2)
    assert "no such key" in _error(host.hear(Rejected).error).traceback
    assert host.refusal(2).type == "KeyError"


def test_states_are_counted_but_sent_only_on_interest(host: Host) -> None:
    host.start(waiting(), None, 0)
    host.signal(plus, call=1)
    host.write(Interest(1))
    host.signal(plus)
    host.write(Interest(2))
    host.signal(go)
    assert host.answer(1) == {"n": 1}
    assert [host.hear(State).seq for _ in range(2)] == [2, 3]
    assert host.hear(Done).seq == 4


def test_steps_are_told_on_interest_and_always_on_the_page(host: Host) -> None:
    host.start(flow("steps", set_state(plus), repeat(wait(60_000)), initial_state={"n": 0}), None, 2)
    heard = [host.read() for _ in range(4)]
    assert [frame.path for frame in heard if isinstance(frame, Entered)] == [
        "set_state[0]",
        "repeat[1]",
        "repeat[1]/wait",
    ]
    status = host.page.read()
    assert (status.path, status.attempt) == ("repeat[1]/wait", 1)
    assert 0 <= time.monotonic() - status.looped < 20


# ------------------------------------------------------------------ time, bodies, ends


def test_a_spinning_flow_answers(host: Host, request: pytest.FixtureRequest) -> None:
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-5)  # worker and host share an interpreter here
    host.start(flow("spin", repeat(set_state(lambda s: s)), initial_state={"n": 0}))
    for call in range(1, 50):
        host.signal(plus, call=call)
        assert host.hear(State).seq == call
        assert host.answer(call) == {"n": call}


def test_a_signal_beats_the_debounce_that_ends_at_the_same_moment(
    host: Host, gates: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """G6. Both are due at the worker's next look: the signal lies in the pipe when the timer has expired."""
    began, go_on = gates
    clock = SimpleNamespace(now=100.0)  # the worker's: it stands until the test says how late it is
    monkeypatch.setattr("caravela.worker.loop.time", SimpleNamespace(monotonic=lambda: clock.now))

    def hold(state: Any) -> Any:
        os.eventfd_write(began, 1)
        os.eventfd_read(go_on)
        return state

    steps = sequence(debounce(10, max_wait=20), set_state(lambda s: s | {"seen": s["n"]}))
    host.start(flow("debounced", steps, initial_state={"n": 0}))
    host.signal(hold)
    os.eventfd_read(began)
    host.signal(plus)
    clock.now += 0.025  # the debounce has ended
    os.eventfd_write(go_on, 1)
    assert payload.decode(host.hear(State).state) == {"n": 1}
    assert payload.decode(host.hear(State).state) == {"n": 1, "seen": 1}
    host.hear(Done)


def test_it_answers_while_a_body_computes_and_rebases(host: Host, gates: list[int]) -> None:
    began, go_on = gates

    def body(state: Any) -> Ok:
        os.eventfd_write(began, 1)
        os.eventfd_read(go_on)
        return Ok(state | {"body": True})

    host.start(flow("body", run(body), initial_state={"n": 0}))
    os.eventfd_read(began)
    host.signal(plus, call=1)
    host.hear(State)
    assert host.answer(1) == {"n": 1}
    os.eventfd_write(go_on, 1)
    assert payload.decode(host.hear(State).state) == {"n": 1, "body": True}
    host.hear(Done)
    assert host.end() == exits.ENDED


def test_a_stop_cancels_the_body_and_waits_for_its_end(host: Host, gates: list[int]) -> None:
    began, _ = gates

    async def body(state: Any) -> Ok:
        os.eventfd_write(began, 1)
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            return Ok(state | {"tidied": True})
        return Ok()

    host.start(flow("body", run(body), initial_state={"n": 0}))
    os.eventfd_read(began)
    host.write(Stop("enough"))
    host.hear(State)
    assert payload.decode(host.hear(Stopped).state) == {"n": 0, "tidied": True}
    assert host.end() == exits.ENDED


def test_a_failing_flow_says_why(host: Host) -> None:
    host.start(flow("fails", each("items", lambda item, s: 1 / item), initial_state={"items": [0]}))
    error = payload.decode(host.hear(Failed).reason)
    assert (error.type, error.path) == ("ZeroDivisionError", "each")
    assert host.end() == exits.ENDED


def test_a_raise_in_set_state_is_a_crash(host: Host) -> None:
    host.start(flow("crashes", set_state(lambda s: 1 / 0), initial_state={}))
    assert _error(host.hear(Crashed).error).type == "ZeroDivisionError"
    assert host.end() == exits.CRASHED


def test_a_function_that_holds_up_the_loop_is_logged(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caravela.worker.loop.SLOW", 0.0)
    host.start(flow("slow", set_state(plus), wait(60_000), initial_state={"n": 0}), None, 0)
    logs = [payload.decode(host.hear(Log).record) for _ in range(3)]
    assert [log["level"] for log in logs] == [30, 30, 30]
    assert logs[1]["path"] == "set_state[0]" and "held up" in logs[1]["message"]


def test_a_signal_that_is_replayed_is_named_on_the_page_and_in_the_log(
    host: Host, gates: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caravela.worker.loop.SLOW", 0.0)
    began, go_on = gates

    def body(state: Any) -> Ok:
        os.eventfd_write(began, 1)
        os.eventfd_read(go_on)
        return Ok(state | {"body": True})

    def hold(state: Any) -> Any:
        if "body" in state:
            os.eventfd_write(began, 1)
            os.eventfd_read(go_on)
        return state | {"n": state["n"] + 1}

    host.start(flow("replays", run(body), wait(60_000), initial_state={"n": 0}), None, 0)
    os.eventfd_read(began)
    host.signal(plus)
    host.signal(hold, call=1)
    logs = []
    while not isinstance(frame := host.read(), Reply):
        logs.append(payload.decode(frame.record)["message"])
    assert not any("replaying" in log for log in logs)
    os.eventfd_write(go_on, 1)
    os.eventfd_read(began)
    status = host.page.read()
    assert (status.path, status.executing) == ("run[0]", 2)
    os.eventfd_write(go_on, 1)
    host.write(Query(2))
    logs.clear()
    while not isinstance(frame := host.read(), Reply):
        logs.append(payload.decode(frame.record)["message"])
    assert payload.decode(frame.value) == {"n": 2, "body": True}
    assert [log.partition(" at ")[2] for log in logs if "replaying" in log] == [
        "run[0]: replaying signal 1",
        "run[0]: replaying signal 2",
    ]
    assert host.page.read().executing == 0


def test_a_body_that_closes_what_wakes_the_loop_ends_a_worker_at_home_too(host: Host, gates: list[int]) -> None:
    began, go_on = gates

    def eventfds() -> set[int]:
        links = {fd: f"/proc/self/fd/{fd}" for fd in map(int, os.listdir("/proc/self/fd"))}
        return {fd for fd, link in links.items() if os.path.exists(link) and "eventfd" in os.readlink(link)}

    def body(state: Any) -> None:
        os.eventfd_write(began, 1)
        os.eventfd_read(go_on)
        (own,) = eventfds() - set(state)
        os.close(own)
        state.append(os.open(os.devnull, os.O_RDONLY))
        assert state[-1] == own

    before = sorted(eventfds())
    host.start(flow("closes", run(body), initial_state=before))
    os.eventfd_read(began)
    (own,) = eventfds() - set(before)
    os.eventfd_write(go_on, 1)
    crashed = _error(host.hear(Crashed).error)
    assert (crashed.type, crashed.message, crashed.path) == ("OSError", pipe.TORN, "run")
    assert host.end() == exits.CRASHED
    assert os.readlink(f"/proc/self/fd/{own}") == os.devnull  # whose number it is now keeps it
    os.close(own)


# ------------------------------------------------------------------ back-pressure


def test_a_worker_whose_frames_are_not_read_stops_and_goes_on(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "FULL", 256 * 2**10)
    pad = "x" * 64 * 2**10
    host.start(flow("flood", repeat(set_state(lambda s: {"n": s["n"] + 1, "pad": pad})), initial_state={"n": 0}))
    before = host.page.read().looped
    poll = select.poll()
    poll.register(host._in, select.POLLIN)
    assert poll.poll()
    host.write(Stop("enough"))
    seen = []
    while not isinstance(frame := host.read(), Stopped):
        seen.append(frame.seq)
    assert seen == list(range(1, len(seen) + 1)) and frame.seq == len(seen) + 1
    assert host.end() == exits.ENDED
    assert host.page.read().looped >= before


def test_a_full_worker_notices_that_its_host_is_gone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "FULL", 0)
    host.start(
        flow("flood", repeat(set_state(lambda s: {"n": s["n"] + 1, "pad": "x" * 2**17})), initial_state={"n": 0})
    )
    host.hang_up()
    assert host.end() == exits.HOST_GONE


def test_signals_beyond_the_rebase_log_wait_in_the_pipe(
    host: Host, gates: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caravela.flows.rebase.LOG_ENTRIES", 3)
    began, go_on = gates

    def body(state: Any) -> Ok:
        os.eventfd_write(began, 1)
        os.eventfd_read(go_on)
        return Ok(state)

    host.start(flow("logs", run(body), wait_until(lambda s: s["n"] == 9), initial_state={"n": 0}), None, 0)
    os.eventfd_read(began)
    for call in range(1, 10):
        host.signal(plus, call=call)
    assert [host.answer(call)["n"] for call in (1, 2, 3)] == [1, 2, 3]
    assert host.page.read().applied == 3
    os.eventfd_write(go_on, 1)
    assert [host.answer(call)["n"] for call in range(4, 10)] == [4, 5, 6, 7, 8, 9]
    assert payload.decode(host.hear(Done).state) == {"n": 9}


def test_the_last_frame_is_written_however_slowly_the_host_reads(host: Host) -> None:
    pad = "x" * 2**20
    host.start(flow("large", set_state(lambda s: pad), initial_state={}), None, 0)
    assert payload.decode(host.hear(Done).state) == pad
    assert host.end() == exits.ENDED


def test_a_host_that_does_not_read_the_last_frame_does_not_keep_the_worker(host: Host) -> None:
    host.start(flow("large", set_state(lambda s: "x" * 2**20), initial_state={}), None, 0)
    poll = select.poll()
    poll.register(host._in, select.POLLIN)
    assert poll.poll()
    os.close(host._in)
    host._in = -1
    assert host.end() == exits.HOST_GONE


# ------------------------------------------------------------------ surroundings


def test_a_host_and_a_zygote_encode_the_same_surroundings_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    assert boot.surroundings() == host_boot.environment()


def test_only_what_differs_is_adopted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "environ", environ := Environ({"SAME": "1", "OLD": "2", "CHANGED": "3"}))
    monkeypatch.setattr(sys, "path", ["here"])
    monkeypatch.setattr(sys, "argv", ["-c"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    wanted = {"SAME": "1", "CHANGED": "4", "NEW": "5"}
    boot.adopt({"path": ["there"], "cwd": "/", "environ": wanted, "argv": ["x", "y"], "log_level": 10})
    assert (sys.path, os.getcwd(), environ, sys.argv) == (["there"], "/", wanted, ["x", "y"])
    assert logging.getLogger().level == 10
    assert environ.touched == {"OLD", "CHANGED", "NEW"}


class Environ(dict[str, str]):
    def __init__(self, initial: dict[str, str]) -> None:
        super().__init__(initial)
        self.touched: set[str] = set()

    def __setitem__(self, name: str, value: str) -> None:
        self.touched.add(name)
        super().__setitem__(name, value)

    def __delitem__(self, name: str) -> None:
        self.touched.add(name)
        super().__delitem__(name)
