"""A place where a flow waits for its test, and a test for its flow, whatever process the flow is in.

A gate is a named pipe: opening one end waits for the other. It is a path, so a state can carry it.
"""

import os
from contextlib import suppress
from dataclasses import dataclass


def pass_gate(path: str) -> None:
    """In the flow: wait here until the test opens the gate. An open gate holds up nobody."""
    with suppress(FileNotFoundError), open(path, "rb", buffering=0) as gate:
        gate.read()


@dataclass(slots=True)
class Keeper:
    """The test's side."""

    path: str
    _fd: int = -1

    @classmethod
    def of(cls, path: str) -> "Keeper":
        os.mkfifo(path)
        return cls(path)

    def meet(self) -> None:
        """Until somebody stands before the gate."""
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_WRONLY)

    def open(self) -> None:
        """Let whoever stands there through, and all who come later."""
        self.meet()
        os.unlink(self.path)
        os.close(self._fd)
        self._fd = -1

    def throw_open(self) -> None:
        """Whether or not somebody stands there."""
        with suppress(FileNotFoundError):
            both = os.open(self.path, os.O_RDWR)
            os.unlink(self.path)
            os.close(both)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
