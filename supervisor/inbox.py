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
from .calls import Call
from .interrupts import interruptible
from .link import Link
from .loop import Loop
from .patience import this_thread

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
        self._then: Callable[[], None] | None = None
        """For the loop, when the reader of now lets go."""
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

    def begin_reading(self, call: Call) -> None:
        """Take over from the loop, if a worker is there and nobody else reads. In any case end it."""
        with self._gate:
            link = self._link
            if self._reader is not None or link is None or link.death < 0:
                return
            self._reader = call
        self._loop.mask(link.reads)

    def read_for(self, call: Call, deadline: float) -> None:
        """Until ``call`` is answered, its time is up or the worker is gone; the rest is the loop's.

        Does nothing where ``call`` does not read, or not any more.
        """
        if self._reader is not call or (link := self._link) is None or (death := link.death) < 0:
            return
        poll = select.poll()
        poll.register(link.reads, select.POLLIN)
        poll.register(death, select.POLLIN)
        this_thread.serving = True  # it tells everybody what the worker says
        try:
            while not call.done and self._then is None and (left := deadline - time.monotonic()) > 0:
                ready = [fd for fd, _ in interruptible(poll.poll, left * 1000)]
                if link.reads in ready and not self._read(link):
                    return
                if death in ready:
                    return
        finally:
            this_thread.serving = False

    def end_reading(self, call: Call) -> None:
        """Does nothing where ``call`` does not read."""
        if self._reader is call:
            assert self._link is not None  # it stays while somebody reads
            self._loop.unmask(self._link.reads)
            self._let_go()

    def _let_go(self) -> None:
        with self._gate:
            then, self._then, self._reader = self._then, None, None
        if then is not None:
            self._loop.post(then)

    # -------------------------------------------------------------- the loop reads

    def attach(self, link: Link) -> None:
        self._link = link
        self._loop.watch(link.reads, partial(self._readable, link))

    def drained(self, link: Link, then: Callable[[], None]) -> bool:
        """The worker is gone: all that it still said, then nothing more is read from this pipe.

        False: a caller reads. It sees the death too and lets go; then ``then`` is posted, to come here again. It is not
        waited for: who waits on the loop holds up all forks, and the caller may be in a queue's put that forks.
        """
        with self._gate:
            if self._reader is not None:
                self._then = then
                link.death = -1  # the engine closes it: nobody else is to begin
                return False
            self._reader = self
        try:
            while link.more and self._read(link):
                pass
        finally:
            self._link = None
            self._let_go()
            self._loop.unwatch(link.reads, close=True)
        return True

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
