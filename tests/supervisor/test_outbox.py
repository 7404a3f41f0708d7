"""One flow's FIFO to its worker, on real pipes, with a reader that does as it is told."""

import fcntl
import os
import select
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from caravela.errors import FlowBusy
from caravela.protocol import messages
from caravela.protocol.codec import Decoder, encode
from caravela.protocol.functions import Held, Portable
from caravela.supervisor.calls import Call
from caravela.supervisor.entries import OVERHEAD, Asking, Sending
from caravela.supervisor.loop import Loop
from caravela.supervisor.outbox import BATCH, LIMIT, Outbox

STOP = messages.Stop("stop")
PIPE = 4096
"""Bytes that a pipe holds here."""


class Worker:
    """The other end of a pipe."""

    def __init__(self) -> None:
        self.reads, self.writes = os.pipe()
        fcntl.fcntl(self.writes, fcntl.F_SETPIPE_SZ, PIPE)
        os.set_blocking(self.reads, False)
        os.set_blocking(self.writes, False)
        self.raw = b""
        self._decoder = Decoder("to_worker")

    def read(self) -> bytes:
        """All that is in the pipe now."""
        found = b""
        while True:
            try:
                data = os.read(self.reads, 65536)
            except BlockingIOError:
                break
            if not data:
                break
            found += data
        self.raw += found
        return found

    def messages(self, boot: bytes = b"") -> list[messages.ToWorker]:
        """What it has read so far, decoded: a cut or torn frame would raise, or stay behind."""
        assert self.raw.startswith(boot)
        data, self.raw = self.raw[len(boot) :], b""
        return self._decoder.feed(data)  # type: ignore[return-value]  # the decoder knows its union

    def die(self) -> None:
        for fd in (self.reads, self.writes):
            if fd >= 0:
                os.close(fd)
        self.reads = self.writes = -1

    def hang_up(self) -> None:
        os.close(self.reads)
        self.reads = -1


class Bench:
    def __init__(self) -> None:
        self.watched: set[int] = set()
        self.outbox = Outbox(self._watch, self._unwatch)
        self.workers: list[Worker] = []

    def _watch(self, fd: int) -> None:
        assert fd not in self.watched
        self.watched.add(fd)

    def _unwatch(self, fd: int) -> None:
        self.watched.remove(fd)

    def worker(self, boot: bytes = b"", *, ready: bool = True) -> Worker:
        worker = Worker()
        self.workers.append(worker)
        self.outbox.attach(worker.writes, boot, Held())
        if ready:
            self.outbox.release()
        return worker

    def detach(self) -> int:
        signals = self.outbox.detach()
        assert not self.watched
        return signals

    def flush(self, worker: Worker) -> list[messages.ToWorker]:
        """Read and pump until nothing moves any more."""
        worker.read()
        while self.watched:
            self.outbox.pump()
            if not worker.read():
                break
        return worker.messages()

    def put(self, entry: Sending | Asking, patience: float = 0.0) -> bool:
        return self.outbox.put(entry, lambda: patience, busy)


def busy(waiting: int) -> FlowBusy:
    return FlowBusy("flow", waiting, "waiting")


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.detach()
    for worker in bench.workers:
        worker.die()


