"""The flow machine: ``(event, now) → effects`` over a tree of branches. No clock, no I/O, no thread, no log.

One ``advance``: the event is taken in (a signal applied, a result judged, timers expired), then every runnable branch
moves on until it waits for something or the fuel is spent. Then ``deadline`` says when to come again.

User functions that run in here (signals, predicates, ``set_state``, builders) must be short. Bodies only leave as
``StartTask`` and come back as ``TaskDone``; to cancel one is to forget it, so a result of an unknown task is dropped.
"""

import random
from collections.abc import Callable
from contextlib import suppress
from typing import assert_never

from caravela.errors import CaravelaError, StepRaised

from .bodies import Bodies, after, nothing
from .branch import (
    Attempting,
    BackingOff,
    Branch,
    Frame,
    Gathering,
    Pausing,
    Racing,
    Rebasing,
    Settling,
    Walking,
    Watching,
)
from .core import Over
from .events import (
    CancelTask,
    Codec,
    Effect,
    Event,
    Finish,
    Raised,
    Returned,
    Signal,
    Stop,
    Stopped,
    TaskDone,
    Tick,
)
from .plan import Node, Plan
from .steps import Debounce, Each, Parallel, Race, Repeat, Run, Sequence, SetState, Wait, WaitUntil


def _unwatched(_path: str, _attempt: int) -> None:
    pass


def _cost(state: bytes) -> int:
    """Fuel for a transition: to decode and encode 512 bytes takes about as long as all else in it."""
    return 1 + len(state) // 512


