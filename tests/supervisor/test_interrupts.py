"""Signal handlers of the host run where its main thread waits or leaves, never between two steps."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

import pytest

from caravela.supervisor import interrupts
from caravela.supervisor.interrupts import foreign, interruptible, uninterrupted, was_interrupted


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = [signal.getsignal(number) for number in interrupts.PUT_OFF]
    yield
    for number, handler in zip(interrupts.PUT_OFF, before, strict=True):
        assert signal.getsignal(number) == handler
        signal.signal(number, handler)
    assert not (interrupts._main.inside or interrupts._main.came or interrupts._main.waits)


@pytest.fixture
def on() -> Iterator[Callable[[int, Any], None]]:
    """Handlers for the time of a test."""
    before = {}

    def on(number: int, handler: Any) -> None:
        before[number] = signal.signal(number, handler)

    yield on
    for number, handler in before.items():
        signal.signal(number, handler)


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


class TimeUp(Exception):
    pass


def time_up(*_: object) -> None:
    raise TimeUp


def done_until(error: type[BaseException], *steps: Callable[[], object]) -> int:
    """How many steps were done in a context that ``error`` came out of."""
    done = 0

    def do() -> None:
        nonlocal done
        with uninterrupted():
            for step in steps:
                step()
                done += 1

    with pytest.raises(error):
        do()
    return done


def nothing() -> None:
    pass


def wait() -> bool:
    """For 10 s."""
    lock = threading.Lock()
    lock.acquire()
    return interruptible(lock.acquire, True, 10.0)


def test_it_raises_at_the_end() -> None:
    assert done_until(KeyboardInterrupt, ctrl_c, nothing) == 2


def test_it_raises_where_somebody_waits() -> None:
    assert done_until(KeyboardInterrupt, ctrl_c, nothing, wait) == 2


def test_it_ends_a_wait() -> None:
    cleared_up = []

    def waiting() -> None:
        threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()
        try:
            wait()
        finally:
            ctrl_c()  # put off again: the wait is over
            cleared_up.append(True)

    assert done_until(KeyboardInterrupt, waiting) == 0
    assert cleared_up


def test_a_second_one_is_put_off_too() -> None:
    assert done_until(KeyboardInterrupt, ctrl_c, ctrl_c, nothing) == 3


def test_in_code_of_the_users_a_second_one_is_not_put_off() -> None:
    assert done_until(KeyboardInterrupt, ctrl_c, partial(foreign, ctrl_c), nothing) == 1


def test_a_part_of_another_in_code_of_the_users_is_not_the_users() -> None:
    def put() -> None:
        with uninterrupted():
            ctrl_c()
            parts.append("all of it")

    parts: list[str] = []
    assert done_until(KeyboardInterrupt, ctrl_c, partial(foreign, put), nothing) == 3
    assert parts


def test_one_at_the_end_of_a_wait_is_not_lost() -> None:
    assert done_until(KeyboardInterrupt, lambda: interruptible(ctrl_c)) == 0


def test_inside_of_another_it_is_the_outer_one_that_counts() -> None:
    def inner() -> None:
        with uninterrupted():
            ctrl_c()

    assert done_until(KeyboardInterrupt, inner, nothing) == 2


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGTERM, signal.SIGUSR1])
def test_so_are_others(on: Callable[[int, Any], None], number: int) -> None:
    on(number, time_up)
    assert done_until(TimeUp, lambda: signal.raise_signal(number), nothing) == 2


def test_a_handler_that_returns_does_not_end_the_wait(on: Callable[[int, Any], None]) -> None:
    lock, seen = threading.Lock(), []
    lock.acquire()

    def release(number: int, frame: object) -> None:
        seen.append(number)
        lock.release()

    on(signal.SIGTERM, release)
    with uninterrupted():
        signal.raise_signal(signal.SIGTERM)
        assert not seen
        assert interruptible(lock.acquire, True, 10.0)
    assert seen == [signal.SIGTERM]


def test_a_handler_may_call_in_while_we_wait(on: Callable[[int, Any], None]) -> None:
    """Inside of it nothing is interrupted either; what came meanwhile ends the outer wait."""
    seen = []

    def call_in(*_: object) -> None:
        with uninterrupted():
            ctrl_c()
            seen.append("all of it")

    on(signal.SIGTERM, call_in)
    assert done_until(KeyboardInterrupt, lambda: signal.raise_signal(signal.SIGTERM), wait) == 1
    assert seen


def test_a_handler_that_waits_in_here_runs_once(on: Callable[[int, Any], None]) -> None:
    seen = []

    def wait_too(*_: object) -> None:
        seen.append(True)
        with uninterrupted():
            interruptible(bool)

    on(signal.SIGTERM, wait_too)
    with uninterrupted():
        signal.raise_signal(signal.SIGTERM)
        interruptible(bool)
    assert seen == [True]


def test_a_handler_may_change_handlers(on: Callable[[int, Any], None]) -> None:
    on(signal.SIGUSR1, lambda *_: signal.signal(signal.SIGUSR1, signal.SIG_IGN))
    with uninterrupted():
        signal.raise_signal(signal.SIGUSR1)
        interruptible(bool)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def test_all_that_came_are_run_although_one_raises(on: Callable[[int, Any], None]) -> None:
    seen: list[int] = []
    on(signal.SIGALRM, time_up)
    on(signal.SIGTERM, lambda number, _: seen.append(number))
    came = [partial(signal.raise_signal, number) for number in (signal.SIGTERM, signal.SIGALRM)]
    assert done_until(TimeUp, *came) == 2
    assert seen == [signal.SIGTERM]


def test_handlers_that_raise_while_we_leave_harm_no_others(on: Callable[[int, Any], None]) -> None:
    """An alarm at every place of the way out: afterwards a Ctrl-C is one, and the next call puts all back."""
    on(signal.SIGALRM, time_up)
    before = signal.getsignal(signal.SIGINT)
    moment, passed = 0, False
    while not passed:
        moment += 1
        places = count(1)

        def profile(frame: Any, event: str, _: object, moment: int = moment, places: Any = places) -> None:
            ours = frame.f_globals["__name__"] == interrupts.__name__ and event in ("call", "c_return")
            if ours and next(places) == moment:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGALRM)

        sys.setprofile(profile)
        try:
            with uninterrupted():
                pass
        except TimeUp:
            pass
        finally:
            passed = next(places) < moment
            sys.setprofile(None)
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()
        with uninterrupted():
            pass
        assert signal.getsignal(signal.SIGINT) is before
    assert moment > 10


def test_ours_put_back_by_a_handler_passes_on(on: Callable[[int, Any], None]) -> None:
    def exchange(*_: object) -> None:
        found.append(signal.signal(signal.SIGINT, signal.SIG_IGN))

    found: list[Any] = []
    before = signal.getsignal(signal.SIGINT)
    on(signal.SIGUSR1, exchange)
    with uninterrupted():
        signal.raise_signal(signal.SIGUSR1)
        interruptible(bool)
    signal.signal(signal.SIGINT, found[0])
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()
    with uninterrupted():
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_a_child_that_another_thread_forks_hears_every_ctrl_c(on: Callable[[int, Any], None]) -> None:
    def fork() -> None:
        pid = os.fork()
        if not pid:
            heard = 0
            for _ in range(3):
                with suppress(KeyboardInterrupt):
                    ctrl_c()
                    heard -= 1
                heard += 1
            os._exit(heard)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        done.release()

    statuses: list[int] = []
    done = threading.Lock()
    done.acquire()
    with uninterrupted():
        ctrl_c_later = threading.Thread(target=fork)
        ctrl_c_later.start()
        interruptible(done.acquire)
        ctrl_c_later.join()
    assert statuses == [3]


def test_other_threads_change_nothing() -> None:
    found: list[Any] = []

    def look() -> None:
        with uninterrupted():
            found.append(signal.getsignal(signal.SIGINT))
            found.append(interruptible(int))

    other = threading.Thread(target=look)
    other.start()
    other.join()
    assert found == [signal.getsignal(signal.SIGINT), 0]


def test_what_nobody_handles_stays_so(on: Callable[[int, Any], None]) -> None:
    on(signal.SIGINT, signal.SIG_IGN)
    with uninterrupted():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        ctrl_c()


@pytest.mark.parametrize(
    ("number", "handler", "error"),
    [
        (signal.SIGINT, signal.default_int_handler, KeyboardInterrupt),
        (signal.SIGTERM, lambda *_: sys.exit(3), SystemExit),
        (signal.SIGALRM, time_up, TimeUp),
    ],
    ids=["Ctrl-C", "sys.exit", "alarm"],
)
def test_one_that_strikes_code_of_the_users_is_raised_by_us(
    on: Callable[[int, Any], None], number: int, handler: Any, error: type[BaseException]
) -> None:
    def put() -> None:
        raised = None
        try:
            foreign(signal.raise_signal, number)
        except BaseException as error:
            raised = error
        assert raised and was_interrupted(raised)

    on(number, handler)
    assert done_until(error, lambda: signal.raise_signal(number), put, nothing) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError()], ids=repr)
def test_what_the_user_raises_himself_is_his(error: BaseException) -> None:
    assert not was_interrupted(error)


def test_wherever_it_comes_handlers_are_put_back(interrupted: Callable[[int, Callable[[], object]], bool]) -> None:
    before = signal.getsignal(signal.SIGINT)

    def call() -> None:
        with uninterrupted():
            interruptible(bool)

    moment = 0
    while interrupted(moment := moment + 1, call):
        assert signal.getsignal(signal.SIGINT) is before
        assert not (interrupts._main.inside or interrupts._main.came or interrupts._main.waits), moment
    assert moment > 10
