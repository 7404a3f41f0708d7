"""Something that happens once, or again and again, and threads that wait for it."""

import threading
from collections import deque
from contextlib import suppress
from typing import Protocol

from .interrupts import interruptible


class Waiter(Protocol):
    """Who waits: a lock that is taken, or what wakes a coroutine."""

    def release(self) -> None: ...


class Latch:
    """As ``threading.Event``. Each who waits has a lock of its own: one that is interrupted leaves nothing taken."""

    __slots__ = ("_is_set", "_waiting")

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: deque[Waiter] = deque()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        """Never waits. For one thread."""
        self._is_set = True
        with suppress(IndexError):  # the last one may go by itself
            while True:
                self._waiting.popleft().release()

    def attach(self, waiter: Waiter) -> None:
        """It is released when it happens, perhaps twice, until :meth:`detach`."""
        self._waiting.append(waiter)
        if self._is_set:  # perhaps nobody came to release it
            waiter.release()

    def detach(self, waiter: Waiter) -> None:
        with suppress(ValueError):
            self._waiting.remove(waiter)

    def wait(self, timeout: float | None = None) -> bool:
        """At most ``timeout`` seconds. False: it has not happened."""
        mine = taken()
        self._waiting.append(mine)
        if not self._is_set:  # else nobody may come to release it
            interruptible(mine.acquire, True, -1 if timeout is None else timeout)
        self.detach(mine)
        return self._is_set


class Changes:
    """As ``threading.Condition``, over a ``lock`` that the caller holds; who waits may be interrupted."""

    __slots__ = ("_lock", "_waiting")

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._waiting: deque[Waiter] = deque()

    def attach(self, waiter: Waiter) -> None:
        """It is released at the next change, until :meth:`detach`."""
        self._waiting.append(waiter)

    def detach(self, waiter: Waiter) -> None:
        with suppress(ValueError):
            self._waiting.remove(waiter)

    def tell(self) -> None:
        while self._waiting:
            self._waiting.popleft().release()

    def wait(self, timeout: float | None) -> None:
        """Until something has changed, perhaps; at most ``timeout`` seconds. The lock is let go of meanwhile."""
        mine = taken()
        self.attach(mine)
        self._lock.release()
        try:
            interruptible(mine.acquire, True, -1 if timeout is None else timeout)
        finally:
            self._lock.acquire()
            self.detach(mine)


def taken() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock
