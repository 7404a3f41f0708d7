"""The four steps that send bodies out (``run``, ``each``, ``parallel``, ``race``) and what their results mean."""

from collections.abc import Callable, Iterator
from typing import Any

from caravela.errors import AllFailed, CaravelaError, RetriesExhausted, StepRaised

from .backoff import delay_ms
from .branch import Attempting, BackingOff, Branch, Gathering, Racing, Walking
from .core import Core
from .events import Codec, Raised, Returned
from .keys import get_key, with_key
from .outcomes import UNSET, Error, Ok, Retry, Skip
from .plan import Plan
from .rebase import RebaseLog
from .steps import Each, Parallel, Race, Run

THREADS_AT_ONCE = 64
"""Tasks of one ``parallel`` that run at once, unless ``max_concurrency`` says otherwise."""


class Bodies(Core):
    def __init__(
        self, plan: Plan, state: bytes, codec: Codec, probe: Callable[[str, int], None], draw: Callable[[], float]
    ) -> None:
        super().__init__(plan, state, codec, probe)
        self._draw = draw

    # -------------------------------------------------------------- run

    def _attempt(self, branch: Branch, step: Run, now: float) -> None:
        task = self._start(branch, step, step.fn, self._visible.value())
        branch.activity = Attempting(step, task, after(now, step.timeout))

    def _attempt_done(self, branch: Branch, activity: Attempting, result: Returned | Raised, now: float) -> None:
        step = activity.step
        result, state = self._brought(result)
        match result:
            case Returned(None | Ok()):
                self._take(branch, activity.log, state, nothing, now)
            case Returned(Retry()):
                self._take(branch, activity.log, state, lambda later: self._again(branch, step, UNSET, later), now)
            case Returned(Error(reason)) | Raised(reason):
                self._attempt_failed(branch, activity, reason, now)
            case Returned(value):
                activity.log.stand_by(self._visible)
                self._fail(self._invalid(branch, value, "Ok(), Ok(state), Retry(state), Error(reason) and None"))

    def _attempt_failed(self, branch: Branch, activity: Attempting, reason: Any, now: float) -> None:
        step = activity.step
        self._take(branch, activity.log, None, lambda later: self._again(branch, step, reason, later), now)

    def _again(self, branch: Branch, step: Run, reason: Any, now: float) -> None:
        attempt = branch.attempt
        if attempt > step.retries:
            spent = RetriesExhausted(attempt, self._visible.value(), self._path(branch)) if reason is UNSET else reason
            self._fail(spent)
        branch.activity = BackingOff(step, attempt + 1, now + delay_ms(step, attempt, self._draw) / 1000)

    # -------------------------------------------------------------- each

    def _each(self, branch: Branch, step: Each) -> None:
        items = self._ask(branch, lambda state: list(get_key(state, step.key)))
        items.reverse()
        self._walk(branch, Walking(step, items))

    def _walk(self, branch: Branch, activity: Walking) -> None:
        if activity.items:
            branch.activity = activity
            activity.log = RebaseLog()
            # A copy: in a pickled state one object may be two items, and a body may change what it gets (G1).
            item = self._codec.decode(self._codec.encode(activity.items.pop()))
            self._start(branch, activity.step, activity.step.fn, item, self._visible.value())
        else:
            branch.activity = None

    def _item_done(self, branch: Branch, activity: Walking, result: Returned | Raised, now: float) -> None:
        def on(_now: float) -> None:
            self._walk(branch, activity)

        result, state = self._brought(result)
        match result:
            case Returned(None | Ok() | Skip()):
                self._take(branch, activity.log, state, on, now)
            case Returned(Error(reason)) | Raised(reason):
                activity.log.stand_by(self._visible)
                self._fail(reason)
            case Returned(value):
                activity.log.stand_by(self._visible)
                self._fail(self._invalid(branch, value, "Ok(), Ok(state), Skip(reason), Error(reason) and None"))

    # -------------------------------------------------------------- parallel and race

    def _built(self, branch: Branch, build: Callable[[Any], Any]) -> list[Callable[[], Any]]:
        def ask(state: Any) -> Any:
            built = build(state)
            return list(built) if isinstance(built, tuple | Iterator) else built  # a generator raises in here too

        allowed = "a list of zero-argument functions"
        tasks = self._ask(branch, ask)
        if not isinstance(tasks, list):
            self._fail(self._invalid(branch, tasks, allowed))
        for task in tasks:
            if not callable(task):
                self._fail(self._invalid(branch, task, allowed))
        return tasks

    def _value_of(self, branch: Branch, result: Returned | Raised) -> Any:
        """The value of a task of several, or the ``Error`` that it failed with."""
        match result:
            case Returned(Ok(value)):
                return None if value is UNSET else value
            case Returned(Retry() | Skip() as value):
                return Error(self._invalid(branch, value, "Ok(value), Error(reason) and any plain value"))
            case Returned(value):
                return value
            case Raised(error):
                return Error(error)

    def _portable(self, value: Any) -> Any:
        """Encoded once more than needed, so that of several the one that cannot travel is known."""
        try:
            self._codec.encode(value)
        except CaravelaError as error:
            return Error(error)
        return value

    def _collect(self, branch: Branch, key: str, value: Any) -> None:
        """On the visible state: neither step holds a state of its own, so there is nothing to rebase."""
        branch.activity = None
        try:
            state = self._codec.encode(with_key(self._visible.value(), key, value))
        except CaravelaError as error:
            self._fail(error)
        except Exception as error:
            self._fail(StepRaised.of(error, self._path(branch)))
        self._visible.become(state)

    def _gather(self, branch: Branch, step: Parallel, now: float) -> None:
        tasks = self._built(branch, step.fn)
        waiting = list(enumerate(tasks))
        waiting.reverse()
        branch.activity = activity = Gathering(step, waiting, [UNSET] * len(tasks), after(now, step.timeout))
        self._gather_on(branch, activity)

    def _gather_on(self, branch: Branch, activity: Gathering) -> None:
        step = activity.step
        while activity.waiting and len(activity.running) < (step.max_concurrency or THREADS_AT_ONCE):
            place, fn = activity.waiting.pop()
            activity.running[self._start(branch, step, fn)] = place
        if not activity.running:
            self._collect(branch, step.collect_as, activity.results)

    def _gather_done(self, branch: Branch, activity: Gathering, task: int, result: Returned | Raised) -> None:
        value = self._value_of(branch, result)
        if activity.step.on_error == "collect":
            value = self._portable(value)
        elif isinstance(value, Error):
            self._fail(value.reason)
        activity.results[activity.running.pop(task)] = value
        self._gather_on(branch, activity)

    def _gather_late(self, branch: Branch, activity: Gathering) -> None:
        late = self._late(branch, activity.step)
        if activity.step.on_error == "fail":
            self._fail(late)
        self._forget(*activity.running)
        results = [Error(late) if value is UNSET else value for value in activity.results]
        self._collect(branch, activity.step.collect_as, results)

    def _race(self, branch: Branch, step: Race, now: float) -> None:
        tasks = list(step.tasks) if isinstance(step.tasks, tuple) else self._built(branch, step.tasks)
        if not tasks:
            self._fail(self._invalid(branch, tasks, "a list of at least one zero-argument function"))
        branch.activity = activity = Racing(step, [None] * len(tasks), after(now, step.timeout))
        for place, fn in enumerate(tasks):
            activity.running[self._start(branch, step, fn)] = place

    def _race_done(self, branch: Branch, activity: Racing, task: int, result: Returned | Raised) -> None:
        place = activity.running.pop(task)
        value = self._portable(self._value_of(branch, result))
        if isinstance(value, Error):
            activity.reasons[place] = value.reason
            if not activity.running:
                self._fail(AllFailed(activity.reasons))
            return
        self._forget(*activity.running)
        self._collect(branch, activity.step.collect_as, value)


def nothing(_now: float) -> None:
    """Where a step just ends."""


def after(now: float, ms: float | None) -> float | None:
    return None if ms is None else now + ms / 1000
