"""While a body computes the flow takes nothing in; what came is applied when the body is done."""

import pytest

from caravela.flows import events as e
from caravela.flows.machine import Machine

CASE = "test_the_state_is_answered_while_a_body_computes"


def install(patch: pytest.MonkeyPatch) -> None:
    advance = Machine.advance
    kept: list[e.Signal] = []

    def blocked(self: Machine, event: e.Event, now: float) -> list[e.Effect]:
        if self._tasks and isinstance(event, e.Signal):
            kept.append(event)
            return []
        effects = advance(self, event, now)
        while kept and not self._tasks:
            effects += advance(self, kept.pop(0), now)
        return effects

    patch.setattr(Machine, "advance", blocked)
