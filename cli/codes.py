"""Exit codes, as ``--help`` and README list them."""

from typing import Final

DONE: Final = 0
"""The flow is done; ``check`` found nothing."""
FAILED: Final = 1
"""The flow failed, or crashed more often than it may; ``check`` found something."""
USAGE: Final = 2
"""Wrong arguments, or no such flow."""
CANNOT_START: Final = 3
"""The flow cannot be loaded by a worker, or its first state cannot be made."""
TIMED_OUT: Final = 124
"""It was stopped after ``--timeout``."""
INTERRUPTED: Final = 130
"""It was stopped by a Ctrl-C."""
NOBODY_READS: Final = 141
"""Whoever read the output has gone."""
TERMINATED: Final = 143
"""It was stopped by SIGTERM."""
