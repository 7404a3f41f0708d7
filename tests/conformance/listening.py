"""Waiting for events: a bound on each, so that what never comes fails the test by its name."""

from typing import Any, Protocol

from caravela import FlowDone, FlowError, FlowState, FlowStopped
from caravela.supervisor.events import Event

SOON = 8.0
"""Seconds that no event of these tests takes."""

ENDS: tuple[type[Event], ...] = (FlowDone, FlowError, FlowStopped)


class Source(Protocol):
    """A subscription, or a queue."""

    def get(self, *, timeout: float) -> Any: ...


def until(source: Source, *kinds: type[Event], count: int = 1) -> list[Any]:
    """All events up to the ``count``-th one of ``kinds``, that included; by default to the end of the flow."""
    came: list[Any] = []
    while count:
        came.append(source.get(timeout=SOON))
        count -= isinstance(came[-1], kinds or ENDS)
    return came


def states(events: list[Any]) -> list[Any]:
    return [event.state for event in events if isinstance(event, FlowState)]
