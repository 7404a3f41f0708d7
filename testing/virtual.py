"""An event loop without clock, thread and descriptor: time passes when somebody says so.

``asyncio.sleep(3600)`` in a body takes an hour of virtual time and no real one. There is no I/O on this loop;
``asyncio.to_thread`` calls its function at once.
"""

import asyncio
import heapq
import logging
from asyncio.events import _get_running_loop, _set_running_loop  # documented, for event loops
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, Final, TypeVar, TypeVarTuple

from caravela.errors import LimitExceeded

MOMENT: Final = 1e-9
"""Seconds within which two times are one: 0.1 + 0.2 and 0.3."""
CALLS_AT_ONCE: Final = 1_000_000


T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class VirtualLoop(asyncio.AbstractEventLoop):
    def __init__(self) -> None:
        self.now = 0.0
        self._soon = deque[asyncio.Handle]()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = 0
        self._tasks = set[asyncio.Task[Any]]()

    # -------------------------------------------------------------- what drives it

    @property
    def next_timer(self) -> float | None:
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def settle(self) -> None:
        """Everything that happens at this moment, in the order in which it was asked for.

        Raises ``LimitExceeded`` when that does not come to an end.
        """
        previous = _get_running_loop()
        _set_running_loop(self)
        try:
            for _ in range(CALLS_AT_ONCE):
                if not self._soon:
                    timer = self.next_timer
                    if timer is None or timer > self.now + MOMENT:
                        return
                    self.now = max(self.now, timer)
                    self._soon.append(heapq.heappop(self._timers)[2])
                handle = self._soon.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            _set_running_loop(previous)
        raise LimitExceeded("one virtual moment of async bodies", CALLS_AT_ONCE + 1, CALLS_AT_ONCE, "callbacks")

    def close(self) -> None:
        """Cancels what is left, so that no coroutine is destroyed while it waits."""
        self._timers.clear()
        for task in self._tasks:
            task.cancel()
        self.settle()

    # -------------------------------------------------------------- what asyncio asks of a loop

    def time(self) -> float:
        return self.now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._soon.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._numbers += 1  # timers of one moment run in the order in which they were made
        heapq.heappush(self._timers, (when, self._numbers, handle))
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass  # dropped when its time comes

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, **options)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def run_in_executor(self, executor: Any, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        previous = _get_running_loop()
        _set_running_loop(None)  # in a thread there would be none
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        finally:
            _set_running_loop(previous)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        logging.getLogger("caravela.testing").error(context["message"], exc_info=context.get("exception"))

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False
