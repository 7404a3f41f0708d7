"""A handle stands for the process that was first started, not for the flow."""

from collections.abc import Callable

import pytest

from caravela.supervisor.entries import Asking, Sending
from caravela.supervisor.runner import Runner

CASE = "test_after_a_restart_the_handle_works"


def install(patch: pytest.MonkeyPatch) -> None:
    put = Runner._put

    def put_to_the_first(self: Runner, entry: Sending | Asking, patience: Callable[[], float]) -> None:
        if self.incarnation > 1:
            raise self.not_running()
        put(self, entry, patience)

    patch.setattr(Runner, "_put", put_to_the_first)
