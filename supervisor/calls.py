"""Questions that somebody waits for, and how they are answered."""

import threading
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from .interrupts import interruptible
from .latch import taken

_numbers = count(1)


@dataclass(slots=True, eq=False)
class Call:
    """One question. Answered once, by whichever thread reads the answer; waited for by one."""

    kind: str
    """``get_state`` or ``update``: for the texts of errors, and to know which may be asked again."""
    id: int = field(default_factory=lambda: next(_numbers))
    written: bool = False
    """The worker has all of it; if it dies now, nobody knows whether it was applied."""
    given_up: bool = False
    ok: bool = False
    value: bytes = b""
    error: BaseException | None = None
    ended: bool = False
    """The flow has ended before it could answer."""
    done: bool = False
    latch: Any = field(default_factory=taken)
    """Released when it is done; a lock that is taken, for those who call :meth:`wait`."""
    _claim: Any = field(default_factory=threading.Lock)

    def answer(self, ok: bool, value: bytes) -> None:
        self._finish(ok=ok, value=value)

    def fail(self, error: BaseException) -> None:
        self._finish(error=error)

    def end(self) -> None:
        self._finish(ended=True)

    def wait(self, seconds: float) -> bool:
        """Until it is done; a lock is the cheapest latch there is."""
        return self.done or interruptible(self.latch.acquire, True, max(seconds, 0.0))

    def _finish(
        self, *, ok: bool = False, value: bytes = b"", error: BaseException | None = None, ended: bool = False
    ) -> None:
        """The first wins: a reader may come with the answer while the loop comes with the end."""
        if not self._claim.acquire(blocking=False):
            return
        self.ok, self.value, self.error, self.ended = ok, value, error, ended
        self.done = True
        self.latch.release()