def signal(text: bytes, size: int = 0, call: Call | None = None, needs: tuple[messages.Code, ...] = ()) -> Sending:
    """``size``: of its function's payload, which is enough of ``text`` to fill it."""
    data = (text * (size // len(text) + 1))[: max(size, len(text))]
    return Sending(Portable(data, needs), None, call)


def names(received: list[messages.ToWorker]) -> list[bytes | messages.ToWorker]:
    """First bytes of the signals; what is none stays."""
    return [message.function[:1] if isinstance(message, messages.Signal) else message for message in received]


@dataclass(slots=True)
class Heavy:
    """Says that it is large, so that no test needs to move megabytes."""

    size: int
    name: bytes = b"H"
    withdrawn: bool = False
    sends: int = 0

    needs: tuple[messages.Code, ...] = ()
    numbered: bool = True

    def frame(self, number: int) -> bytes:
        return Sending(Portable(self.name * (self.sends or 1)), None).frame(number)

    def written(self) -> None:
        pass


# ------------------------------------------------------------------ order and numbers


def test_what_has_room_is_written_at_once(bench: Bench) -> None:
    worker = bench.worker()
    assert bench.put(signal(b"a")) and bench.put(signal(b"b"))
    worker.read()
    assert worker.messages() == [messages.Signal(1, 0, b"a", b""), messages.Signal(2, 0, b"b", b"")]
    assert bench.outbox.waiting == 0 and not bench.watched


def test_the_rest_waits_for_room(bench: Bench) -> None:
    worker = bench.worker()
    for name in (b"a", b"b", b"c"):
        bench.put(signal(name, 20_000))
    assert bench.watched == {worker.writes} and bench.outbox.waiting == 3 * (20_000 + OVERHEAD)
    received = bench.flush(worker)
    assert [message.no for message in received if isinstance(message, messages.Signal)] == [1, 2, 3]
    assert received[0] == messages.Signal(1, 0, b"a" * 20_000, b"")
    assert names(received) == [b"a", b"b", b"c"]
    assert bench.outbox.waiting == 0 and not bench.watched


def test_arguments_and_needs_go_with_their_signal(bench: Bench) -> None:
    worker = bench.worker()
    code, more = messages.Code(1, b"code"), messages.Code(2, b"more")
    bench.put(Sending(Portable(b"a", (code,)), Portable(b"args", (code, more))))
    bench.put(Sending(Portable(b"b", (code,)), None))
    worker.read()
    assert worker.messages() == [code, more, messages.Signal(1, 0, b"a", b"args"), messages.Signal(2, 0, b"b", b"")]


def test_threads_do_not_tear_frames(bench: Bench) -> None:
    """Eight threads, entries of up to 20 KB, a pipe of 4 KiB, and a real loop that pumps."""
    threads, each = 8, 60
    loop = Loop("test-loop")
    outbox = Outbox(lambda fd: loop.watch_writable(fd, outbox.pump), loop.unwatch_writable)
    worker = Worker()
    bench.workers.append(worker)
    outbox.attach(worker.writes, b"", Held())
    outbox.release()
    loop.start()
    failed: list[BaseException] = []

    def put(thread: int) -> None:
        try:
            for n in range(each):
                size = 1 + 20_000 * ((n + thread) % 4) // 3
                entry = Sending(Portable(bytes([thread]) * size), Portable(bytes([n])))
                assert outbox.put(entry, lambda: 10.0, busy)
        except BaseException as error:
            failed.append(error)

    writers = [threading.Thread(target=put, args=(n,)) for n in range(threads)]
    for writer in writers:
        writer.start()
    received: list[messages.Signal] = []
    poll = select.poll()
    poll.register(worker.reads, select.POLLIN)
    while len(received) < threads * each and poll.poll(10_000):
        worker.read()
        received += worker.messages()  # type: ignore[arg-type]  # nothing else was put
    for writer in writers:
        writer.join()
    loop.post(loop.end)
    loop.thread.join()
    assert not failed
    assert [message.no for message in received] == list(range(1, threads * each + 1))
    for thread in range(threads):
        mine = [message for message in received if message.function[0] == thread]
        assert [message.args[0] for message in mine] == list(range(each))
        assert all(message.function == bytes([thread]) * len(message.function) for message in mine)
    assert outbox.waiting == 0 and outbox.detach() == threads * each


# ------------------------------------------------------------------ boot


def test_nothing_but_boot_bytes_before_release(bench: Bench) -> None:
    bench.put(signal(b"a"))
    worker = bench.worker(b"boot" * 3000, ready=False)
    bench.put(signal(b"b"))
    while bench.watched:
        worker.read()
        bench.outbox.pump()
    worker.read()
    assert worker.raw == b"boot" * 3000
    bench.put(signal(b"c"))
    assert not worker.read()
    bench.outbox.release()
    worker.read()
    assert names(worker.messages(b"boot" * 3000)) == [b"a", b"b", b"c"]


def test_stop_reaches_a_worker_that_boots(bench: Bench) -> None:
    worker = bench.worker(b"boot" * 3000, ready=False)
    bench.put(signal(b"a"))
    bench.outbox.overtake(Asking(STOP))
    while bench.watched:
        worker.read()
        bench.outbox.pump()
    worker.read()
    assert worker.messages(b"boot" * 3000) == [STOP]


# ------------------------------------------------------------------ a stop overtakes


def test_stop_overtakes_at_a_frame_boundary(bench: Bench) -> None:
    worker = bench.worker()
    for name, size in ((b"a", 20_000), (b"b", 1), (b"c", 20_000)):
        bench.put(signal(name, size))
    bench.outbox.overtake(Asking(STOP))
    assert names(bench.flush(worker)) == [b"a", STOP, b"b", b"c"]


def test_stop_overtakes_a_large_entry_that_has_not_begun(bench: Bench) -> None:
    worker = bench.worker()
    around = len(encode(messages.Signal(1, 0, b"a" * 8000, b""))) - 8000
    bench.put(signal(b"a", 2 * PIPE - around))
    bench.put(signal(b"b"))
    bench.put(signal(b"c", BATCH))
    worker.read()
    bench.outbox.pump()  # the second half of a fills the pipe: b is made and has not begun
    bench.outbox.overtake(Asking(STOP))
    assert names(bench.flush(worker)) == [b"a", b"b", STOP, b"c"]


def test_nobody_to_stop(bench: Bench) -> None:
    bench.outbox.overtake(Asking(STOP))
    worker = bench.worker()
    assert bench.outbox.waiting == 0 and bench.flush(worker) == []


# ------------------------------------------------------------------ from one worker to the next


def test_a_cut_entry_goes_whole_to_the_next_worker(bench: Bench) -> None:
    first = bench.worker()
    for name in (b"a", b"b", b"c"):
        bench.put(signal(name, 6_000))
    first.read()
    bench.outbox.pump()  # all of a, a part of b
    first.read()
    assert names(first.messages()) == [b"a"]
    assert bench.detach() == 1
    assert bench.outbox.waiting == 2 * (6_000 + OVERHEAD)
    second = bench.worker(b"boot", ready=False)
    assert second.read() == b"boot"
    assert second.messages(b"boot") == []
    bench.outbox.release()
    received = bench.flush(second)
    assert [message.no for message in received if isinstance(message, messages.Signal)] == [1, 2]
    assert names(received) == [b"b", b"c"] and bench.outbox.waiting == 0
    assert bench.detach() == 2


def test_frames_are_made_anew_for_the_next_worker(bench: Bench) -> None:
    code = messages.Code(1, b"code")
    first = bench.worker()
    bench.put(signal(b"a", needs=(code,)))
    first.read()
    assert first.messages() == [code, messages.Signal(1, 0, b"a", b"")]
    bench.put(signal(b"b", 20_000, needs=(code,)))
    bench.detach()
    second = bench.worker()
    assert bench.flush(second) == [code, messages.Signal(1, 0, b"b" * 20_000, b"")]


def test_what_was_for_one_worker_only_does_not_reach_the_next(bench: Bench) -> None:
    """Neither a Stop that waits nor one whose frames are made."""
    bench.worker()
    bench.put(signal(b"a", 4_080))  # as good as full
    bench.outbox.overtake(Asking(messages.Interest(0)))
    bench.outbox.overtake(Asking(STOP))
    bench.put(signal(b"b"))
    assert bench.watched
    bench.detach()
    second = bench.worker()
    assert names(bench.flush(second)) == [b"b"]
    assert bench.outbox.waiting == 0


def test_written_says_what_the_worker_has_in_full(bench: Bench) -> None:
    first, calls = bench.worker(), [Call("update") for _ in range(3)]
    query = Call("get_state")
    bench.put(Asking(messages.Query(query.id), query))
    for call in calls:
        bench.put(signal(b"u", 3_000, call))
    assert query.written and [call.written for call in calls] == [True, False, False]
    first.read()
    assert bench.detach() == 1  # a query is no signal
    second = bench.worker()
    received = bench.flush(second)
    assert [message.call for message in received if isinstance(message, messages.Signal)] == [c.id for c in calls[1:]]
    assert all(call.written for call in calls) and bench.detach() == 2


def test_put_back_goes_first(bench: Bench) -> None:
    call = Call("get_state")
    bench.put(signal(b"a"))
    bench.outbox.put_back(Asking(messages.Query(call.id), call))
    worker = bench.worker()
    assert names(bench.flush(worker)) == [messages.Query(call.id), b"a"]
    assert bench.outbox.waiting == 0


def test_withdrawn_entries_are_skipped(bench: Bench) -> None:
    calls = [Call("update") for _ in range(3)]
    for call in calls:
        bench.put(signal(b"u", 100, call))
    calls[1].given_up = True
    worker = bench.worker()
    received = bench.flush(worker)
    assert [(m.no, m.call) for m in received if isinstance(m, messages.Signal)] == [(1, calls[0].id), (2, calls[2].id)]
    assert bench.outbox.waiting == 0 and not calls[1].written


def test_only_withdrawn_entries_leave_nothing_to_watch(bench: Bench) -> None:
    first = bench.worker()
    call = Call("update")
    bench.put(signal(b"a", 20_000))
    bench.put(signal(b"u", 100, call))
    call.given_up = True
    assert names(bench.flush(first)) == [b"a"] and not bench.watched and bench.outbox.waiting == 0


# ------------------------------------------------------------------ back-pressure


class Blocked:
    """A thread in ``put``, past the point where it has found the outbox full."""

    def __init__(self, outbox: Outbox, entry: Sending | Heavy) -> None:
        self.result: bool | BaseException | None = None
        waiting = threading.Event()

        def patience() -> float:
            waiting.set()  # under the lock, which it gives up only to wait
            return 10.0

        def put() -> None:
            try:
                self.result = outbox.put(entry, patience, busy)
            except BaseException as error:
                self.result = error

        self.thread = threading.Thread(target=put, daemon=True)
        self.thread.start()
        assert waiting.wait(10.0)

    def join(self) -> bool | BaseException | None:
        self.thread.join(5.0)
        assert not self.thread.is_alive()
        return self.result


def test_one_entry_may_exceed_the_limit(bench: Bench) -> None:
    bench.put(signal(b"a"))
    assert bench.outbox.put(Heavy(3 * LIMIT), lambda: 0.0, busy)
    assert bench.outbox.waiting == 3 * LIMIT + 1 + OVERHEAD


def test_full_without_patience_is_busy_at_once(bench: Bench) -> None:
    bench.outbox.put(Heavy(LIMIT), lambda: 0.0, busy)
    with pytest.raises(FlowBusy) as raised:
        bench.put(signal(b"a"))
    assert raised.value.waiting == LIMIT
    assert bench.outbox.waiting == LIMIT


def test_busy_after_the_timeout(bench: Bench) -> None:
    bench.outbox.put(Heavy(LIMIT), lambda: 0.0, busy)
    with pytest.raises(FlowBusy):
        bench.put(signal(b"a"), patience=0.01)


def test_patience_is_asked_only_when_it_is_needed(bench: Bench) -> None:
    bench.outbox.put(Heavy(LIMIT - 1), lambda: pytest.fail("there was room"), busy)
    assert bench.outbox.put(signal(b"a"), lambda: pytest.fail("there was room"), busy)


def test_waiters_go_on_when_it_drains(bench: Bench) -> None:
    worker = bench.worker()
    bench.outbox.put(Heavy(LIMIT, sends=10_000), lambda: 0.0, busy)
    blocked = [Blocked(bench.outbox, signal(b"b")) for _ in range(4)]
    received = bench.flush(worker)
    assert [thread.join() for thread in blocked] == [True] * 4
    assert names(received + bench.flush(worker)) == [b"H", *[b"b"] * 4]


def test_waiters_go_on_when_a_withdrawn_entry_makes_room(bench: Bench) -> None:
    heavy = Heavy(LIMIT)
    bench.outbox.put(heavy, lambda: 0.0, busy)
    blocked = Blocked(bench.outbox, signal(b"b"))
    heavy.withdrawn = True
    worker = bench.worker()
    assert blocked.join() is True
    assert names(bench.flush(worker)) == [b"b"]


def test_what_is_withdrawn_takes_no_room(bench: Bench) -> None:
    for _ in range(9):
        bench.outbox.put(Heavy(LIMIT, withdrawn=True), lambda: 0.0, busy)
    assert bench.put(signal(b"b")) and bench.outbox.waiting < LIMIT
    assert names(bench.flush(bench.worker())) == [b"b"]


def test_waiters_wait_on_while_a_worker_dies(bench: Bench) -> None:
    first = bench.worker()
    bench.outbox.put(Heavy(LIMIT, sends=10_000), lambda: 0.0, busy)
    blocked = Blocked(bench.outbox, signal(b"b"))
    bench.detach()
    first.die()
    second = bench.worker()
    assert names(bench.flush(second)[:1]) == [b"H"]
    assert blocked.join() is True


@pytest.mark.parametrize("half_written", [False, True])
def test_waiters_are_let_go_at_the_end(bench: Bench, half_written: bool) -> None:
    if half_written:
        bench.worker()
    bench.outbox.put(Heavy(LIMIT, sends=10_000), lambda: 0.0, busy)
    blocked = [Blocked(bench.outbox, signal(b"b")) for _ in range(3)]
    bench.outbox.close()
    assert [thread.join() for thread in blocked] == [False] * 3
    bench.detach()
    assert bench.outbox.waiting == 0


# ------------------------------------------------------------------ the end


def test_nothing_is_taken_after_the_end(bench: Bench) -> None:
    bench.put(signal(b"a"))
    bench.outbox.close()
    assert not bench.put(signal(b"b"))
    bench.outbox.put_back(signal(b"c"))
    assert bench.outbox.waiting == 0
    assert bench.flush(bench.worker()) == []


def test_the_end_cuts_no_frame(bench: Bench) -> None:
    """A worker that has said its last word may still read; the stream stays one of whole frames."""
    worker = bench.worker()
    bench.put(signal(b"a", 20_000))
    bench.put(signal(b"b", 20_000))
    bench.outbox.close()
    assert names(bench.flush(worker)) == [b"a"]
    assert bench.outbox.waiting == 0


def test_nothing_is_kept_of_an_ended_flow(bench: Bench) -> None:
    bench.worker()
    bench.put(signal(b"a", 20_000))
    bench.outbox.overtake(Asking(STOP))
    bench.outbox.close()
    bench.detach()
    assert bench.outbox.waiting == 0
    assert bench.flush(bench.worker()) == []


def test_a_worker_that_hung_up_is_no_error(bench: Bench) -> None:
    first = bench.worker()
    first.hang_up()
    assert bench.put(signal(b"a")) and bench.put(signal(b"b"))
    bench.outbox.overtake(Asking(STOP))
    bench.outbox.pump()
    assert not bench.watched
    assert bench.detach() == 0
    second = bench.worker()
    assert names(bench.flush(second)) == [b"a", b"b"]


def test_a_worker_that_hangs_up_in_the_midst_of_an_entry(bench: Bench) -> None:
    first = bench.worker(b"boot")
    bench.put(signal(b"a", 20_000))
    assert bench.watched
    first.hang_up()
    bench.outbox.pump()
    assert not bench.watched
    assert bench.detach() == 0
    assert names(bench.flush(bench.worker())) == [b"a"]


def test_a_worker_that_hung_up_before_its_boot(bench: Bench) -> None:
    worker = Worker()
    bench.workers.append(worker)
    worker.hang_up()
    bench.outbox.attach(worker.writes, b"boot", Held())
    bench.put(signal(b"a"))
    assert bench.detach() == 0
    assert names(bench.flush(bench.worker())) == [b"a"]


def test_a_late_pump_finds_nothing_to_do(bench: Bench) -> None:
    bench.outbox.pump()
    worker = bench.worker()
    bench.put(signal(b"a", 20_000))
    bench.detach()
    worker.read()
    bench.outbox.pump()
    assert not worker.read() and not bench.watched
