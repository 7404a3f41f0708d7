"""Waiting on an event loop for what other threads bring about: nothing in here blocks that loop."""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from .events import Event, Lagged, lagged
from .interrupts import uninterrupted
from .latch import Latch

if TYPE_CHECKING:
    from .subscribers import QueueSink, Subscription

WAITING: Final = 65_536
"""Events that may wait for the thread of a loop."""


class Waker:
    """In the place of a lock that somebody waits for: any thread releases it, one coroutine waits."""

    __slots__ = ("_future", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()

    def release(self) -> None:
        with suppress(RuntimeError):  # that loop is closed: nobody waits there any more
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self, seconds: float | None) -> bool:
        """False: it was not released within so many."""
        try:
            async with asyncio.timeout(seconds):
                await self._future
        except TimeoutError:
            return False
        return True


async def latched(latch: Latch, seconds: float | None = None) -> bool:
    """As ``latch.wait``."""
    if not latch.is_set():
        waker = Waker()
        latch.attach(waker)
        try:
            await waker.wait(seconds)
        finally:
            latch.detach(waker)
    return latch.is_set()


async def next_event(subscription: "Subscription", seconds: float | None = None) -> Event | None:
    """None where none will ever come; ``queue.Empty`` after so many seconds. A cancelled one takes nothing."""
    loop = asyncio.get_running_loop()
    deadline = None if seconds is None else loop.time() + seconds
    while True:
        waker = Waker()
        if subscription.poll(waker):
            with suppress(queue.Empty):  # another reader was quicker
                return subscription.take()
            continue
        left = None if deadline is None else max(deadline - loop.time(), 0.0)
        try:
            if not await waker.wait(left):
                raise queue.Empty
        finally:
            subscription.forget(waker)


async def every_event(subscription: "Subscription") -> AsyncIterator[Event]:
    while (event := await next_event(subscription)) is not None:
        yield event


class LoopSink:
    """An ``asyncio.Queue`` (``there``), which only the thread of the loop that runs here may touch."""

    def __init__(self, there: "QueueSink") -> None:
        self.kinds = there.kinds
        self._loop = asyncio.get_running_loop()
        self._there = there
        self._waiting: deque[Event] = deque()
        self._dropped: Lagged | None = None
        self._lock = threading.Lock()
        self._asked = False

    def offer(self, event: Event) -> None:
        with self._lock:
            if len(self._waiting) >= WAITING:
                self._dropped = lagged(self._dropped, event)
                return
            if self._dropped:
                self._waiting.append(self._dropped)
                self._dropped = None
            self._waiting.append(event)
            if self._asked:
                return
            self._asked = True
        with suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        with uninterrupted():
            with self._lock:
                self._asked = False
                came, self._waiting = self._waiting, deque()
            for event in came:
                self._there.offer(event)
