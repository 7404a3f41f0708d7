"""What a host and a zygote say to each other, and how.

    host ──[LAUNCH, key] + reads, writes, page──▶ zygote ──fork──▶ worker (own session)
    host ──[BRANCH, key] + control, setting─────▶ zygote ──fork──▶ branch
    host ◀─[HELLO, version] · [LAUNCHED, key, pid] + pidfd · [LAUNCH_FAILED, key, why] · [EXITED, key, status]── zygote
    host ◀─[HELLO, version] or [UNSUITABLE, why]── branch

One SEQPACKET socketpair for each, one packet a message, fds by SCM_RIGHTS.
"""

import array
import socket
from collections.abc import Iterable
from typing import Final, TypeAlias

VERSION: Final = 2

HELLO: Final = 0
LAUNCHED: Final = 1
LAUNCH_FAILED: Final = 2
EXITED: Final = 3
LAUNCH: Final = 4
BRANCH: Final = 5
UNSUITABLE: Final = 6

FDS: Final = {LAUNCH: 3, BRANCH: 2}
"""That come with a request."""

PACKET: Final = 4096

Rights: TypeAlias = list[tuple[int, int, "array.array[int]"]]


def room(fds: int) -> int:
    """For the control message that brings so many."""
    return socket.CMSG_SPACE(fds * array.array("i").itemsize)


def rights(fds: Iterable[int]) -> Rights:
    """What ``sendmsg`` is given to pass them on."""
    passed = array.array("i", fds)
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)] if passed else []


def passed(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The fds that came with a packet; also those of a cut control message, which must be closed like the others."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)
