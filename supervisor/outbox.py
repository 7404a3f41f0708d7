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
from itertools import takewhile
from typing import Final, NamedTuple, Protocol

from caravela.errors import FlowBusy

from ..protocol import messages
from ..protocol.codec import encode
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
        """The worker has all bytes. May be told so twice."""
        ...


class _Made(NamedTuple):
    """An entry whose frames end at ``end``. ``urgent``: it is for this worker only."""

    end: int
    entry: Entry
    urgent: bool


class Outbox:
    """``watch(fd)`` and ``unwatch(fd)`` start and stop the calls of :meth:`pump` when ``fd`` takes bytes.

    A Ctrl-C may raise in the main thread after any call of a function. So what changes is worked out first and then
    taken over by plain stores, or by one call that does both: whatever was interrupted, the next writer finds whole.
    """

    def __init__(self, watch: Callable[[int], None], unwatch: Callable[[int], None]) -> None:
        self._watch, self._unwatch = watch, unwatch
        self._lock = threading.Lock()  # a Condition's own ``__enter__`` is a function in which a Ctrl-C may fall
        self._room = threading.Condition(self._lock)
        self._waiting: deque[Entry] = deque()
        self._urgent: deque[Entry] = deque()
        self._size = 0
        self._closed = False
        # of the worker of the day
        self._fd = -1
        self._watched = False
        self._released = False
        self._held = Held()
        self._keeping: tuple[Sequence[messages.Code | messages.Define], ...] | None = None
        """Needs, and what of them lacked: taken for frames, perhaps not yet noted in ``_held``."""
        self._numbered = 0
        self._signals_written = 0
        self._frames = memoryview(b"")
        self._at = 0
        self._news: list[int] = []
        """Bytes written beyond ``_at``."""
        self._batch: list[_Made] = []
        """Whose frames stand in ``_frames`` or are in the making."""
        self._made: list[bytes] = []
        self._end = 0
        """Bytes of ``_made``."""

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

    def _drop_the_withdrawn(self) -> None:
        wanted = deque(entry for entry in self._waiting if not entry.withdrawn)
        size = sum(entry.size for entry in wanted) - sum(entry.size for entry in self._waiting) + self._size
        self._waiting, self._size = wanted, size

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
            self._settle()
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
            self._room.notify_all()
            return written

    def close(self) -> None:
        """The flow has ended: nothing is taken any more, whoever waits for room is let go."""
        with self._lock:
            self._closed = True
            self._size -= sum(entry.size for entry in self._waiting)
            self._waiting.clear()
            self._room.notify_all()

    # -------------------------------------------------------------- under the lock

    def _begin(self, fd: int, held: Held, boot: bytes) -> None:
        self._fd, self._held, self._keeping = fd, held, None
        self._released = False
        self._numbered = self._signals_written = 0
        self._frames, self._at, self._news = memoryview(boot), 0, []
        self._batch, self._made, self._end = [], [], 0

    def _write_now(self) -> None:
        """Unless the pipe is known to be full; then, or when this caller is interrupted, the loop goes on."""
        if self._watched:
            return
        try:
            self._write()
        except BaseException:
            self._watch_now()
            raise

    def _write(self) -> None:
        while self._fd >= 0:
            self._settle()
            if self._at == len(self._frames) and not self._fill():
                self._unwatch_now()
                return
            rest = self._frames[self._at :]
            try:
                self._news.extend(map(os.write, (self._fd,), (rest,)))  # one call: no write goes without its note
            except BlockingIOError:
                self._watch_now()
                return
            except BrokenPipeError:
                self._unwatch_now()  # it is gone or has closed its end; the loop hears of that by itself
                return

    def _settle(self) -> None:
        """What was written since the last time."""
        at = self._at + sum(self._news)
        self._at, self._news = at, []
        if self._made or not self._batch or self._batch[0].end > at:
            return
        whole = self._batch[-1].end <= at
        done = self._batch if whole else list(takewhile(lambda made: made.end <= at, self._batch))
        for made in done:
            made.entry.written()
        size = sum(made.entry.size for made in done)
        signals = sum(made.entry.numbered for made in done)
        left = self._batch[len(done) :]
        self._batch, self._size, self._signals_written = left, self._size - size, self._signals_written + signals
        self._tell_of_room(size)

    def _fill(self) -> bool:
        """Make the frames of what comes next, about as much as a pipe takes."""
        self._keep()
        while queue := self._urgent or (self._waiting if self._released else None):
            entry = queue[0]
            if self._made and self._end + entry.size > BATCH:
                break
            if entry.withdrawn:
                self._drop_first(queue)
                continue
            try:
                needs = entry.needs
                lacking = self._held.lacking(needs) if needs else []
                number = self._numbered + entry.numbered
                frames = [*map(encode, lacking), entry.frame(number)]
            except Exception:  # else nothing behind it would ever be written
                self._drop_first(queue)
                raise
            made = _Made(self._end + sum(map(len, frames)), entry, queue is self._urgent)
            self._keeping, self._numbered, self._end = (needs, lacking), number, made.end
            self._made += frames
            self._batch += (made,)
            queue.popleft()
            self._keep()
        if not self._made:
            return False
        frames_made = memoryview(b"".join(self._made))
        self._frames, self._at, self._made, self._end = frames_made, 0, [], 0
        return True

    def _keep(self) -> None:
        if self._keeping is not None:
            self._held.keep(*self._keeping)
            self._keeping = None

    def _drop_first(self, queue: deque[Entry]) -> None:
        size = queue[0].size
        self._size -= size
        queue.popleft()
        self._tell_of_room(size)

    def _tell_of_room(self, size: int) -> None:
        if self._size < LIMIT <= self._size + size:
            self._room.notify_all()

    def _watch_now(self) -> None:
        if self._fd >= 0 and not self._watched:
            self._watch(self._fd)  # a second time is harmless, as after a Ctrl-C right here
            self._watched = True

    def _unwatch_now(self) -> None:
        if self._watched:
            self._watched = False
            self._unwatch(self._fd)
