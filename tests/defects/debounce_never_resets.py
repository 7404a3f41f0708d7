"""The timer of a debounce is set once, at entry."""

import pytest

from caravela.flows.branch import Settling

CASE = "test_debounce_begins_anew_with_every_signal"


def again(self: Settling, now: float) -> None:
    if self.until <= now:  # as `begin` leaves it
        until = now + self.step.ms / 1000
        self.until = until if self.cap is None else min(until, self.cap)


def install(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Settling, "again", again)
