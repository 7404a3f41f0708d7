"""Timers are never cancelled, and nobody asks which debounce they were set for."""

import pytest

from caravela.flows.branch import Settling

CASE = "test_the_timer_of_a_past_debounce_never_cuts_a_later_one"


def install(patch: pytest.MonkeyPatch) -> None:
    set_before: dict[int, tuple[Settling, float]] = {}

    def again(self: Settling, now: float) -> None:
        own = now + self.step.ms / 1000
        set_before[id(self)] = self, own
        stale = [until for other, until in set_before.values() if other.step is not self.step and until > now]
        until = min([own, *stale])
        self.until = until if self.cap is None else min(until, self.cap)

    patch.setattr(Settling, "again", again)
