"""What the supervisor says to the host's log."""

import logging
import traceback
from contextlib import suppress
from typing import Any

from .interrupts import foreign, was_interrupted

NAME = "caravela"


def say(level: int, message: str, *args: Any, logger: str = NAME, **options: Any) -> None:
    """As ``Logger.log``. Filters and handlers are code of the host's: what they raise harms no flow."""
    try:
        foreign(logging.getLogger(logger).log, level, message, *args, **options)
    except BaseException as error:
        if not was_interrupted(error) and logging.raiseExceptions:  # as logging's own handlers do
            with suppress(Exception):
                traceback.print_exc()
