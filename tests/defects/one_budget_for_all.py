"""The restarts of all flows are counted together."""

import pytest

from caravela.supervisor.restarts import Budget

CASE = "test_a_flow_that_spends_its_restarts_ends_alone"


def install(patch: pytest.MonkeyPatch) -> None:
    of_all: list[float] = []

    def charge(self: Budget, history: tuple[float, ...], now: float) -> tuple[float, ...] | None:
        of_all.append(now)
        recent = tuple(then for then in of_all if now - then <= self.max_seconds)
        return recent if len(recent) <= self.max_restarts else None

    patch.setattr(Budget, "charge", charge)
