"""A handle stands for the process that was first started, not for the flow."""

from collections.abc import Callable

import pytest

from caravela.supervisor.entries import Asking, Sending
from caravela.supervisor.line import Line
from caravela.supervisor.runner import Runner

CASE = "test_after_a_restart_the_handle_works"


def install(patch: pytest.MonkeyPatch) -> None:
    put = Line._put

    def put_to_the_first(self: Line, entry: Sending | Asking, patience: Callable[[], float]) -> None:
        flow = self._flow
        assert isinstance(flow, Runner)
        if flow.incarnation > 1:
            raise flow.not_running()
        put(self, entry, patience)

    patch.setattr(Line, "_put", put_to_the_first)
