"""Nobody catches what a signal raises."""

import pytest

from caravela.flows.events import Signal
from caravela.flows.visible import Visible

CASE = "test_a_signal_that_raises_is_rejected_and_the_flow_lives"


def apply(self: Visible, signal: Signal, base: bytes, *, again: bool) -> bytes:
    return self.codec.encode(signal.fn(self.codec.decode(base), *signal.args))


def install(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Visible, "apply", apply)
