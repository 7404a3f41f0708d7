"""The worker's end of its pair of pipes. Neither reading nor writing ever waits; ``await_input`` and ``finish`` do."""

import os
import select
import stat
from collections import deque
from itertools import islice
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
    """

    def __init__(self, reads: int, writes: int, decoder: Decoder, halt: int | None = None) -> None:
        self.reads, self.writes, self.halt = reads, writes, halt
        self.born = clones.generation
        self.torn = False
        """``halt`` became readable because another descriptor, which should have woken the worker, was closed."""
        os.set_blocking(reads, False)
        os.set_blocking(writes, False)
        self._decoder = decoder
        self._out: deque[bytes | memoryview] = deque()
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
        except BlockingIOError:
            return []
        except OSError as error:
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
        if self._out:
            clones.came_back(self.born)
        while self._out:
            try:
                written = os.writev(self.writes, list(islice(self._out, _AT_ONCE)))
            except BlockingIOError:
                return
            except BrokenPipeError:
                raise HostGone from None
            except OSError as error:
                raise OSError(TORN) from error
            self.unsent -= written
            while written:
                first = self._out.popleft()
                if written < len(first):
                    self._out.appendleft(memoryview(first)[written:])
                    break
                written -= len(first)

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
