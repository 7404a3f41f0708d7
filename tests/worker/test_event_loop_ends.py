"""An event loop that ends before it is told to, or cannot be made: bodies hear of it, and the next ones get another."""

import asyncio
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from caravela.errors import StepRaised
from caravela.flows.events import Raised, Returned, StartTask, TaskDone
from caravela.worker.tasks import TaskRunner
from caravela.worker.threads import EventThread


@pytest.fixture
def runner() -> Iterator[TaskRunner]:
    runner = TaskRunner()
    yield runner
    runner.close()


def start(runner: TaskRunner, no: int, fn: Callable[..., Any], *args: Any) -> None:
    runner.start(StartTask(no, fn, args, "thread", "run[1]", 2, False))


def results(runner: TaskRunner, count: int = 1) -> list[TaskDone]:
    done: list[TaskDone] = []
    poll = select.poll()
    poll.register(runner.fileno(), select.POLLIN)
    while len(done) < count:
        poll.poll()
        done += runner.drain()
    return done


def result(runner: TaskRunner, fn: Callable[..., Any], *args: Any) -> Any:
    start(runner, 1, fn, *args)
    (done,) = results(runner)
    assert isinstance(done.result, Returned), done
    return done.result.value


def failure(runner: TaskRunner, fn: Callable[..., Any], *args: Any) -> StepRaised:
    start(runner, 1, fn, *args)
    (done,) = results(runner)
    assert isinstance(done.result, Raised), done
    error = done.result.error
    assert (error.type, error.path, error.attempt) == ("RuntimeError", "run[1]", 2)
    return error


async def plus_one(n: int) -> int:
    await asyncio.sleep(0)
    return n + 1


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


async def leave(error: BaseException) -> None:
    raise error


async def beside(error: BaseException) -> None:
    beside = asyncio.create_task(leave(error))
    await for_ever()
    del beside


async def stop_the_loop() -> None:
    asyncio.get_running_loop().stop()
    await for_ever()


async def cancel_everybody() -> None:
    for task in asyncio.all_tasks():
        task.cancel()
    await for_ever()


@pytest.mark.parametrize(
    ("body", "args", "why"),
    [
        (beside, (SystemExit(5),), "SystemExit ended the event loop: 5"),
        (beside, (KeyboardInterrupt(),), "KeyboardInterrupt ended the event loop"),
        (stop_the_loop, (), "RuntimeError ended the event loop: Event loop stopped before Future completed."),
    ],
)
def test_a_body_hears_what_ended_its_loop_and_the_next_has_another(
    runner: TaskRunner, body: Callable[..., Any], args: tuple[Any, ...], why: str
) -> None:
    for _ in range(3):
        error = failure(runner, body, *args)
        assert error.message == why
        assert why.split()[0] in error.traceback
        assert result(runner, plus_one, 1) == 2


def test_a_body_that_cancels_everybody_does_not_end_the_loop(runner: TaskRunner) -> None:
    for _ in range(3):
        start(runner, 1, cancel_everybody)
        (done,) = results(runner)
        assert isinstance(done.result, Raised)
        assert result(runner, plus_one, 1) == 2
    assert runner._past == []


def test_all_bodies_of_the_loop_hear_of_it_at_once_also_one_that_refuses_to_be_cancelled(runner: TaskRunner) -> None:
    began, go_on = threading.Event(), asyncio.Event()

    async def refuses() -> None:
        began.set()
        try:
            await for_ever()
        except asyncio.CancelledError:
            await go_on.wait()

    start(runner, 1, for_ever)
    start(runner, 2, refuses)
    began.wait()
    start(runner, 3, beside, SystemExit(5))
    done = results(runner, 3)
    assert {task.task for task in done} == {1, 2, 3}
    for task in done:
        assert isinstance(task.result, Raised)
        assert task.result.error.message == "SystemExit ended the event loop: 5"
    (past,) = runner._past
    assert past.is_alive() and past.loop
    assert result(runner, plus_one, 1) == 2
    past.loop.call_soon_threadsafe(go_on.set)
    past.join()
    assert runner.drain() == []  # nobody is told twice


def test_a_loop_that_ended_is_nothing_to_a_body_on_a_thread(runner: TaskRunner) -> None:
    failure(runner, stop_the_loop)
    for past in runner._past:
        past.join()
    began, go_on = threading.Event(), threading.Event()

    def body() -> None:
        began.set()
        go_on.wait()

    start(runner, 1, body)
    began.wait()
    runner.cancel(1)
    go_on.set()
    assert results(runner) == [TaskDone(1, Returned(None))]


def test_a_body_whose_loop_has_ended_can_still_be_cancelled(runner: TaskRunner) -> None:
    start(runner, 1, stop_the_loop)
    poll = select.poll()
    poll.register(runner.fileno(), select.POLLIN)
    poll.poll()
    for past in runner._past:
        past.join()
    runner.cancel(1)
    (done,) = results(runner)
    assert isinstance(done.result, Raised)


def test_a_loop_that_cannot_be_made_fails_the_body_only(runner: TaskRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more() -> asyncio.AbstractEventLoop:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(asyncio.events, "new_event_loop", no_more)
    why = "OSError kept the event loop from starting: [Errno 24] Too many open files"
    assert failure(runner, plus_one, 1).message == why
    assert failure(runner, plus_one, 1).message == why
    monkeypatch.undo()
    assert result(runner, plus_one, 1) == 2


def test_no_thread_for_what_turns_out_to_be_awaitable(runner: TaskRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    class Awaitable:
        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            return "done"

    def no_more(_: EventThread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(EventThread, "start", no_more)
    assert failure(runner, Awaitable).message == "can't start new thread"
    monkeypatch.undo()
    assert result(runner, Awaitable) == "done"


def test_a_fork_on_the_loop_ends_with_its_step(runner: TaskRunner) -> None:
    """It shares the selector: a turn of its own would take a wake from the worker, or wait for ever."""

    async def body() -> list[int]:
        never = asyncio.get_running_loop().create_future()
        children: list[int] = []

        async def breed() -> None:
            if child := os.fork():
                children.append(child)

        await asyncio.create_task(breed())
        if not children:
            await never  # in the child
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

    for _ in range(3):
        assert result(runner, body) == [0]


@pytest.mark.parametrize(("code", "told"), [(None, 0), (3, 3), (-1, 255), (True, 1), (False, 0), ("why", 1)])
def test_a_fork_beside_a_body_ends_with_its_code(
    runner: TaskRunner, code: object, told: int, capfd: pytest.CaptureFixture[str]
) -> None:
    async def body() -> int:
        async def breed() -> int:
            child = os.fork()
            if not child:
                sys.exit(code)  # type: ignore[arg-type]  # a plain object is what users give it, too
            return child

        child = await asyncio.create_task(breed())
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert result(runner, body) == told
    assert ("why" in capfd.readouterr().err) == (code == "why")
