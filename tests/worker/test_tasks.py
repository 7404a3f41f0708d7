"""Bodies on threads and on the event loop, without a machine."""

import asyncio
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from caravela.errors import StepRaised
from caravela.flows.events import Raised, Returned, StartTask, TaskDone
from caravela.worker.tasks import TaskRunner, stopping


@pytest.fixture
def runner() -> Iterator[TaskRunner]:
    fds = len(os.listdir("/proc/self/fd"))
    threads = set(threading.enumerate())
    runner = TaskRunner()
    yield runner
    runner.close()
    assert set(threading.enumerate()) == threads
    assert len(os.listdir("/proc/self/fd")) == fds


def task(no: int, fn: Callable[..., Any], *args: Any, pooled: bool = False) -> StartTask:
    return StartTask(no, fn, args, "thread", "run[1]", 2, pooled)


def results(runner: TaskRunner, count: int = 1) -> list[TaskDone]:
    done: list[TaskDone] = []
    poll = select.poll()
    poll.register(runner.fileno(), select.POLLIN)
    while len(done) < count:
        poll.poll()
        done += runner.drain()
    return done


def result(runner: TaskRunner, fn: Callable[..., Any], *args: Any, pooled: bool = False) -> Any:
    runner.start(task(1, fn, *args, pooled=pooled))
    (done,) = results(runner)
    assert done.task == 1
    match done.result:
        case Returned(value):
            return value
        case Raised(error):
            return error


def fail(error: type[BaseException]) -> None:
    raise error("no")


async def fail_later(error: type[BaseException]) -> None:
    await asyncio.sleep(0)
    raise error("no")


class PlusOne:
    async def __call__(self, n: int) -> int:
        return n + 1


async def plus_one(n: int) -> int:
    await asyncio.sleep(0)
    return n + 1


def test_nothing_to_drain(runner: TaskRunner) -> None:
    assert runner.drain() == []


@pytest.mark.parametrize(
    "fn",
    [lambda n: n + 1, plus_one, partial(plus_one), PlusOne(), lambda n: plus_one(n)],
    ids=["sync", "async", "partial", "object", "lambda"],
)
@pytest.mark.parametrize("pooled", [False, True])
def test_what_a_body_returns(runner: TaskRunner, fn: Callable[[int], Any], pooled: bool) -> None:
    assert result(runner, fn, 1, pooled=pooled) == 2


@pytest.mark.parametrize("fn", [fail, fail_later])
@pytest.mark.parametrize(
    "error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError, asyncio.CancelledError]
)
def test_whatever_a_body_raises_is_a_result(
    runner: TaskRunner, fn: Callable[..., Any], error: type[BaseException]
) -> None:
    raised = result(runner, fn, error)
    assert isinstance(raised, StepRaised)
    assert raised.type.endswith(error.__name__)
    assert (raised.message, raised.path, raised.attempt) == ("no", "run[1]", 2)
    assert raised.traceback.splitlines()[1].endswith(f"in {fn.__name__}")  # none of the runner's own frames
    assert result(runner, plus_one, 1) == 2  # the thread and the event loop have survived


def test_bodies_that_stand_alone_share_one_thread(runner: TaskRunner) -> None:
    idents = {result(runner, threading.get_ident) for _ in range(5)}
    assert len(idents) == 1
    assert result(runner, threading.get_ident, pooled=True) not in idents


def test_a_pool_runs_at_once_and_is_used_again(runner: TaskRunner) -> None:
    together = threading.Barrier(8)
    for _ in range(3):
        for no in range(8):
            runner.start(task(no, together.wait, pooled=True))
        assert {done.task for done in results(runner, 8)} == set(range(8))
    assert len([thread for thread in threading.enumerate() if thread.name == "caravela body"]) == 8


