"""The page that a worker shares with its supervisor: where it stands, readable also after it was killed.

A memfd of 4 KiB, native byte order (both ends run on one machine):

=====  ========================================================================
bytes  meaning
=====  ========================================================================
0      turn: how often a path was entered; slot ``turn % 2`` holds the last one
8      signals handled (applied or rejected)
16     number of the signal that executes, 0 when none does
24     loop time: seconds on the monotonic clock, float
64     slot 0, 2,016 bytes: attempt (8), length of the path (8), path in UTF-8
2080   slot 1
=====  ========================================================================

Numbers are aligned words, each written by one store. A path is written into the slot that nobody reads; the turn is
advanced last. So a worker that dies at any moment, or writes while it is read, never shows half of anything.
"""

import fcntl
import mmap
import os
from dataclasses import dataclass
from typing import Final, Self

SIZE: Final = 4096
PATH_ROOM: Final = 2000
"""Bytes of UTF-8 that a path may have; a longer one is cut and ends in ``…``."""

_TURN, _HANDLED, _EXECUTING, _LOOPED = range(4)
_SLOTS: Final = (64, 2080)
_CUT: Final = "…".encode()


@dataclass(frozen=True, slots=True)
class Status:
    """``applied``: signals handled; ``executing``: number of the one under way (0: none).

    ``looped``: when the loop last turned, in seconds on the monotonic clock.
    """

    applied: int
    executing: int
    path: str
    attempt: int
    looped: float


class Page:
    """One writer, any number of readers. The worker writes, the supervisor reads."""

    __slots__ = ("_bytes", "_last", "_map", "_times", "_words")

    def __init__(self, shared: mmap.mmap) -> None:
        self._map = shared
        self._bytes = memoryview(shared)
        self._words = self._bytes.cast("Q")
        self._times = self._bytes.cast("d")
        self._last = ("", b"")

    @classmethod
    def create(cls) -> tuple[Self, int]:
        """The page, and the fd to attach to it, which is the caller's to pass on and to close."""
        fd = os.memfd_create("caravela-status", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, SIZE)
            # A worker that made its page shorter would kill the supervisor: reading there is SIGBUS.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            return cls.attach(fd), fd
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int) -> Self:
        """``fd`` is not needed any more afterwards, and stays the caller's."""
        return cls(mmap.mmap(fd, SIZE))

    def enter(self, path: str, attempt: int) -> None:
        known, data = self._last
        if path is not known:
            data = path.encode(errors="replace")
            if len(data) > PATH_ROOM:
                data = data[: PATH_ROOM - len(_CUT)].decode(errors="ignore").encode() + _CUT
            self._last = (path, data)
        words = self._words
        turn = words[_TURN] + 1
        slot = _SLOTS[turn & 1]
        size = len(data)
        words[slot >> 3] = attempt
        words[(slot >> 3) + 1] = size
        self._map[slot + 16 : slot + 16 + size] = data
        words[_TURN] = turn

    def executing(self, no: int) -> None:
        self._words[_EXECUTING] = no

    def applied(self, no_of_signals_handled: int) -> None:
        self._words[_HANDLED] = no_of_signals_handled

    def looped(self, now: float) -> None:
        self._times[_LOOPED] = now

    def read(self) -> Status:
        words = self._words
        while True:
            turn = words[_TURN]
            slot = _SLOTS[turn & 1]
            attempt = words[slot >> 3]
            size = min(words[(slot >> 3) + 1], PATH_ROOM)
            data = self._map[slot + 16 : slot + 16 + size]
            if words[_TURN] == turn:  # else the writer may have come round to this slot again
                break
        return Status(
            applied=words[_HANDLED],
            executing=words[_EXECUTING],
            path=data.decode(errors="replace"),
            attempt=attempt,
            looped=self._times[_LOOPED],
        )

    def close(self) -> None:
        """Gives the mapping back; closing twice is harmless, any other call afterwards raises ``ValueError``."""
        for view in (self._times, self._words, self._bytes):
            view.release()
        self._map.close()
