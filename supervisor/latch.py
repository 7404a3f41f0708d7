"""Something that happens once, and threads that wait for it."""

import threading
from collections import deque
from contextlib import suppress


class Latch:
    """As ``threading.Event``, but a Ctrl-C at any moment of :meth:`wait` leaves no lock behind.

    A condition's lock may stay taken then (its ``__enter__`` is Python), and whoever sets the event waits for ever.
    Here each who waits has a lock of its own.
    """

    __slots__ = ("_is_set", "_waiting")

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: deque[threading.Lock] = deque()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        """Never waits. For one thread."""
        self._is_set = True
        with suppress(IndexError):  # the last one may go by itself
            while True:
                self._waiting.popleft().release()

    def wait(self, timeout: float | None = None) -> bool:
        """At most ``timeout`` seconds. False: it has not happened."""
        mine = threading.Lock()
        mine.acquire()
        self._waiting.append(mine)
        if not self._is_set:  # else nobody may come to release it
            mine.acquire(timeout=-1 if timeout is None else timeout)
        with suppress(ValueError):
            self._waiting.remove(mine)
        return self._is_set
