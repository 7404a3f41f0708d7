"""One branch of a running flow: where it stands (a stack of frames) and what it waits for (its activity).

A branch without an activity is runnable. An activity says when it expires (``until``, seconds, None: never).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .plan import Node
from .rebase import Rebase, RebaseLog
from .steps import Debounce, Each, Parallel, Race, Repeat, Run, Sequence, WaitUntil


@dataclass(slots=True)
class Frame:
    """Inside a container: the next child to enter."""

    node: Node
    step: Sequence | Repeat
    cursor: int = 0


# ------------------------------------------------------------------ activities


@dataclass(slots=True)
class Pausing:
    until: float


@dataclass(slots=True)
class Watching:
    step: WaitUntil
    until: float | None


@dataclass(slots=True)
class Settling:
    step: Debounce
    until: float
    cap: float | None

    @classmethod
    def begin(cls, step: Debounce, now: float) -> "Settling":
        cap = None if step.max_wait is None else now + step.max_wait / 1000
        settling = cls(step, now, cap)
        settling.again(now)
        return settling

    def again(self, now: float) -> None:
        """Count from ``now``, within the cap."""
        until = now + self.step.ms / 1000
        self.until = until if self.cap is None else min(until, self.cap)


@dataclass(slots=True)
class Attempting:
    step: Run
    task: int
    until: float | None
    log: RebaseLog = field(default_factory=RebaseLog)


@dataclass(slots=True)
class BackingOff:
    step: Run
    attempt: int
    """The one that comes next."""
    until: float


@dataclass(slots=True)
class Gathering:
    step: Parallel
    waiting: list[tuple[int, Callable[[], Any]]]
    """Place and task, not yet started, last first."""
    results: list[Any]
    until: float | None
    running: dict[int, int] = field(default_factory=dict)
    """Task to place."""


@dataclass(slots=True)
class Racing:
    step: Race
    reasons: list[Any]
    until: float | None
    running: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Walking:
    step: Each
    items: list[Any]
    """As they stood on entry, those to come, last first."""
    until: None = None
    log: RebaseLog = field(default_factory=RebaseLog)


@dataclass(slots=True)
class Rebasing:
    """The body is done, its log is not: the visible state stands and signals still join the log."""

    rebase: Rebase
    then: Callable[[float], None]
    until: None = None

    @property
    def log(self) -> RebaseLog:
        return self.rebase.log


Activity: TypeAlias = Pausing | Watching | Settling | Attempting | BackingOff | Gathering | Racing | Walking | Rebasing


@dataclass(slots=True)
class Branch:
    stack: list[Frame]
    node: Node
    """The step entered last."""
    attempt: int = 1
    activity: Activity | None = None

    @property
    def runnable(self) -> bool:
        return self.activity is None or isinstance(self.activity, Rebasing)

    @property
    def log(self) -> RebaseLog | None:
        """Where signals are logged while a body computes whose state will be rebased."""
        match self.activity:
            case Attempting(log=log) | Walking(log=log) | Rebasing(log=log):
                return log
            case _:
                return None
