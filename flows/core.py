"""What every part of the flow machine stands on: the visible state, its branches and tasks, and how a flow ends."""

import reprlib
from collections.abc import Callable
from typing import Any, NoReturn

from caravela.errors import CaravelaError, InvalidOutcome, StepRaised, StepTimedOut

from .branch import Branch, Frame, Rebasing
from .events import (
    CancelTask,
    Codec,
    Crash,
    Effect,
    Entered,
    Fail,
    Finish,
    Raised,
    Returned,
    StartTask,
    Stopped,
)
from .outcomes import UNSET, Error, Ok, Retry
from .plan import Plan
from .rebase import Rebase, RebaseLog
from .steps import Each, Parallel, Race, Run, Sequence, WaitUntil
from .visible import Visible


class Over(Exception):
    """Unwinds to ``advance`` once the terminal effect is out."""


def _unwatched(_no: int) -> None:
    pass


class Core:
    """Holds the parts; decides nothing about steps."""

    def __init__(self, plan: Plan, state: bytes, codec: Codec, probe: Callable[[str, int], None]) -> None:
        self.over = False
        self.interested = False
        self.replaying: Callable[[int], None] = _unwatched
        self._visible = Visible(state, codec)
        self._plan, self._codec, self._probe = plan, codec, probe
        root = plan.nodes[0]
        assert isinstance(root.step, Sequence)
        self._root = Branch([Frame(root, root.step)], root)
        self._branches = [self._root]
        self._tasks: dict[int, Branch] = {}
        self._last_task = 0

    @property
    def effects(self) -> list[Effect]:
        """Of the advance under way, as far as it has come, or else of the last one."""
        return self._visible.effects

    @property
    def state(self) -> bytes:
        """The visible state, canonical bytes."""
        return self._visible.state

    @property
    def seq(self) -> int:
        """The number of the last announced state; 0 is the initial one."""
        return self._visible.seq

    @property
    def position(self) -> tuple[str, int]:
        """Path and attempt of the step entered last."""
        return self._path(self._root), self._root.attempt

    @property
    def saturated(self) -> bool:
        """A rebase log is full: no more signals until the body is done."""
        return any(log.full for branch in self._branches if (log := branch.log) is not None)

    # -------------------------------------------------------------- how it ends

    def _end(self, effect: Finish | Fail | Stopped | Crash) -> NoReturn:
        self.effects.extend(CancelTask(task) for task in self._tasks)
        self._tasks.clear()
        self.effects.append(effect)
        self.over = True
        raise Over

    def _fail(self, reason: Any) -> NoReturn:
        try:
            data = self._codec.encode(reason)
        except CaravelaError as error:
            data = self._codec.encode(error)
        self._end(Fail(self.seq + 1, data))

    def _crash(self, branch: Branch, error: BaseException) -> NoReturn:
        self._end(Crash(StepRaised.of(error, self._path(branch), branch.attempt)))

    # -------------------------------------------------------------- where it stands

    def _stand(self, branch: Branch, attempt: int) -> None:
        branch.attempt = attempt
        path = self._path(branch)
        self._probe(path, attempt)
        if self.interested:
            self.effects.append(Entered(path, attempt))

    def _path(self, branch: Branch) -> str:
        return self._plan.path(branch.node.id)

    def _ask(self, branch: Branch, fn: Callable[[Any], Any]) -> Any:
        """Call a function of the user's that runs in here; where it raises, the runner crashes."""
        try:
            return fn(self._visible.value())
        except BaseException as error:
            self._crash(branch, error)

    def _late(self, branch: Branch, step: WaitUntil | Run | Parallel | Race) -> StepTimedOut:
        assert step.timeout is not None
        return StepTimedOut(self._path(branch), step.timeout, branch.attempt)

    def _invalid(self, branch: Branch, value: object, allowed: str) -> InvalidOutcome:
        try:
            text = reprlib.repr(value)
        except BaseException as error:  # a user's class named `set`, or an int above the limit of digits
            text = f"<no text: its __repr__ raised {type(error).__name__}>"
        return InvalidOutcome(self._path(branch), f"{type(value).__name__} {text}", allowed)

    # -------------------------------------------------------------- bodies and what they bring

    def _start(self, branch: Branch, step: Run | Parallel | Race | Each, fn: Callable[..., Any], *args: Any) -> int:
        self._last_task = task = self._last_task + 1
        self._tasks[task] = branch
        pooled = isinstance(step, Parallel | Race)
        self.effects.append(StartTask(task, fn, args, step.executor, self._path(branch), branch.attempt, pooled))
        return task

    def _forget(self, *tasks: int) -> None:
        for task in tasks:
            del self._tasks[task]
            self.effects.append(CancelTask(task))

    def _brought(self, result: Returned | Raised) -> tuple[Returned | Raised, bytes | None]:
        """The state that a body brought, if any; one that cannot be a state makes its result an ``Error``."""
        match result:
            case Returned(Ok(state) | Retry(state)) if state is not UNSET:
                try:
                    return result, self._codec.encode(state)
                except CaravelaError as error:
                    return Returned(Error(error)), None
            case _:
                return result, None

    def _take(
        self, branch: Branch, log: RebaseLog, state: bytes | None, then: Callable[[float], None], now: float
    ) -> None:
        """A body is done, with the state that it brought or without one; ``then`` goes on once its log is settled."""
        if state is None:
            log.stand_by(self._visible)
            branch.activity = None
            then(now)
        else:
            branch.activity = rebasing = Rebasing(Rebase(log, state), then)
            self._replay(branch, rebasing, 0, now)

    def _replay(self, branch: Branch, rebasing: Rebasing, fuel: int, now: float) -> int:
        used = rebasing.rebase.replay(self._visible, fuel, self.replaying)
        if rebasing.rebase.complete:
            branch.activity = None
            self._visible.become(rebasing.rebase.base)
            rebasing.then(now)
        return used
