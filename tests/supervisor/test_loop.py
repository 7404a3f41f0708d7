"""The supervisor's one thread: posts, timers, and fds that change hands."""

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from caravela.supervisor.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    """Not yet started: what a test posts before it starts it happens in one go."""
    loop = Loop("test-loop")
    yield loop
    if loop.thread.ident is None:
        loop.start()
    loop.post(loop.end)
    loop.thread.join()


@pytest.fixture
def pipe() -> Iterator[Callable[[], tuple[int, int]]]:
    made: list[tuple[int, os.stat_result]] = []

    def make() -> tuple[int, int]:
        ends = os.pipe()
        made.extend((fd, os.fstat(fd)) for fd in ends)
        return ends

    yield make
    for fd, stat in made:
        try:
            if os.path.samestat(os.fstat(fd), stat):
                os.close(fd)
        except OSError:
            pass  # the test closed it


def done(loop: Loop) -> None:
    """Until all is done that was posted before, and what that left to be done between two batches."""
    passed = threading.Event()
    loop.post(lambda: loop.between_batches(passed.set))
    assert passed.wait(10.0)


def polled(loop: Loop, canary: int = -1) -> None:
    """Until the loop has looked at all fds once more. ``canary``: an eventfd, where a new fd would be in the way."""
    passed = threading.Event()
    if canary < 0:
        canary = os.eventfd(0)
    os.eventfd_write(canary, 1)

    def ready() -> None:
        loop.unwatch(canary, close=True)
        passed.set()

    loop.post(lambda: loop.watch(canary, ready))
    assert passed.wait(10.0)
    done(loop)


# ------------------------------------------------------------------ posts


def test_posts_are_done_in_order_on_the_thread(loop: Loop) -> None:
    seen: list[tuple[int, threading.Thread]] = []
    loop.start()
    for n in range(1000):
        loop.post(lambda n=n: seen.append((n, threading.current_thread())))  # type: ignore[misc]
    done(loop)
    assert seen == [(n, loop.thread) for n in range(1000)]


