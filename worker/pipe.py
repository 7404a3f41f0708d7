"""The worker's end of its pair of pipes. Neither reading nor writing ever waits; ``await_input`` and ``finish`` do."""

import os
import select
import stat
from typing import Final

from ..protocol.codec import Decoder, encode
from ..protocol.messages import ToSupervisor, ToWorker
from . import clones

READ: Final = 64 * 2**10
"""Bytes of one bounded read (G6); also what a pipe holds."""

FULL: Final = 8 * 2**20
"""Bytes of unsent frames at which a worker does nothing more before its host has read."""

TORN: Final = "a descriptor of the worker's own was closed in here"
"""Text of the ``OSError`` that a use of it raises: code of the user's closed what it did not open."""

_AT_ONCE: Final = 64


class HostGone(Exception):
    """The other end of one of the pipes is closed."""


class Halted(Exception):
    """Who runs this worker in its own process wants it to end now."""


class Pipe:
    """Frames in and out. ``halt``, if given, is an fd that becomes readable when the worker must end at once.

    ``born``: the generation (see :mod:`.clones`) to which they belong; no fork may touch them.

    A signal handler of the user's may raise after any call of a function, and the worker then still says why it ends.
    So what is written is noted by the same call in C, and taken over by plain stores: no byte is sent twice.
    """

    def __init__(self, reads: int, writes: int, decoder: Decoder, halt: int | None = None) -> None:
        self.reads, self.writes, self.halt = reads, writes, halt
        self.born = clones.generation
        self.torn = False
        """``halt`` became readable because another descriptor, which should have woken the worker, was closed."""
        os.set_blocking(reads, False)
        os.set_blocking(writes, False)
        self._decoder = decoder
        self._out: list[bytes] = []
        self._at = 0
        """Bytes of the first that are written."""
        self._news: list[int] = []
        """Bytes written beyond ``_at``."""
        self.unsent = 0
        """Bytes."""

    @property
    def full(self) -> bool:
        return self.unsent > FULL

    def read(self) -> list[ToWorker]:
        """One bounded read.

        Raises ``HostGone`` at the end of file, ``ProtocolError`` for what is no message, ``OSError`` (``TORN``).
        """
        try:
            data = os.read(self.reads, READ)
        except OSError as error:
            if _is_a_handlers(error):
                raise
            if isinstance(error, BlockingIOError):
                return []
            raise OSError(TORN) from error
        if not data:
            raise HostGone if stat.S_ISFIFO(os.fstat(self.reads).st_mode) else OSError(TORN)
        messages: list[ToWorker] = self._decoder.feed(data)  # type: ignore[assignment]  # of its union
        return messages

    def send(self, message: ToSupervisor) -> None:
        """Takes it; ``flush`` writes it."""
        data = encode(message)
        self._out.append(data)
        self.unsent += len(data)

    def flush(self) -> None:
        """As much as the pipe takes now. Raises ``HostGone``, ``OSError`` (``TORN``)."""
        if not self._out:
            return
        clones.came_back(self.born)
        self._settle()
        while self._out:
            frames: list[bytes | memoryview] = [memoryview(self._out[0])[self._at :], *self._out[1:_AT_ONCE]]
            try:
                self._news.extend(map(os.writev, (self.writes,), (frames,)))
            except OSError as error:
                if _is_a_handlers(error):
                    raise
                if isinstance(error, BlockingIOError):
                    return
                if isinstance(error, BrokenPipeError):
                    raise HostGone from None
                raise OSError(TORN) from error
            self._settle()

    def _settle(self) -> None:
        """What was written since the last time."""
        written = sum(self._news)
        at, whole = self._at + written, 0
        while whole < len(self._out) and at >= len(self._out[whole]):
            at -= len(self._out[whole])
            whole += 1
        unsent = self.unsent - written
        del self._out[:whole]
        self._at, self._news, self.unsent = at, [], unsent

    def cry(self, message: ToSupervisor) -> bool:
        """The last frame of a process that ends, from any thread; False where it cannot be written."""
        try:
            if self._out or not stat.S_ISFIFO(os.fstat(self.writes).st_mode):
                return False
            os.write(self.writes, encode(message))
        except OSError:
            return False
        return True

    def await_input(self) -> list[ToWorker]:
        """Waits for at least one message, as at boot, when there is nothing else to do."""
        while True:
            self._poll(self.reads, select.POLLIN)
            if messages := self.read():
                return messages

    def finish(self) -> None:
        """Waits until everything is written, however slowly the host reads."""
        self.flush()
        while self._out:
            self._poll(self.writes, select.POLLOUT)
            self.flush()

    def _poll(self, fd: int, mask: int) -> None:
        poll = select.poll()
        poll.register(fd, mask)
        if self.halt is not None:
            poll.register(self.halt, select.POLLIN)
        if any(ready == self.halt for ready, _ in poll.poll()):
            raise Halted


def _is_a_handlers(error: OSError) -> bool:
    """Raised by a signal handler of the user's amid a system call: it has a frame of its own, what is in C has none."""
    return error.__traceback__ is not None and error.__traceback__.tb_next is not None
