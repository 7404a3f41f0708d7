"""One flow's FIFO to its worker: one lock over numbering, the direct write and what has to wait.

Entries wait as values, not bytes: what the worker of the day already holds is left out when its frames are made, and
an entry that outlives a worker is encoded for the next. Whoever puts an entry writes it, in its own thread, when
nothing waits before it; the rest is written when the loop sees room in the pipe.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from caravela.errors import FlowBusy

from ..protocol.functions import Held

LIMIT: Final = 8 * 2**20
"""Bytes that may wait before ``put`` blocks; the entry that reaches it may exceed it."""

BATCH: Final = 64 * 1024
"""Bytes of frames made ahead: what a pipe takes at once. A larger entry goes alone."""


class Entry(Protocol):
    """What can wait: a message in the making. ``size`` in bytes, roughly its frames'."""

    @property
    def size(self) -> int: ...

    @property
    def withdrawn(self) -> bool:
        """Nobody wants it any more; it is skipped if it is not yet written."""
        ...

    def frames(self, held: Held, number: Callable[[], int]) -> list[bytes]:
        """Made when the entry is written; ``number()`` gives the next number among this worker's signals."""
        ...

    def written(self) -> bool:
        """The worker has all bytes. True for a signal: one more that it may have applied."""
        ...


class Outbox:
    """``watch(fd)`` and ``unwatch(fd)`` start and stop the calls of :meth:`pump` when ``fd`` takes bytes."""

    def __init__(self, watch: Callable[[int], None], unwatch: Callable[[int], None]) -> None:
        self._watch, self._unwatch = watch, unwatch
        self._room = threading.Condition(threading.Lock())
        self._waiting: deque[Entry] = deque()
        self._urgent: deque[Entry] = deque()
        self._size = 0
        self._closed = False
        # of the worker of the day
        self._fd = -1
        self._released = False
        self._held = Held()
        self._numbered = 0
        self._signals_written = 0
        self._frames = memoryview(b"")
        self._at = 0
        self._batch: deque[tuple[int, Entry, bool]] = deque()
        """Whose frames stand in ``_frames``: the place where they end, the entry, is it for this worker only."""
        self._watched = False

    @property
    def waiting(self) -> int:
        """Bytes that wait, for this worker or the next."""
        return self._size

    # -------------------------------------------------------------- callers

    def put(self, entry: Entry, patience: Callable[[], float], busy: Callable[[int], FlowBusy]) -> bool:
        """Write now or later, in order. False: the flow has ended.

        Above the limit it waits ``patience()`` seconds, then raises ``busy(bytes)``.
        """
        with self._room:
            if self._size >= LIMIT:
                self._wait_for_room(patience(), busy)
            if self._closed:
                return False
            self._waiting.append(entry)
            self._size += entry.size
            if not self._batch:
                self._write()
            return True

    def _wait_for_room(self, seconds: float, busy: Callable[[int], FlowBusy]) -> None:
        deadline = time.monotonic() + seconds
        while self._size >= LIMIT and not self._closed:
            left = deadline - time.monotonic()
            if left <= 0:
                raise busy(self._size)
            self._room.wait(left)

    def overtake(self, entry: Entry) -> None:
        """Put before all whose frames are not yet made, at a frame boundary; meant for this worker only."""
        with self._room:
            if self._fd < 0:
                return
            self._urgent.append(entry)
            self._size += entry.size
            if not self._batch:
                self._write()

    def put_back(self, entry: Entry) -> None:
        """Put before all that waits, without regard to the limit: it was in once."""
        with self._room:
            if not self._closed:
                self._waiting.appendleft(entry)
                self._size += entry.size

    # -------------------------------------------------------------- the loop

    def attach(self, fd: int, boot: bytes, held: Held) -> None:
        """A worker is on its way: write what it boots from, and only that until :meth:`release`."""
        with self._room:
            self._fd, self._held = fd, held
            self._released = False
            self._numbered = self._signals_written = 0
            self._frames, self._at = memoryview(boot), 0
            self._write()

    def release(self) -> None:
        """The worker is ready for whatever waits."""
        with self._room:
            self._released = True
            self._write()

    def pump(self) -> None:
        with self._room:
            self._write()

    def detach(self) -> int:
        """The worker is gone: what it does not have in full waits for the next. Returns how many signals it had."""
        with self._room:
            self._unwatch_now()
            self._fd = -1
            while self._urgent:  # its Stop
                self._let_go(self._urgent.popleft())
            while self._batch:
                _, entry, urgent = self._batch.pop()
                if urgent or self._closed:
                    self._let_go(entry)
                else:
                    self._waiting.appendleft(entry)
            self._frames, self._at = memoryview(b""), 0
            return self._signals_written

    def close(self) -> None:
        """The flow has ended: nothing is taken any more, whoever waits for room is let go."""
        with self._room:
            self._closed = True
            self._size -= sum(entry.size for entry in self._waiting)
            self._waiting.clear()
            self._room.notify_all()

    # -------------------------------------------------------------- under the lock

    def _write(self) -> None:
        while self._fd >= 0:
            if self._at == len(self._frames) and not self._fill():
                self._unwatch_now()
                return
            try:
                self._at += os.write(self._fd, self._frames[self._at :])
            except BlockingIOError:
                if not self._watched:
                    self._watched = True
                    self._watch(self._fd)
                return
            except BrokenPipeError:
                self._unwatch_now()  # it is gone or has closed its end; the loop hears of that by itself
                return
            self._settle()

    def _fill(self) -> bool:
        """Make the frames of what comes next, about as much as a pipe takes."""
        made: list[bytes] = []
        end = 0
        while queue := self._urgent or (self._waiting if self._released else None):
            entry = queue[0]
            if made and end + entry.size > BATCH:
                break
            queue.popleft()
            if entry.withdrawn:
                self._let_go(entry)
                continue
            frames = entry.frames(self._held, self._number)
            made += frames
            end += sum(map(len, frames))
            self._batch.append((end, entry, queue is self._urgent))
        self._frames, self._at = memoryview(b"".join(made)), 0
        return bool(made)

    def _settle(self) -> None:
        while self._batch and self._batch[0][0] <= self._at:
            _, entry, _ = self._batch.popleft()
            self._signals_written += entry.written()
            self._let_go(entry)

    def _let_go(self, entry: Entry) -> None:
        self._size -= entry.size
        if self._size < LIMIT <= self._size + entry.size:
            self._room.notify_all()

    def _number(self) -> int:
        self._numbered += 1
        return self._numbered

    def _unwatch_now(self) -> None:
        if self._watched:
            self._watched = False
            self._unwatch(self._fd)
