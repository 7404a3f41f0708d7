"""All contestants are awaited, and the last word counts."""

from typing import Any

import pytest

from caravela.flows.bodies import Bodies
from caravela.flows.branch import Branch, Racing

CASE = "test_race_keeps_the_quick_one_at_its_moment"


def race_done(self: Bodies, branch: Branch, activity: Racing, task: int, result: Any) -> None:
    activity.running.pop(task)
    if not activity.running:
        self._collect(branch, activity.step.collect_as, self._value_of(branch, result))


def install(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Bodies, "_race_done", race_done)