class Machine(Bodies):
    """One incarnation of a flow.

    ``state``: canonical bytes (``codec.encode`` of a decoded value). ``draw``: numbers in [0, 1) for jitter.
    ``probe(path, attempt)`` is called as each step is entered, before its functions run, so that a status page tells
    the truth about one that never returns. ``fuel``: transitions in one ``advance``, fewer when the state is large.

    ``deadline``: when to send ``Tick``; not after ``now``: the machine is runnable; None: only another event helps.
    ``interested``: set it to get ``Entered``. ``replaying``: set it to hear the number of each signal that is replayed
    on what a body returned, and 0 after the last of them. ``over``: the terminal effect is out, nothing more will come.
    """

    def __init__(
        self,
        plan: Plan,
        state: bytes,
        codec: Codec,
        *,
        draw: Callable[[], float] = random.random,
        probe: Callable[[str, int], None] = _unwatched,
        fuel: int = 128,
    ) -> None:
        super().__init__(plan, state, codec, probe, draw)
        self.deadline: float | None = 0.0
        self._fuel = fuel
        self._stopping = False

    def advance(self, event: Event, now: float) -> list[Effect]:
        self._visible.effects = effects = list[Effect]()
        if self.over:
            return effects
        try:
            match event:
                case Signal():
                    self._signal(event, now)
                case TaskDone():
                    self._task_done(event, now)
                case Tick():
                    self._expire(now)
                case Stop():
                    self._stop()
                case _:
                    assert_never(event)
            if not self._stopping:
                self._run(now)
        except Over:
            pass
        except BaseException as error:
            # An object of the user's raised where nobody asks it anything: a state that pickles but does not load,
            # an outcome whose `__class__` is a property that raises.
            with suppress(Over):
                self._crash(self._root, error)
        self.deadline = self._next_deadline(now)
        return effects

    def _next_deadline(self, now: float) -> float | None:
        if self.over or self._stopping:
            return None
        deadline = None
        for branch in self._branches:
            if branch.runnable:
                return now
            assert branch.activity is not None
            until = branch.activity.until
            if until is not None and (deadline is None or until < deadline):
                deadline = until
        return deadline

    # -------------------------------------------------------------- moving on

    def _run(self, now: float) -> None:
        fuel = self._fuel
        for branch in self._branches:
            while fuel > 0 and branch.runnable:
                if isinstance(branch.activity, Rebasing):
                    cost = _cost(branch.activity.rebase.base)
                    fuel -= cost * self._replay(branch, branch.activity, max(1, fuel // cost), now)
                else:
                    fuel -= _cost(self.state)
                    self._next(branch, now)

    def _next(self, branch: Branch, now: float) -> None:
        frame = branch.stack[-1]
        children = frame.node.children
        if frame.cursor < len(children):
            frame.cursor += 1
            self._enter(branch, self._plan.nodes[children[frame.cursor - 1]], now)
        elif isinstance(frame.step, Repeat):
            frame.cursor = 0
        elif len(branch.stack) > 1:
            branch.stack.pop()
        else:
            self._end(Finish(self.seq + 1, self.state))

    def _enter(self, branch: Branch, node: Node, now: float) -> None:
        branch.node = node
        self._stand(branch, 1)
        match node.step:
            case SetState() as step:
                self._set_state(branch, step)
            case Sequence() | Repeat() as step:
                branch.stack.append(Frame(node, step))
            case Wait() as step:
                branch.activity = Pausing(now + step.ms / 1000)
            case WaitUntil() as step:
                if not self._ask(branch, step.pred):
                    branch.activity = Watching(step, after(now, step.timeout))
            case Debounce() as step:
                branch.activity = Settling.begin(step, now)
            case Run() as step:
                self._attempt(branch, step, now)
            case Parallel() as step:
                self._gather(branch, step, now)
            case Race() as step:
                self._race(branch, step, now)
            case Each() as step:
                self._each(branch, step)
            case _:
                assert_never(node.step)

    def _set_state(self, branch: Branch, step: SetState) -> None:
        value = self._ask(branch, step.fn)
        try:
            if value is None:
                raise TypeError("set_state: the function returned None; return the new state")
            state = self._codec.encode(value)
        except (TypeError, CaravelaError) as error:
            self._crash(branch, error)
        self._visible.become(state)

    # -------------------------------------------------------------- time and signals

    def _expire(self, now: float) -> None:
        if self._stopping:
            return
        for branch in self._branches:
            activity = branch.activity
            if activity is None or activity.until is None or activity.until > now:
                continue
            match activity:
                case Pausing() | Settling():
                    branch.activity = None
                case BackingOff(step, attempt):
                    self._stand(branch, attempt)
                    self._attempt(branch, step, now)
                case Attempting(step, task):
                    self._forget(task)
                    self._attempt_failed(branch, activity, self._late(branch, step), now)
                case Gathering():
                    self._gather_late(branch, activity)
                case Watching(step) | Racing(step):
                    self._fail(self._late(branch, step))
                case _:
                    assert_never(activity)

    def _signal(self, signal: Signal, now: float) -> None:
        if self._stopping:
            return  # whoever waits for it hears how the flow ended
        visible = self._visible
        logs = [log for branch in self._branches if (log := branch.log) is not None]
        result = visible.apply(signal, visible.state, again=bool(logs))
        failed = result if isinstance(result, StepRaised) else None
        for log in logs:
            log.append(signal, failed)
        if isinstance(result, StepRaised):
            if not logs:  # otherwise its verdict falls when the body is done
                visible.reject(signal, result, late=False)
            return
        visible.accept(signal, result)
        for branch in self._branches:
            match branch.activity:
                case Settling() as settling:
                    settling.again(now)
                case Watching(step):
                    if self._ask(branch, step.pred):
                        branch.activity = None

    # -------------------------------------------------------------- results

    def _task_done(self, event: TaskDone, now: float) -> None:
        branch = self._tasks.pop(event.task, None)
        if branch is None:
            return  # of an attempt that timed out, or of a lost race
        if self._stopping:
            self._last_words(branch, event.result)
            return
        match branch.activity:
            case Attempting() as activity:
                self._attempt_done(branch, activity, event.result, now)
            case Walking() as activity:
                self._item_done(branch, activity, event.result, now)
            case Gathering() as activity:
                self._gather_done(branch, activity, event.task, event.result)
            case Racing() as activity:
                self._race_done(branch, activity, event.task, event.result)
            case activity:
                raise AssertionError(f"a task of {activity}")

    # -------------------------------------------------------------- stopping

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        for branch in self._branches:
            if isinstance(branch.activity, Rebasing):
                branch.activity.then = nothing
        self.effects.extend(CancelTask(task) for task in self._tasks)
        self._stopped_if_idle()

    def _stopped_if_idle(self) -> None:
        if self._tasks:
            return
        for branch in self._branches:
            if isinstance(branch.activity, Rebasing):
                self._replay(branch, branch.activity, len(branch.activity.log.entries), 0.0)
        self._end(Stopped(self.seq + 1, self.state))

    def _last_words(self, branch: Branch, result: Returned | Raised) -> None:
        """What a body brings home within the grace of a stop still counts."""
        match branch.activity:
            case Attempting(log=log) | Walking(log=log):
                self._take(branch, log, self._brought(result)[1], nothing, 0.0)
            case _:
                pass
        self._stopped_if_idle()
