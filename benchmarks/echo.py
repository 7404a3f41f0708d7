"""The bare round trip: a program that writes back what it reads. ``python -m benchmarks.echo READS WRITES``."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .timing import Way

MESSAGE = b"x" * 64


@contextmanager
def over_pipes() -> Iterator[Way]:
    their_reads, our_writes = os.pipe()
    our_reads, their_writes = os.pipe()
    try:
        with _partner(their_reads, their_writes):
            os.close(their_reads)
            os.close(their_writes)
            yield lambda: _round_trip(our_reads, our_writes)
            os.close(our_writes)  # it ends at the end of file
    finally:
        os.close(our_reads)


@contextmanager
def over_socket() -> Iterator[Way]:
    ours, theirs = socket.socketpair()
    with ours, _partner(theirs.fileno(), theirs.fileno()):
        theirs.close()
        yield lambda: _round_trip(ours.fileno(), ours.fileno())
        ours.shutdown(socket.SHUT_RDWR)


def _partner(reads: int, writes: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(reads), str(writes)],
        pass_fds={reads, writes},
        stdin=subprocess.DEVNULL,
        cwd=Path(__file__).parents[1],
    )


def _round_trip(reads: int, writes: int) -> float:
    before = time.perf_counter()
    os.write(writes, MESSAGE)
    os.read(reads, len(MESSAGE))
    return time.perf_counter() - before


def main(reads: int, writes: int) -> None:
    while data := os.read(reads, len(MESSAGE)):
        os.write(writes, data)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
