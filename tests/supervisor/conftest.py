import sys
from collections.abc import Callable
from itertools import count
from types import FrameType

import pytest

Interrupted = Callable[[int, Callable[[], object]], bool]


@pytest.fixture
def interrupted() -> Interrupted:
    """``interrupted(moment, call)`` calls it and raises ``KeyboardInterrupt`` in it, in our code, at the ``moment``-th
    place where Python lets a Ctrl-C raise: where a function begins, and behind one in C. Whether there is such a place.
    """
    return _interrupted


def _interrupted(moment: int, call: Callable[[], object]) -> bool:
    places = count(1)
    raised = False

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal raised
        ours = event in ("call", "c_return") and str(frame.f_globals["__name__"]).startswith("caravela.")
        if ours and next(places) == moment:
            raised = True
            raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    return raised