def test_posts_of_several_threads_keep_the_order_of_each(loop: Loop) -> None:
    seen: list[tuple[int, int]] = []
    loop.start()

    def post(thread: int) -> None:
        for n in range(300):
            loop.post(partial(seen.append, (thread, n)))

    threads = [threading.Thread(target=post, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done(loop)
    assert len(seen) == 8 * 300
    for thread_no in range(8):
        assert [n for thread, n in seen if thread == thread_no] == list(range(300))


def test_a_post_by_a_post_is_done_too(loop: Loop) -> None:
    seen: list[str] = []
    finished = threading.Event()

    def outer() -> None:
        loop.post(lambda: (seen.append("inner"), finished.set()))  # type: ignore[func-returns-value]
        seen.append("outer")

    loop.start()
    loop.post(outer)
    assert finished.wait(10.0)
    assert seen == ["outer", "inner"]


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_an_error_is_logged_and_ends_nothing(
    loop: Loop, error: BaseException, caplog: pytest.LogCaptureFixture, pipe: Callable[[], tuple[int, int]]
) -> None:
    def fail() -> None:
        raise error

    reads, writes = pipe()
    met = threading.Event()

    def ready() -> None:
        os.read(reads, 1)
        met.set()
        raise error

    loop.start()
    loop.post(fail)
    loop.post(lambda: loop.between_batches(fail))
    loop.post(lambda: void(loop.later(0.0, fail)))
    loop.post(lambda: loop.watch(reads, ready))
    os.write(writes, b"x")
    assert met.wait(10.0)
    late = threading.Event()
    loop.post(lambda: void(loop.later(0.0, late.set)))  # behind the other timer
    assert late.wait(10.0)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [type(error)] * 4


def void(_: object) -> None:
    pass


def test_what_is_posted_after_the_end_is_dropped(loop: Loop) -> None:
    loop.start()
    loop.post(loop.end)
    loop.thread.join()
    seen: list[int] = []
    loop.post(lambda: seen.append(1))
    assert not seen


def test_posts_while_the_loop_ends(loop: Loop) -> None:
    """Nobody writes to the number of a closed fd: it may be another's already."""
    failed: list[BaseException] = []
    begun = threading.Barrier(5)

    def post() -> None:
        begun.wait()
        try:
            while loop.thread.is_alive():
                loop.post(lambda: None)
            loop.post(lambda: None)
        except BaseException as error:
            failed.append(error)

    loop.start()
    threads = [threading.Thread(target=post) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun.wait()
    loop.post(loop.end)
    for thread in threads:
        thread.join()
    assert not failed


def test_a_loop_in_a_forked_child_lets_its_fds_go() -> None:
    before = set(os.listdir("/proc/self/fd"))
    loop = Loop("never started")
    loop.forget()
    loop.forget()
    loop.post(lambda: None)
    assert set(os.listdir("/proc/self/fd")) == before


# ------------------------------------------------------------------ timers


def test_timers_fire_in_the_order_of_their_times(loop: Loop) -> None:
    seen: list[str] = []
    finished = threading.Event()

    def arm() -> None:
        loop.later(0.02, finished.set)
        loop.later(0.01, partial(seen.append, "late"))
        loop.later(0.0, partial(seen.append, "early"))
        loop.later(0.005, partial(seen.append, "middle"))

    loop.post(arm)
    loop.start()
    assert finished.wait(10.0)
    assert seen == ["early", "middle", "late"] and not loop._calls


def test_timers_of_one_moment_fire_in_the_order_in_which_they_were_set(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    finished = threading.Event()

    def arm() -> None:
        with monkeypatch.context() as patch:
            patch.setattr("caravela.supervisor.loop.time.monotonic", lambda: 0.0)
            for n in range(100):
                loop.later(0.0, partial(seen.append, n))
            loop.later(0.0, finished.set)

    loop.post(arm)
    loop.start()
    assert finished.wait(10.0)
    assert seen == list(range(100))


def test_a_cancelled_timer_does_not_fire(loop: Loop) -> None:
    seen: list[str] = []
    finished = threading.Event()

    def arm() -> None:
        cancel = loop.later(0.0, partial(seen.append, "cancelled"))
        loop.later(0.0, partial(seen.append, "kept"))
        cancel()
        cancel()
        fired = loop.later(0.001, partial(seen.append, "fired"))
        loop.later(0.002, fired)  # too late, and harmless
        loop.later(0.003, finished.set)

    loop.post(arm)
    loop.start()
    assert finished.wait(10.0)
    assert seen == ["kept", "fired"]


def test_a_timer_that_cancels_another_of_the_same_moment(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    finished = threading.Event()

    def arm() -> None:
        with monkeypatch.context() as patch:
            patch.setattr("caravela.supervisor.loop.time.monotonic", lambda: 0.0)
            loop.later(0.0, lambda: cancel())
            cancel = loop.later(0.0, partial(seen.append, "cancelled"))
            loop.later(0.0, finished.set)

    loop.post(arm)
    loop.start()
    assert finished.wait(10.0)
    assert not seen


# ------------------------------------------------------------------ fds


def test_watch_and_unwatch(loop: Loop, pipe: Callable[[], tuple[int, int]]) -> None:
    reads, writes = pipe()
    seen: list[bytes] = []
    came = threading.Semaphore(0)

    def ready() -> None:
        seen.append(os.read(reads, 1))
        came.release()

    loop.start()
    loop.post(lambda: loop.watch(reads, ready))
    for letter in (b"a", b"b"):
        os.write(writes, letter)
        assert came.acquire(timeout=10.0)
    loop.post(lambda: loop.unwatch(reads, close=False))
    done(loop)
    os.write(writes, b"c")
    polled(loop)
    assert seen == [b"a", b"b"] and os.read(reads, 1) == b"c"


def test_watched_and_unwatched_in_one_batch(loop: Loop, pipe: Callable[[], tuple[int, int]]) -> None:
    reads, writes = pipe()
    os.write(writes, b"x")
    called: list[str] = []

    def both() -> None:
        loop.watch(reads, partial(called.append, "first"))
        loop.unwatch(reads, close=False)
        loop.watch(reads, ready)
        loop.unwatch(reads, close=False)
        loop.unwatch(reads, close=True)

    def ready() -> None:
        called.append("second")

    loop.start()
    loop.post(both)
    polled(loop)
    assert not called and not loop._ready
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reads)


def test_an_fd_is_closed_after_the_batch(loop: Loop, pipe: Callable[[], tuple[int, int]]) -> None:
    reads, _ = pipe()
    open_then: list[bool] = []

    def unwatch() -> None:
        loop.unwatch(reads, close=True)
        os.fstat(reads)
        open_then.append(True)

    loop.start()
    loop.post(lambda: loop.watch(reads, lambda: None))
    loop.post(unwatch)
    polled(loop)
    assert open_then == [True]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reads)


def test_a_stale_event_reaches_neither_the_old_owner_nor_the_new(
    loop: Loop, pipe: Callable[[], tuple[int, int]]
) -> None:
    """Two fds are ready in one batch; whose turn comes first closes the other, whose number is given out again."""
    ends = [pipe(), pipe()]
    for _, writes in ends:
        os.write(writes, b"x")
    fresh_reads, fresh_writes = pipe()
    canary = os.eventfd(0)
    called: list[str] = []
    came = threading.Event()

    def old(mine: int, other: int) -> None:
        called.append("old")
        os.read(mine, 1)
        loop.unwatch(other, close=True)
        loop.between_batches(lambda: reuse(other))

    def reuse(number: int) -> None:
        os.dup2(fresh_reads, number, inheritable=False)
        loop.watch(number, lambda: new(number))

    def new(number: int) -> None:
        called.append("new")
        os.read(number, 1)
        loop.unwatch(number, close=True)
        came.set()

    first, second = (reads for reads, _ in ends)
    loop.post(lambda: loop.watch(first, lambda: old(first, second)))
    loop.post(lambda: loop.watch(second, lambda: old(second, first)))
    loop.start()
    polled(loop, canary)
    assert called == ["old"]
    os.write(fresh_writes, b"x")
    assert came.wait(10.0)
    assert called == ["old", "new"]
    done(loop)


def test_a_masked_fd_is_left_alone(loop: Loop, pipe: Callable[[], tuple[int, int]]) -> None:
    reads, writes = pipe()
    came = threading.Event()

    def ready() -> None:
        os.read(reads, 1)
        came.set()

    loop.start()
    loop.post(lambda: loop.watch(reads, ready))
    done(loop)
    loop.mask(reads)
    os.write(writes, b"x")
    polled(loop)
    assert not came.is_set()
    loop.unmask(reads)
    assert came.wait(10.0)


def test_writable_from_another_thread_while_the_loop_polls(loop: Loop, pipe: Callable[[], tuple[int, int]]) -> None:
    _, writes = pipe()
    loop.start()
    for _ in range(200):
        came = threading.Event()
        loop.watch_writable(writes, came.set)
        assert came.wait(10.0)
        loop.unwatch_writable(writes)
    done(loop)


def test_unwatched_writable_is_not_called_again(loop: Loop, pipe: Callable[[], tuple[int, int]]) -> None:
    _, writes = pipe()
    calls: list[int] = []
    came = threading.Event()

    def ready() -> None:
        calls.append(1)
        loop.unwatch_writable(writes)
        came.set()

    loop.start()
    loop.watch_writable(writes, ready)
    assert came.wait(10.0)
    polled(loop)
    assert calls == [1]


def test_what_is_posted_to_a_loop_that_has_ended_is_dropped(loop: Loop) -> None:
    loop.start()
    loop.post(loop.end)
    loop.thread.join()
    loop.post(loop.end)
    assert not loop._posted
