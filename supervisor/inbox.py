"""The other direction: what one flow's worker says, and the calls that wait for it.

A pipe has one reader at a time: the loop, or a caller that waits for its own reply and so saves two thread switches.
A reader dispatches every frame that it meets. A caller masks the pipe in the loop's epoll meanwhile; the end of the
pipe comes through a mask, so the loop leaves a pipe alone that somebody else reads.
"""

import os
import select
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from caravela.errors import ProtocolError, StepRaised

from ..protocol import payload
from ..protocol.codec import Decoder
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
        self._gate = threading.Lock()
        self._reader: object = None
        """Who reads: a call, the inbox itself for the loop, or None."""
        self._free: threading.Lock | None = None
        """Released when the reader of now lets go: the loop waits for it."""
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

    def begin_reading(self, call: Call) -> Link | None:
        """Take over from the loop, if a worker is there and nobody else reads. In any case end it."""
        with self._gate:
            link = self._link
            if self._reader is not None or link is None or link.death < 0:
                return None
            self._reader = call
        self._loop.mask(link.reads)
        return link

    def end_reading(self, call: Call) -> None:
        """Does nothing where ``call`` does not read. Whatever a Ctrl-C leaves undone a second time does."""
        if self._reader is call:
            if self._link is not None:  # it stays while somebody reads
                self._loop.unmask(self._link.reads)
                if self._link.untold:
                    self._loop.post(partial(self._catch_up, self._link))
            self._let_go()

    def _let_go(self) -> None:
        with self._gate:  # in here nothing is interrupted before the lock is released
            free, self._free, self._reader = self._free, None, None
            if free is not None:
                free.release()

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
        self._take_over()
        if link.untold:
            self._read(link)
        while link.more and self._read(link):
            pass
        self._link = None
        self._let_go()
        self._loop.unwatch(link.reads, close=True)

    def _catch_up(self, link: Link) -> None:
        """Tells what a caller that was interrupted had read."""
        self._take_over()
        try:
            if self._link is link and link.untold:
                self._read(link)
        finally:
            self._let_go()

    def _take_over(self) -> None:
        """From a caller: it sees the death too and lets go."""
        while True:
            with self._gate:
                if self._reader is None:
                    self._reader = self
                    return
                self._free = free = threading.Lock()
                free.acquire()
            free.acquire()

    def _readable(self, link: Link) -> None:
        with self._gate:
            if self._reader is not None:
                return
            self._reader = self
        try:
            if not self._read(link):
                self._loop.unwatch(link.reads, close=False)
                self._loop.later(HANGING, partial(self._broken, link, "it closed its pipe and lives on"))
        finally:
            self._let_go()

    def _read(self, link: Link) -> bool:
        """One read, dispatched. False: the end of file, or bytes that are no message."""
        try:
            link.came.extend(map(os.read, (link.reads,), (READ,)))  # one call: nothing is read without its note
        except BlockingIOError:
            if not link.untold:
                return True
        if link.came and not link.came[-1]:
            link.came = link.came[:-1]
            return False
        try:
            self._dispatch(link)
        except Exception as error:  # a frame can be well-formed and still make no sense
            why = str(error) if isinstance(error, ProtocolError) else f"{type(error).__name__}: {error}"
            self._loop.post(partial(self._broken, link, why))
            return False
        return True

    def _dispatch(self, link: Link) -> None:
        """What came last; all that is not dispatched yet, where a Ctrl-C has interrupted the one before.

        What was being told then is told again: twice is better than not at all.
        """
        if link.half_told:
            link.decoder, link.eaten = Decoder("to_supervisor"), 0
        link.half_told = True
        data, eaten = b"".join(link.came[link.eaten :]), len(link.came)
        messages: list[Any] = []
        try:
            link.decoder.take(data, messages)
        finally:  # what was said before the nonsense counts: perhaps that the flow is done
            for message in messages[link.told :]:
                self._receive(link, message)
                link.told += 1
        came = link.came
        if messages:
            came = [data[-link.decoder.pending :]] if link.decoder.pending else []
            eaten = len(came)
        link.came, link.eaten, link.told, link.half_told = came, eaten, 0, False


def error_in(data: bytes) -> StepRaised:
    """The error that a message carries."""
    value = payload.decode(data, trust="data")
    if not isinstance(value, StepRaised):
        raise ProtocolError("an error that is none")
    return value
