"""What a body says when it returns."""

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final


class _Unset(Enum):
    UNSET = "unset"

    def __repr__(self) -> str:
        return "unset"


UNSET: Final = _Unset.UNSET
"""Where ``None`` is a value: no state was given."""


@dataclass(frozen=True, slots=True)
class Ok:
    """Go on: ``Ok()`` with the state as it is, ``Ok(state)`` with a new one. From a task of several: its value."""

    state: Any = UNSET


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again, with the state given (``Retry()``: as it is); counts against ``retries``."""

    state: Any = UNSET


@dataclass(frozen=True, slots=True)
class Error:
    """Failed: retried while retries are left, then the flow fails with ``reason``, any value."""

    reason: Any = None


@dataclass(frozen=True, slots=True)
class Skip:
    """Only from a body of ``each``: leave this item out and go on."""

    reason: Any = None
