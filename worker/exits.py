"""With what code a worker's process ends; the frame that went before it says why."""

from typing import Final

ENDED: Final = 0
"""The terminal frame (``Done``, ``Failed``, ``Stopped``) was written whole."""

CRASHED: Final = 70
"""A ``Crashed`` frame went first, or the traceback is on stderr."""

BOOT_FAILED: Final = 71
"""A ``BootFailed`` frame went first."""

PROTOCOL: Final = 72
"""Bytes came that are no message, or a message that has no place there."""

HOST_GONE: Final = 73
"""The other end of a pipe is closed."""

HALTED: Final = 74
"""Told to end at once by whoever runs the worker in its own process."""