def test_a_body_given_up_does_not_hold_up_the_next(runner: TaskRunner) -> None:
    stuck, told = threading.Event(), threading.Event()

    def body() -> bool:
        told.set()
        stuck.wait()
        return stopping()

    runner.start(task(1, body))
    told.wait()
    runner.cancel(1)
    runner.cancel(1)
    runner.start(task(2, threading.get_ident))
    (second,) = results(runner)
    assert second.task == 2
    stuck.set()
    assert results(runner) == [TaskDone(1, Returned(True))]
    assert isinstance(second.result, Returned) and second.result.value == result(runner, threading.get_ident)


def test_stopping_is_false_elsewhere(runner: TaskRunner) -> None:
    assert stopping() is False
    assert result(runner, stopping) is False
    assert result(runner, stopping, pooled=True) is False


def test_an_async_body_is_cancelled(runner: TaskRunner) -> None:
    waits = threading.Event()

    async def body() -> bool:
        try:
            waits.set()
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            return stopping()
        return False

    runner.start(task(1, body))
    waits.wait()
    runner.cancel(1)
    assert results(runner) == [TaskDone(1, Returned(True))]


def test_an_async_body_cancelled_before_it_began_ends_all_the_same(runner: TaskRunner) -> None:
    async def body() -> None:
        await asyncio.get_running_loop().create_future()

    for no in range(20):
        runner.start(task(no, body))
        runner.cancel(no)
    assert {done.task: type(done.result) for done in results(runner, 20)} == dict.fromkeys(range(20), Raised)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio has no eager tasks there")
def test_an_eager_body_cancelled_before_it_is_awaited_ends_all_the_same(runner: TaskRunner) -> None:
    began, go = threading.Event(), threading.Event()

    async def hasten() -> None:
        asyncio.get_running_loop().set_task_factory(vars(asyncio)["eager_task_factory"])

    async def for_ever() -> None:
        await asyncio.get_running_loop().create_future()

    def body() -> object:
        began.set()
        go.wait()
        return for_ever()

    assert result(runner, hasten) is None
    runner.start(task(1, body))
    began.wait()
    runner.cancel(1)
    go.set()
    (done,) = results(runner)
    assert isinstance(done.result, Raised) and done.result.error.type.endswith("CancelledError")


def test_async_bodies_share_one_event_loop(runner: TaskRunner) -> None:
    async def loop() -> int:
        return id(asyncio.get_running_loop())

    assert result(runner, loop) == result(runner, loop, pooled=True)


def test_a_system_without_threads_fails_the_body_only(runner: TaskRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_more)
    assert result(runner, stopping).message == "can't start new thread"
    assert result(runner, plus_one, 1).message == "can't start new thread"
    monkeypatch.undo()
    assert result(runner, stopping) is False


def test_closing_lets_a_busy_thread_end_after_its_body() -> None:
    runner = TaskRunner()
    go, began = threading.Event(), threading.Event()

    def body() -> None:
        began.set()
        go.wait()

    runner.start(task(1, body, pooled=True))
    began.wait()
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "caravela body"]
    runner.close()
    go.set()
    thread.join()


def test_what_a_body_wants_awaited_after_closing_gets_no_event_loop() -> None:
    runner = TaskRunner()
    go, began, later = threading.Event(), threading.Event(), plus_one(1)

    def body() -> object:
        began.set()
        go.wait()
        return later

    runner.start(task(1, body))
    began.wait()
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "caravela body"]
    runner.close()
    go.set()
    thread.join()
    assert "caravela event loop" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(RuntimeError, match="cannot reuse"):
        later.send(None)


def test_a_value_that_raises_when_it_is_asked_for_its_class_is_a_raise(runner: TaskRunner) -> None:
    class Proxy:
        @property
        def __class__(self) -> Any:
            raise RuntimeError("not bound")

        @__class__.setter
        def __class__(self, value: Any) -> None: ...

    raised = result(runner, Proxy)
    assert isinstance(raised, StepRaised)
    assert raised.message == "not bound"
