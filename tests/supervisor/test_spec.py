"""Options are checked where they are given, and the error names the option."""

import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from caravela.supervisor.spec import LONGEST, Policy, one_of, seconds


def test_the_defaults_are_those_of_the_design() -> None:
    assert Policy() == Policy("transient", 3, 5.0, 5.0, 10.0, "pickle")


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Policy().restart = "permanent"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"restart": "always"}, ValueError, "restart='always': allowed are 'permanent', 'transient', 'temporary'"),
        ({"restart": []}, ValueError, r"restart=\[\]"),
        ({"trust": "all"}, ValueError, "trust='all': allowed are 'pickle', 'data'"),
        ({"max_restarts": 1.5}, TypeError, "max_restarts=1.5 must be an int"),
        ({"max_restarts": True}, TypeError, "max_restarts=True"),
        ({"max_restarts": None}, TypeError, "max_restarts=None"),
        ({"max_restarts": -1}, ValueError, "max_restarts=-1 must not be negative"),
        ({"max_seconds": "5"}, TypeError, "max_seconds='5' must be a number of seconds"),
        ({"max_seconds": -0.1}, ValueError, "max_seconds=-0.1 must be between 0 and 2,000,000 seconds"),
        ({"max_seconds": 0}, ValueError, "max_seconds=0 must be above 0; for no restarts: max_restarts=0"),
        ({"max_seconds": 0.0}, ValueError, "max_seconds=0.0 must be above 0"),
        ({"shutdown": None}, TypeError, "shutdown=None"),
        ({"shutdown": math.nan}, ValueError, "shutdown=nan"),
        ({"shutdown": math.inf}, ValueError, "shutdown=inf"),
        ({"boot_timeout": True}, TypeError, "boot_timeout=True"),
        ({"boot_timeout": LONGEST * 1.01}, ValueError, "boot_timeout="),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Policy(**options)
    with pytest.raises(error, match=text):
        replace(Policy(), **options)


@pytest.mark.parametrize("value", [0, 0.0, 1, 2.5, LONGEST])
def test_seconds(value: float) -> None:
    seconds("timeout", value)


def test_one_of() -> None:
    one_of("engine", "inline", ("process", "inline"))
    with pytest.raises(ValueError, match="engine='thread': allowed are 'process', 'inline'"):
        one_of("engine", "thread", ("process", "inline"))
