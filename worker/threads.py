"""The threads of a worker. Imported at its first body, on its main thread: ``threading`` costs every fork of a process
that has it a third of a MiB, and takes the thread that imports it for the main one.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING

from . import clones

if TYPE_CHECKING:
    import asyncio


class BodyThread(threading.Thread):
    """Makes calls until it is given None."""

    def __init__(self) -> None:
        super().__init__(name="caravela body", daemon=True)
        self.calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def run(self) -> None:
        while call := self.calls.get():
            call()
            del call  # holds a body and its arguments while the thread idles


class EventThread(threading.Thread):
    """An asyncio event loop; asyncio is imported in here, so that the worker's loop does not wait for it.

    ``ended``, on this thread, hears what ended the loop before it was told to (``SystemExit`` in a task beside a body,
    ``loop.stop()``) or kept it from being made (no descriptors left). From then on it runs nothing more.
    """

    loop: "asyncio.AbstractEventLoop | None" = None

    def __init__(self, ended: "Callable[[EventThread, BaseException], None]") -> None:
        super().__init__(name="caravela event loop", daemon=True)
        self._ended = ended
        self._born = clones.generation
        self._lock = threading.Lock()
        self._early: list[Callable[[], None]] | None = []
        self._over = False

    def call(self, function: Callable[[], None]) -> None:
        """On the loop; nowhere once that is over."""
        with self._lock:
            if self._over:
                return
            if self._early is not None:
                self._early.append(function)
            elif self.loop:
                self.loop.call_soon_threadsafe(function)

    def stop(self) -> None:
        self.call(lambda: self._end.set())
        self.join(1.0)  # a body that refuses to be cancelled keeps its thread, which keeps nobody

    def run(self) -> None:
        try:
            import asyncio

            with asyncio.Runner() as runner:
                self._run(runner)
        except BaseException as error:  # there is no loop, or it could not be closed
            self._finish(error)

    def _run(self, runner: "asyncio.Runner") -> None:
        error = None
        try:
            runner.run(self._serve())
        except BaseException as ended:
            error = ended
        self._finish(error)  # before the runner cancels what is under way, and waits for it

    def _finish(self, error: BaseException | None) -> None:
        clones.came_back(self._born, error)  # before the lock: there another thread may have held it at the fork
        with self._lock:
            over, self._over = self._over, True
        if error is not None and not over:
            self._ended(self, error)

    async def _serve(self) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        with self._lock:
            assert self._early is not None
            for function in self._early:
                loop.call_soon(function)
            self.loop, self._early = loop, None
        while not (self._end.is_set() or self._over):
            with suppress(asyncio.CancelledError):  # a body may cancel whatever `all_tasks` shows it
                await self._end.wait()


def _end_with_this_step() -> None:
    """In a fork out of code on an event loop, whose selector it shares: a turn of its own would eat the worker's wakes.

    What never comes back to the loop, as a process of ``multiprocessing``, does not hear of it.
    """
    thread = threading.current_thread()
    if isinstance(thread, EventThread) and thread.loop:
        thread.loop.call_soon(clones.leave, None)


os.register_at_fork(after_in_child=_end_with_this_step)
