"""The threads of a worker. Imported at its first body, on its main thread: ``threading`` costs every fork of a process
that has it a third of a MiB, and takes the thread that imports it for the main one.
"""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING

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
    """An asyncio event loop; asyncio is imported in here, so that the worker's loop does not wait for it."""

    loop: "asyncio.AbstractEventLoop"

    def __init__(self) -> None:
        super().__init__(name="caravela event loop", daemon=True)
        self._ready = threading.Lock()
        self._early: list[Callable[[], None]] | None = []

    def call(self, function: Callable[[], None]) -> None:
        with self._ready:
            if self._early is None:
                self.loop.call_soon_threadsafe(function)
            else:
                self._early.append(function)

    def stop(self) -> None:
        self.call(lambda: self._end.set_result(None))
        self.join(1.0)  # a body that refuses to be cancelled keeps its thread, which keeps nobody

    def run(self) -> None:
        import asyncio

        asyncio.run(self._serve())

    async def _serve(self) -> None:
        import asyncio

        self.loop = asyncio.get_running_loop()
        self._end = self.loop.create_future()
        with self._ready:
            assert self._early is not None
            for function in self._early:
                self.loop.call_soon(function)
            self._early = None
        await self._end
