"""The pipes and the page that the host shares with one worker."""

import os
import select
from dataclasses import dataclass

from ..protocol.codec import Decoder
from ..protocol.status import Page
from .engines.base import Ends
from .limits import with_enough_fds


@dataclass(slots=True)
class Link:
    """``key`` is the worker's name at the engine; ``death`` is readable when it is gone, -1 until it was launched."""

    reads: int
    writes: int
    page: Page
    nonce: bytes
    decoder: Decoder
    key: int = 0
    death: int = -1
    pid: int | None = None

    @classmethod
    def make(cls, nonce: bytes) -> "tuple[Link, Ends]":
        """Both sides; the ends are the engine's to close. Raises ``OSError`` where no fds are left."""
        fds: list[int] = []
        try:
            page, page_fd = with_enough_fds(Page.create)
            fds.append(page_fd)
            fds += with_enough_fds(os.pipe)
            fds += with_enough_fds(os.pipe)
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        page_fd, their_reads, writes, reads, their_writes = fds
        os.set_blocking(reads, False)
        os.set_blocking(writes, False)
        link = cls(reads, writes, page, nonce, Decoder("to_supervisor"))
        return link, Ends(their_reads, their_writes, page_fd)

    @property
    def more(self) -> bool:
        """Something can be read now. Never wait for the end of file: a grandchild may hold the other end."""
        poll = select.poll()
        poll.register(self.reads, select.POLLIN)
        return any(events & select.POLLIN for _, events in poll.poll(0))

    def doing(self) -> str | None:
        """Where the worker stands, in words; None where the page was closed a moment ago."""
        try:
            page = self.page.read()
        except ValueError:
            return None
        where = f"in {page.path}, attempt {page.attempt}" if page.path else "at its beginning"
        return f"{where}, applying signal {page.executing}" if page.executing else where

    def forget(self) -> None:
        """In a forked child: let the copies of the fds go."""
        os.close(self.reads)
        os.close(self.writes)
        self.page.close()
