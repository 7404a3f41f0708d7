"""The supervisor's one thread: epoll, timers and posted work. It waits for nothing but events.

Fds are watched, unwatched and closed between two batches of events only: a stale event for a number that was closed
and given out again within one batch would otherwise hit the new owner.
"""

import contextlib
import heapq
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from logging import ERROR

from .logs import say

hands_free = threading.RLock()
"""Held by whoever opens or closes fds of a supervisor, until it is written down whose they are.

A fork of this process waits for it: a child keeps what nobody closes there, and then the death of its parent goes
unseen.
"""

Work = Callable[[], None]


class Loop:
    def __init__(self, name: str) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._ready: dict[int, Work] = {}
        self._posted: deque[Work] = deque()
        self._timers: list[tuple[float, int]] = []
        self._calls: dict[int, Work] = {}
        self._numbers = count()
        self._after_batch: list[Work] = []
        self._over = False
        self._closed = False
        self._gate = threading.Lock()  # nobody writes to the number of a closed fd
        # A daemon: the interpreter must be able to end although somebody forgot to close.
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self.thread.start()

    # -------------------------------------------------------------- from any thread

    def post(self, work: Work) -> None:
        """Do ``work`` on the loop's thread, in the order of the posts; dropped once the loop has ended."""
        if threading.current_thread() is self.thread:
            self._posted.append(work)
            return
        with self._gate:
            if not self._closed:
                self._posted.append(work)
                os.eventfd_write(self._wake, 1)

    def mask(self, fd: int) -> None:
        """No events of ``fd`` but its end, until :meth:`unmask`: somebody else reads it."""
        self._modify(fd, 0)

    def unmask(self, fd: int) -> None:
        self._modify(fd, select.EPOLLIN)

    def _modify(self, fd: int, mask: int) -> None:
        try:
            self._epoll.modify(fd, mask)
        except FileNotFoundError:  # its end was met, and it is watched no more
            pass

    def watch_writable(self, fd: int, ready: Work) -> None:
        self._ready[fd] = ready
        self._epoll.register(fd, select.EPOLLOUT)

    def unwatch_writable(self, fd: int) -> None:
        self._epoll.unregister(fd)
        del self._ready[fd]

    # -------------------------------------------------------------- on the thread

    def watch(self, fd: int, ready: Work) -> None:
        def watch() -> None:
            self._ready[fd] = ready
            self._epoll.register(fd, select.EPOLLIN)

        self.between_batches(watch)

    def unwatch(self, fd: int, *, close: bool) -> None:
        """``ready`` is not called any more, although this batch may still hold an event for it."""
        self._ready.pop(fd, None)

        def unwatch() -> None:
            self._ready.pop(fd, None)  # where it was watched a moment ago, in this batch
            with contextlib.suppress(FileNotFoundError):
                self._epoll.unregister(fd)
            if close:
                os.close(fd)

        self.between_batches(unwatch)

    def between_batches(self, work: Work) -> None:
        self._after_batch.append(work)

    def later(self, seconds: float, call: Work) -> Work:
        """Returns what cancels it."""
        number = next(self._numbers)
        self._calls[number] = call
        heapq.heappush(self._timers, (time.monotonic() + seconds, number))

        def cancel() -> None:
            self._calls.pop(number, None)

        return cancel

    def end(self) -> None:
        """The thread ends after this batch."""
        self._over = True

    # -------------------------------------------------------------- the thread

    def _run(self) -> None:
        while not self._over:
            batch = self._epoll.poll(self._timeout())
            with hands_free:
                self._turn(batch)
        with hands_free:
            self._close()

    def _turn(self, batch: list[tuple[int, int]]) -> None:
        for fd, _ in batch:
            if fd == self._wake:
                os.eventfd_read(self._wake)
            elif ready := self._ready.get(fd):
                self._do(ready)
        self._expire()
        while self._posted or self._after_batch:
            while self._posted:
                self._do(self._posted.popleft())
            todo, self._after_batch = self._after_batch, []
            for work in todo:
                self._do(work)

    def _timeout(self) -> float | None:
        while self._timers and self._timers[0][1] not in self._calls:
            heapq.heappop(self._timers)  # cancelled
        return max(self._timers[0][0] - time.monotonic(), 0.0) if self._timers else None

    def _expire(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, number = heapq.heappop(self._timers)
            if call := self._calls.pop(number, None):
                self._do(call)

    def _do(self, work: Work) -> None:
        try:
            work()
        except BaseException:  # one flow's trouble, be it a SystemExit, must not end the loop of all
            say(ERROR, "the supervisor's loop met an error of its own", exc_info=True)

    def _close(self) -> None:
        with self._gate:
            self.forget()

    def forget(self) -> None:
        """In a forked child, which has neither the thread nor a right to the parent's epoll: only let the fds go."""
        if not self._closed:
            self._closed = True
            self._posted.clear()
            self._epoll.close()
            os.close(self._wake)
