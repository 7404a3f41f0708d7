"""A handle stands for the process that was first started, not for the flow."""

import pytest

from caravela.supervisor.entries import Asking, Sending
from caravela.supervisor.runner import Runner

CASE = "test_after_a_restart_the_handle_works"


def install(patch: pytest.MonkeyPatch) -> None:
    tell = Runner.tell

    def tell_the_first(self: Runner, entry: Sending | Asking, timeout: float) -> None:
        if self.incarnation > 1:
            raise self.not_running()
        tell(self, entry, timeout)

    patch.setattr(Runner, "tell", tell_the_first)
