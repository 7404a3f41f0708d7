"""The other direction: what one flow's worker says, and the calls that wait for it.

A pipe has one reader at a time, whoever holds the reader lock: the loop, or a caller that waits for its own reply and
so saves two thread switches. A reader dispatches every frame that it meets. A caller masks the pipe in the loop's
epoll meanwhile; the end of the pipe comes through a mask, so the loop leaves a locked pipe alone.
"""

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from caravela.errors import ProtocolError, StepRaised

from ..protocol import payload
from .calls import Call
from .link import Link
from .loop import Loop

READ: Final = 64 * 1024
HANGING: Final = 1.0
"""Seconds that a worker may live on after it has closed its pipe."""


class Inbox:
    """``receive(link, message)`` gets what answers no call; ``broken(link, why)`` is called on the loop's thread."""

    def __init__(self, loop: Loop, receive: Callable[[Link, Any], None], broken: Callable[[Link, str], None]) -> None:
        self._loop, self._receive, self._broken = loop, receive, broken
        self._reader = threading.Lock()
        self._link: Link | None = None
        self._calls: dict[int, Call] = {}

    # -------------------------------------------------------------- calls

    def expect(self, call: Call) -> None:
        self._calls[call.id] = call

    def give_up(self, call: Call) -> None:
        self._calls.pop(call.id, None)
        call.given_up = True

    def answer(self, number: int, ok: bool, value: bytes) -> None:
        if call := self._calls.pop(number, None):
            call.answer(ok, value)

    def open_calls(self) -> list[Call]:
        return list(self._calls.values())

    # -------------------------------------------------------------- a caller reads

    def begin_reading(self) -> Link | None:
        """Take over from the loop, if a worker is there and nobody else reads."""
        if not self._reader.acquire(False):
            return None
        link = self._link
        if link is None or link.death < 0:
            self._reader.release()
            return None
        with contextlib.suppress(OSError):  # the loop has met its end of file and watches it no more
            self._loop.mask(link.reads)
        return link

    def end_reading(self, link: Link) -> None:
        with contextlib.suppress(OSError):
            self._loop.unmask(link.reads)
        self._reader.release()

    def read_for(self, call: Call, link: Link, deadline: float) -> None:
        """Until ``call`` is answered, its time is up or the worker is gone; the rest is the loop's."""
        poll = select.poll()
        poll.register(link.reads, select.POLLIN)
        poll.register(link.death, select.POLLIN)
        while not call.done and (left := deadline - time.monotonic()) > 0:
            ready = [fd for fd, _ in poll.poll(left * 1000)]
            if link.reads in ready and not self._read(link):
                return
            if link.death in ready:
                return

    # -------------------------------------------------------------- the loop reads

    def attach(self, link: Link) -> None:
        self._link = link
        self._loop.watch(link.reads, partial(self._readable, link))

    def drain(self, link: Link) -> None:
        """The worker is gone: all that it still said, then nothing more is read from this pipe."""
        with self._reader:  # a caller that reads sees the death too and lets go
            while link.more and self._read(link):
                pass
            self._link = None
        self._loop.unwatch(link.reads, close=True)

    def _readable(self, link: Link) -> None:
        if not self._reader.acquire(False):
            return
        try:
            if not self._read(link):
                self._loop.unwatch(link.reads, close=False)
                self._loop.later(HANGING, partial(self._broken, link, "it closed its pipe and lives on"))
        finally:
            self._reader.release()

    def _read(self, link: Link) -> bool:
        """One read, dispatched. False: the end of file, or bytes that are no message."""
        try:
            data = os.read(link.reads, READ)
        except BlockingIOError:
            return True
        if not data:
            return False
        messages: list[Any] = []
        try:
            try:
                link.decoder.take(data, messages)
            finally:  # what was said before the nonsense counts: perhaps that the flow is done
                for message in messages:
                    self._receive(link, message)
        except Exception as error:  # a frame can be well-formed and still make no sense
            why = str(error) if isinstance(error, ProtocolError) else f"{type(error).__name__}: {error}"
            self._loop.post(partial(self._broken, link, why))
            return False
        return True


def error_in(data: bytes) -> StepRaised:
    """The error that a message carries."""
    value = payload.decode(data, trust="data")
    if not isinstance(value, StepRaised):
        raise ProtocolError("an error that is none")
    return value
