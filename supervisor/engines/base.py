"""What an engine is: something that runs a worker somewhere and says when it is gone.

An engine lives on the supervisor's loop thread; every method is called there and none blocks. It gets the loop as
:class:`Loop` when it is opened, and reports with :data:`Report` values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from caravela.errors import Cause


@dataclass(frozen=True, slots=True)
class Ends:
    """The worker's: where it reads messages, where it writes them, its status page. The engine closes them here."""

    reads: int
    writes: int
    page: int


@dataclass(frozen=True, slots=True)
class Setting:
    """What a worker is going to import, and in which surroundings, encoded: what a module reads there it reads once."""

    modules: tuple[str, ...]
    environment: bytes


@dataclass(frozen=True, slots=True)
class Launched:
    """The worker runs. ``death`` becomes readable when it is gone; the engine keeps and closes it."""

    key: int
    pid: int
    death: int


@dataclass(frozen=True, slots=True)
class LaunchFailed:
    key: int
    why: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The worker is gone and so is its process group. The last report of its key."""

    key: int
    cause: Cause


Report: TypeAlias = Launched | LaunchFailed | Exited


class Loop(Protocol):
    """What the supervisor's loop offers to its engine."""

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Call ``ready`` whenever ``fd`` is readable. Effective between two batches of the loop."""
        ...

    def unwatch(self, fd: int, *, close: bool) -> None: ...

    def later(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        """Returns what cancels it."""
        ...

    def report(self, report: Report, /) -> None: ...


class Engine(Protocol):
    def open(self, loop: Loop) -> None: ...

    def launch(self, key: int, ends: Ends, setting: Setting) -> None:
        """Ends in ``Launched`` or ``LaunchFailed``; after ``Launched`` comes exactly one ``Exited``.

        An engine may have imported beforehand what ``setting`` names.
        """
        ...

    def booted(self, key: int) -> None:
        """The worker's flow is loaded: what it imported can be imported, and others may want it."""
        ...

    def terminate(self, key: int) -> None:
        """SIGTERM to the worker; nothing if it is gone."""
        ...

    def kill(self, key: int) -> None:
        """SIGKILL to the worker and its group; nothing if they are gone."""
        ...

    def forget(self) -> None:
        """In a forked child: close the copies of the engine's fds, touching neither the loop nor a process."""
        ...

    def close(self) -> None:
        """Everything that is left is killed; afterwards nothing of the engine remains in this process or another."""
        ...
