"""The arithmetic of restarts."""

import pytest

from caravela.supervisor.restarts import BOOT_FAILURES, Budget, boot_delay


def test_as_many_restarts_as_allowed() -> None:
    budget = Budget(3, 5.0)
    history: tuple[float, ...] = ()
    for now in (0.0, 1.0, 2.0):
        history = budget.charge(history, now) or ()
    assert history == (0.0, 1.0, 2.0)
    assert budget.charge(history, 3.0) is None


def test_the_window_includes_its_edge() -> None:
    """As in OTP: a restart exactly ``max_seconds`` ago still counts."""
    budget = Budget(1, 5.0)
    assert budget.charge((10.0,), 15.0) is None
    assert budget.charge((10.0,), 15.000001) == (15.000001,)


def test_what_is_old_is_forgotten() -> None:
    assert Budget(2, 5.0).charge((0.0, 1.0, 97.0), 100.0) == (97.0, 100.0)


def test_a_budget_of_nothing() -> None:
    assert Budget(0, 5.0).charge((), 0.0) is None


def test_a_refused_restart_changes_nothing() -> None:
    history = (1.0, 2.0)
    assert Budget(2, 5.0).charge(history, 3.0) is None
    assert Budget(2, 5.0).charge(history, 6.5) == (2.0, 6.5)


def test_boot_delays_double_and_end() -> None:
    delays = [boot_delay(n) for n in range(1, BOOT_FAILURES + 2)]
    assert delays == [*map(pytest.approx, [0.1, 0.2, 0.4, 0.8]), None, None]
