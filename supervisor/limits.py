"""The soft limit of fds: raised when more are needed than it allows, and remembered for the workers."""

import errno
import resource
from collections.abc import Callable
from typing import TypeVar

Made = TypeVar("Made")

_raised: tuple[int, int] | None = None
"""What the soft limit was before, and to what it was raised."""


def with_enough_fds(make: Callable[[], Made]) -> Made:
    """Raises the soft limit of this process when that is what ``make`` lacks; ``OSError`` at the hard one."""
    global _raised
    try:
        return make()
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        own = fds_of_the_host()
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _raised = own, hard
        return make()


def fds_of_the_host() -> int:
    """The soft limit that this process chose for itself; what a worker gets."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _raised[0] if _raised and _raised[1] == soft else soft
