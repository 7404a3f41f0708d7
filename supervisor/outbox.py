"""One flow's FIFO to its worker: one lock over numbering, the direct write and what has to wait.

Entries wait as values, not bytes: what the worker of the day already holds is left out when its frames are made, and
an entry that outlives a worker is encoded for the next. Whoever puts an entry writes it, in its own thread, when
nothing waits before it; the rest is written when the loop sees room in the pipe.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from caravela.errors import FlowBusy

from ..protocol import messages
from ..protocol.codec import encode
from ..protocol.functions import Held
from .latch import Changes

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

    @property
    def needs(self) -> Sequence[messages.Code | messages.Define]:
        """What the worker must have before."""
        ...

    @property
    def numbered(self) -> bool:
        """A signal: one more that the worker may have applied."""
        ...

    def frame(self, number: int) -> bytes:
        """Made when the entry is written; ``number`` is its own among this worker's signals, if it is one."""
        ...

    def written(self) -> None:
        """The worker has all bytes."""
        ...


class _Made(NamedTuple):
    """An entry whose frames end at ``end``. ``urgent``: it is for this worker only."""

    end: int
    entry: Entry
    urgent: bool


class Outbox:
    """``watch(fd)`` and ``unwatch(fd)`` start and stop the calls of :meth:`pump` when ``fd`` takes bytes."""

    def __init__(self, watch: Callable[[int], None], unwatch: Callable[[int], None]) -> None:
        self._watch, self._unwatch = watch, unwatch
        self._lock = threading.Lock()
        self._room = Changes(self._lock)
        self._waiting: deque[Entry] = deque()
        self._urgent: deque[Entry] = deque()
        self._size = 0
        self._closed = False
        # of the worker of the day
        self._fd = -1
        self._watched = False
        self._released = False
        self._held = Held()
        self._numbered = 0
        self._signals_written = 0
        self._frames = memoryview(b"")
        self._at = 0
        self._batch: deque[_Made] = deque()
        """Whose frames stand in ``_frames`` and are not written in full."""

    @property
    def waiting(self) -> int:
        """Bytes that wait, for this worker or the next."""
        return self._size

    # -------------------------------------------------------------- callers

    def put(self, entry: Entry, patience: Callable[[], float], busy: Callable[[int], FlowBusy]) -> bool:
        """Write now or later, in order. False: the flow has ended.

        Above the limit it waits ``patience()`` seconds, then raises ``busy(bytes)``.
        """
        with self._lock:
            if self._size >= LIMIT:
                self._wait_for_room(patience, busy)
            if self._closed:
                return False
            self._size += entry.size
            self._waiting.append(entry)
            self._write_now()
            return True

    def _wait_for_room(self, patience: Callable[[], float], busy: Callable[[int], FlowBusy]) -> None:
        self._drop_the_withdrawn()
        if self._size < LIMIT:
            return
        deadline = time.monotonic() + patience()
        while self._size >= LIMIT and not self._closed:
            left = deadline - time.monotonic()
            if left <= 0:
                raise busy(self._size)
            self._room.wait(left)
            self._drop_the_withdrawn()

    def _drop_the_withdrawn(self) -> None:
        wanted = deque(entry for entry in self._waiting if not entry.withdrawn)
        dropped = sum(entry.size for entry in self._waiting) - sum(entry.size for entry in wanted)
        self._waiting = wanted
        self._less(dropped)

    def overtake(self, entry: Entry) -> None:
        """Put before all whose frames are not yet made, at a frame boundary; meant for this worker only."""
        with self._lock:
            if self._fd < 0:
                return
            self._size += entry.size
            self._urgent.append(entry)
            self._write_now()

    def put_back(self, entry: Entry) -> None:
        """Put before all that waits, without regard to the limit: it was in once."""
        with self._lock:
            if not self._closed:
                self._size += entry.size
                self._waiting.appendleft(entry)

    # -------------------------------------------------------------- the loop

    def attach(self, fd: int, boot: bytes, held: Held) -> None:
        """A worker is on its way: write what it boots from, and only that until :meth:`release`."""
        with self._lock:
            self._begin(fd, held, boot)
            self._write()

    def release(self) -> None:
        """The worker is ready for whatever waits."""
        with self._lock:
            self._released = True
            self._write()

    def pump(self) -> None:
        with self._lock:
            self._write()

    def detach(self) -> int:
        """The worker is gone: what it does not have in full waits for the next. Returns how many signals it had."""
        with self._lock:
            self._unwatch_now()
            for entry in self._urgent:  # its Stop
                self._size -= entry.size
            self._urgent.clear()
            for made in reversed(self._batch):
                if made.urgent or self._closed:
                    self._size -= made.entry.size
                else:
                    self._waiting.appendleft(made.entry)
            written = self._signals_written
            self._begin(-1, Held(), b"")
            self._room.tell()
            return written

    def close(self) -> None:
        """The flow has ended: nothing is taken any more, whoever waits for room is let go."""
        with self._lock:
            self._closed = True
            self._size -= sum(entry.size for entry in self._waiting)
            self._waiting.clear()
            self._room.tell()

    # -------------------------------------------------------------- under the lock

    def _begin(self, fd: int, held: Held, boot: bytes) -> None:
        self._fd, self._held = fd, held
        self._released = False
        self._numbered = self._signals_written = 0
        self._frames, self._at = memoryview(boot), 0
        self._batch.clear()

    def _write_now(self) -> None:
        """Unless the pipe is known to be full; then the loop goes on."""
        if not self._watched:
            self._write()

    def _write(self) -> None:
        while self._fd >= 0:
            if self._at == len(self._frames) and not self._fill():
                self._unwatch_now()
                return
            try:
                self._at += os.write(self._fd, self._frames[self._at :])
            except BlockingIOError:
                self._watch_now()
                return
            except BrokenPipeError:
                self._unwatch_now()  # it is gone or has closed its end; the loop hears of that by itself
                return
            while self._batch and self._batch[0].end <= self._at:
                self._written(self._batch.popleft().entry)

    def _written(self, entry: Entry) -> None:
        entry.written()
        self._signals_written += entry.numbered
        self._less(entry.size)

    def _fill(self) -> bool:
        """Make the frames of what comes next, about as much as a pipe takes."""
        frames: list[bytes] = []
        end = 0
        while queue := self._urgent or (self._waiting if self._released else None):
            entry = queue[0]
            if frames and end + entry.size > BATCH:
                break
            queue.popleft()
            if entry.withdrawn:
                self._less(entry.size)
                continue
            try:
                needs = entry.needs
                lacking = self._held.lacking(needs) if needs else []
                made = [*map(encode, lacking), entry.frame(self._numbered + entry.numbered)]
            except Exception:  # it is lost; what is made goes all the same, and what stands behind it too
                self._less(entry.size)
                self._frames, self._at = memoryview(b"".join(frames)), 0
                self._watch_now()
                raise
            self._held.keep(needs, lacking)
            self._numbered += entry.numbered
            frames += made
            end += sum(map(len, made))
            self._batch.append(_Made(end, entry, queue is self._urgent))
        self._frames, self._at = memoryview(b"".join(frames)), 0
        return bool(frames)

    def _less(self, size: int) -> None:
        self._size -= size
        if self._size < LIMIT <= self._size + size:
            self._room.tell()

    def _watch_now(self) -> None:
        if self._fd >= 0 and not self._watched:
            self._watch(self._fd)
            self._watched = True

    def _unwatch_now(self) -> None:
        if self._watched:
            self._watched = False
            self._unwatch(self._fd)
