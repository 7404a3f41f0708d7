"""Runs the bodies of a flow, away from the worker's loop.

A body that stands alone (``run``, ``each``) is called on the one lasting body thread, so that what it keeps in its
module (a connection bound to its thread) works the next time too. Those of ``parallel`` and ``race`` get threads from
a pool. What awaits runs on one event loop in a thread of its own, made at the first such body. No thread here keeps
the process from ending, and a body on a thread cannot be killed: a cancelled one is told (:func:`stopping`), its
thread is given up, and its result comes when it comes.
"""

import os
from _thread import allocate_lock
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from typing import TYPE_CHECKING, Any, assert_never

from caravela.errors import StepRaised

from ..flows.events import Raised, Returned, StartTask, TaskDone

if TYPE_CHECKING:
    import asyncio

    from .threads import BodyThread, EventThread


class _Job:
    """One body under way; the loop's thread, a body thread and the event loop's all look at it."""

    __slots__ = ("awaits", "begun", "cancelled", "done", "task", "thread")

    def __init__(self, task: StartTask) -> None:
        self.task = task
        self.cancelled = False
        self.done = False
        self.thread: BodyThread | None = None
        self.awaits: asyncio.Task[None] | None = None
        self.begun = False


_current: ContextVar[_Job | None] = ContextVar("caravela_body", default=None)


def stopping() -> bool:
    """True in a body whose result is no longer wanted: it timed out, lost its race, or its flow is being stopped.

    Long bodies ask now and then, and return. Elsewhere, as in the host, it is False.
    """
    job = _current.get()
    return job is not None and job.cancelled


class TaskRunner:
    """``fileno`` is readable when ``drain`` has results. All methods belong to the loop's thread."""

    def __init__(self) -> None:
        self._jobs: dict[int, _Job] = {}
        self._results: deque[TaskDone] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._open = allocate_lock()  # while the eventfd is written its number must not become another file's
        self._threads: set[BodyThread] = set()
        self._lasting: BodyThread | None = None
        self._idle: deque[BodyThread] = deque()
        self._events: EventThread | None = None

    def fileno(self) -> int:
        return self._wake

    def start(self, task: StartTask) -> None:
        job = self._jobs[task.task] = _Job(task)
        try:
            match task.executor:
                case "thread" if _is_async(task.fn):
                    self._await(job, None)
                case "thread":
                    job.thread = self._pooled() if task.pooled else self._alone()
                    job.thread.calls.put(partial(self._call, job))
                case _:
                    assert_never(task.executor)
        except RuntimeError as error:  # the system has no more threads
            self._finish(job, _raised(error, job))

    def cancel(self, task: int) -> None:
        """Asks it to end; the result comes all the same."""
        job = self._jobs.get(task)
        if job is None or job.cancelled:
            return
        job.cancelled = True
        if self._events:
            self._events.call(partial(_cancel, job))
        if job.thread is self._lasting and job.thread and not job.done:
            self._lasting = None
            self._dismiss(job.thread)

    def drain(self) -> list[TaskDone]:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return []
        results = []
        while self._results:
            result = self._results.popleft()
            self._jobs.pop(result.task, None)
            results.append(result)
        return results

    def close(self) -> None:
        """For a worker in its host's own process: cancels bodies; idle threads end, busy ones after their body."""
        for task in list(self._jobs):
            self.cancel(task)
        busy = {job.thread for job in self._jobs.values() if not job.done}
        for thread in list(self._threads):
            self._dismiss(thread)
            if thread not in busy:
                thread.join()
        if self._events:
            self._events.stop()
        with self._open:
            os.close(self._wake)
            self._wake = -1

    # ------------------------------------------------------------------ on threads

    def _alone(self) -> "BodyThread":
        if self._lasting is None:
            self._lasting = self._hire()
        return self._lasting

    def _pooled(self) -> "BodyThread":
        return self._idle.pop() if self._idle else self._hire()

    def _hire(self) -> "BodyThread":
        from .threads import BodyThread

        thread = BodyThread()
        thread.start()
        self._threads.add(thread)
        return thread

    def _dismiss(self, thread: "BodyThread") -> None:
        self._threads.discard(thread)
        thread.calls.put(None)

    def _call(self, job: _Job) -> None:
        """On a body thread."""
        _current.set(job)
        result: Returned | Raised
        value, awaits = None, False
        try:
            value = job.task.fn(*job.task.args)
            awaits = isawaitable(value)  # asks the value for its class, which may raise
            result = Returned(value)
        except BaseException as error:
            result = _raised(error, job)
        _current.set(None)
        thread = job.thread
        if job.task.pooled and thread:
            self._idle.append(thread)
        if awaits:
            job.thread = None
            self._await(job, value)
        else:
            self._finish(job, result)

    # ------------------------------------------------------------------ on the event loop

    def _await(self, job: _Job, value: Awaitable[Any] | None) -> None:
        with self._open:
            if self._events is None:
                from .threads import EventThread

                events = EventThread()
                events.start()
                self._events = events
        self._events.call(partial(self._begin, job, value, self._events))

    def _begin(self, job: _Job, value: Awaitable[Any] | None, events: "EventThread") -> None:
        job.awaits = events.loop.create_task(self._body(job, value))

    async def _body(self, job: _Job, value: Awaitable[Any] | None) -> None:
        _current.set(job)
        job.begun = True
        if job.cancelled:
            _cancel(job)
        result: Returned | Raised
        try:
            result = Returned(await (job.task.fn(*job.task.args) if value is None else value))
        except BaseException as error:  # also what would end the event loop for everybody else: SystemExit
            result = _raised(error, job)
        self._finish(job, result)

    def _finish(self, job: _Job, result: Returned | Raised) -> None:
        """On any thread."""
        job.done = True
        self._results.append(TaskDone(job.task.task, result))
        with self._open:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)


def _cancel(job: _Job) -> None:
    """On the event loop. A task cancelled before it began would end without a word."""
    if job.begun and job.awaits:
        job.awaits.cancel()


def _is_async(fn: Callable[..., Any]) -> bool:
    """Known before the call; what turns out to be awaitable after it takes the way over a body thread."""
    while isinstance(fn, partial):
        fn = fn.func
    return iscoroutinefunction(fn)


def _raised(error: BaseException, job: _Job) -> Raised:
    return Raised(StepRaised.of(error, job.task.path, job.task.attempt))
