"""Runs the bodies of a flow, away from the worker's loop.

A body that stands alone (``run``, ``each``) is called on the one lasting body thread, so that what it keeps in its
module (a connection bound to its thread) works the next time too. Those of ``parallel`` and ``race`` get threads from
a pool. What awaits runs on one event loop in a thread of its own, made at the first such body. No thread here keeps
the process from ending, and a body on a thread cannot be killed: a cancelled one is told (:func:`stopping`), its
thread is given up, and its result comes when it comes.

An event loop that ends too soon (SystemExit in a task beside a body) fails the bodies that it had; the next gets
another. A fork that comes out of a body is no worker and ends (:mod:`.clones`).
"""

import os
from _thread import allocate_lock
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from typing import TYPE_CHECKING, Any, assert_never

from caravela.errors import StepRaised

from ..flows.events import Raised, Returned, StartTask, TaskDone
from . import clones

if TYPE_CHECKING:
    import asyncio

    from .threads import BodyThread, EventThread


class _Job:
    """One body under way; the loop's thread, a body thread and the event loop's all look at it."""

    __slots__ = ("awaits", "cancelled", "done", "events", "task", "thread", "value")

    def __init__(self, task: StartTask) -> None:
        self.task = task
        self.cancelled = False
        self.done = False
        self.thread: BodyThread | None = None
        self.events: EventThread | None = None
        self.awaits: asyncio.Task[None] | None = None
        """From its first step on."""
        self.value: Awaitable[Any] | None = None
        """What a call returned and nobody awaits yet."""


_current: ContextVar[_Job | None] = ContextVar("caravela_body", default=None)


def stopping() -> bool:
    """True in a body whose result is no longer wanted: it timed out, lost its race, or its flow is being stopped.

    Long bodies ask now and then, and return. Elsewhere, as in the host, it is False.
    """
    job = _current.get()
    return job is not None and job.cancelled


class TaskRunner:
    """``fileno`` is readable when ``drain`` has results. All methods belong to the loop's thread.

    ``unheard(path, attempt)``, on any thread: a body is done and ``fileno`` cannot say so, since a body closed it.
    """

    def __init__(self, unheard: Callable[[str, int], None] | None = None) -> None:
        self._jobs: dict[int, _Job] = {}
        self._results: deque[TaskDone] = deque()
        self._unheard = unheard
        self._born = clones.generation
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._made = os.fstat(self._wake)
        self._open = allocate_lock()  # while the eventfd is written its number must not become another file's
        self._threads: set[BodyThread] = set()
        self._lasting: BodyThread | None = None
        self._idle: deque[BodyThread] = deque()
        self._events: EventThread | None = None
        self._past: list[EventThread] = []

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
        if job.events:
            job.events.call(partial(_cancel, job))
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
        with self._open:
            with suppress(OSError):  # a body closed it
                if self._is_ours():
                    os.close(self._wake)
            self._wake = -1
            loops = [*self._past, *([self._events] if self._events else [])]
        for events in loops:
            events.stop()

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
        value, awaits, ended = None, False, None
        try:
            value = job.task.fn(*job.task.args)
            awaits = isawaitable(value)  # asks the value for its class, which may raise
            result = Returned(value)
        except BaseException as error:
            result, ended = _raised(error, job), error
        clones.came_back(self._born, ended)
        del ended
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
        job.value = value
        try:
            with self._open:
                if self._wake < 0:
                    raise RuntimeError("the flow is gone")  # who would end another event loop?
                events = self._events
                if events is None:
                    from .threads import EventThread

                    events = EventThread(self._ended)
                    events.start()
                    self._events = events
                job.events = events
                events.call(partial(self._begin, job, events))  # before anybody stops it
        except RuntimeError as error:  # that, or the system has no more threads
            self._finish(job, _raised(error, job))

    def _begin(self, job: _Job, events: "EventThread") -> None:
        assert events.loop
        events.loop.create_task(self._body(job))

    async def _body(self, job: _Job) -> None:
        import asyncio

        _current.set(job)
        job.awaits = asyncio.current_task()  # in here, for an eager one is not yet returned to who made it
        value, job.value = job.value, None
        if job.cancelled:
            _cancel(job)
        result: Returned | Raised
        ended = None
        try:
            result = Returned(await (job.task.fn(*job.task.args) if value is None else value))
        except BaseException as error:  # also what would end the event loop for everybody else: SystemExit
            result, ended = _raised(error, job), error
        clones.came_back(self._born, ended)
        del ended
        self._finish(job, result)

    def _ended(self, events: "EventThread", error: BaseException) -> None:
        """On the event loop's thread. What it had fails at once: a body there may refuse to be cancelled."""
        what = StepRaised.of(error)
        words = "ended the event loop" if events.loop else "kept the event loop from starting"
        why = f"{what.type} {words}: {what.message}".removesuffix(": ")
        with self._open:
            if self._events is events:
                self._events = None
            self._past = [*(past for past in self._past if past.is_alive()), events]
            lost = [job for job in list(self._jobs.values()) if job.events is events]
        for job in lost:
            task = job.task
            self._finish(job, Raised(StepRaised("RuntimeError", why, what.traceback, task.path, task.attempt)))

    def _finish(self, job: _Job, result: Returned | Raised) -> None:
        """On any thread."""
        if job.done:
            return  # its event loop ended first
        job.done = True
        if isinstance(job.value, Coroutine):
            job.value.close()  # its event loop ended first: nobody will await it, and Python would complain of that
        self._results.append(TaskDone(job.task.task, result))
        if not self._told() and self._unheard:
            self._unheard(job.task.path, job.task.attempt)

    def _told(self) -> bool:
        with self._open:
            if self._wake < 0:
                return True  # nobody listens any more
            try:
                if not self._is_ours():
                    return False
                os.eventfd_write(self._wake, 1)
            except OSError:
                return False
        return True

    def _is_ours(self) -> bool:
        """A body that closed the eventfd may have a file of its own under that number by now."""
        return os.path.samestat(os.fstat(self._wake), self._made)


def _cancel(job: _Job) -> None:
    """On the event loop. A task cancelled before it began would end without a word."""
    if job.awaits:
        job.awaits.cancel()


def _is_async(fn: Callable[..., Any]) -> bool:
    """Known before the call; what turns out to be awaitable after it takes the way over a body thread."""
    while isinstance(fn, partial):
        fn = fn.func
    return iscoroutinefunction(fn)


def _raised(error: BaseException, job: _Job) -> Raised:
    return Raised(StepRaised.of(error, job.task.path, job.task.attempt))
