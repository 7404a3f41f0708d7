"""A flow on the pure machine under a virtual clock.

    def test_a_burst_of_edits_is_one_push():
        sim = simulate(sync_book, bodies={push_book: takes(800, returns=Ok({"dirty": False}))})
        sim.signal(edit)
        sim.advance(400)
        sim.signal(edit)                       # begins the 500 ms of debounce anew
        sim.advance(500)
        assert sim.state["dirty"] == "processing"
        sim.signal(edit)                       # while push_book computes
        sim.advance(800)
        assert sim.trace.count(("repeat/sequence[2]/run[1]", 1)) == 1

What is simulated is one incarnation: a crash of the runner is its end, there is no restart, no process, no pickled
function. The same flow, signals and times give the same events, always.
"""

import asyncio
import inspect
import random
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, assert_never

from caravela.errors import (
    BootError,
    Cause,
    FlowNotRunning,
    FlowTimeout,
    LimitExceeded,
    SignalFailed,
    StepRaised,
    UndecodableState,
)

from ..flows.events import (
    Applied,
    CancelTask,
    Crash,
    Effect,
    Entered,
    Event,
    Fail,
    Finish,
    Notify,
    Raised,
    Rejected,
    Returned,
    Signal,
    StartTask,
    Stop,
    Stopped,
    TaskDone,
    Tick,
)
from ..flows.flow import Flow, is_factory
from ..flows.machine import Machine
from ..protocol.payload import ValueCodec
from ..supervisor.events import (
    Encoded,
    FlowDone,
    FlowError,
    FlowState,
    FlowStopped,
    SignalRejected,
    Terminal,
)
from .scripts import Bodies, Cast
from .virtual import MOMENT, VirtualLoop

STEPS_AT_ONCE: Final = 100_000
"""Steps entered and attempts begun at one virtual moment, before it is called a flow that never waits."""


def simulate(flow: Flow, initial_state: Any = None, *, bodies: Bodies | None = None, seed: int = 0) -> "Simulation":
    """Begin ``flow`` at virtual time 0 and run it until it waits for something.

    ``initial_state``: in place of the flow's own; a function (method, partial, class) is called for it.

    Bodies are real, unless ``bodies`` says otherwise. A plain function is called when its body starts and takes no
    virtual time. An ``async def`` runs on a loop with the same virtual clock: it may sleep, time out and be
    cancelled, but do no I/O. ``bodies`` maps a body, its ``__name__`` or the path of its step to :func:`takes`, to a
    list of those (one for each start, the last one again and again) or to a function that is called instead::

        simulate(flow, bodies={
            push_book: [takes(800, raises=TimeoutError()), takes(200, returns=Ok())],
            "parallel[0]": takes(50),          # the real tasks, 50 ms each
        })

    ``seed`` seeds the jitter of retries.

    Raises ``ValueError`` for a key of ``bodies`` that fits no body (one that ``parallel`` or ``race`` builds may come
    later); ``BootError`` when ``initial_state()`` raises; ``NotPortable`` or ``LimitExceeded`` when the state cannot be
    one; ``LimitExceeded``, as all methods do, for a flow that goes on without ever waiting.
    """
    return Simulation(flow, initial_state, {} if bodies is None else bodies, seed)


class Simulation:
    """A running simulation; made by :func:`simulate`.

    ``events``: what happened so far, in order, as ``notify=`` and ``subscribe()`` would tell it: ``FlowState``,
    ``SignalRejected``, and the terminal ``FlowDone``, ``FlowError`` or ``FlowStopped``. After a crash of the runner
    that is ``FlowError(Cause("raised", …))``. Values in them are decoded copies: change them as you like.

    ``trace``: the (path, attempt) of every step entered and every further attempt begun, in order.
    """

    def __init__(self, flow: Flow, initial_state: Any, bodies: Bodies, seed: int) -> None:
        if not isinstance(flow, Flow):
            raise TypeError(f"simulate() needs a Flow, not {flow!r:.200}; import a flow that has a name")
        self.flow = flow
        self.events: list[FlowState | SignalRejected | Terminal] = []
        self.trace: list[tuple[str, int]] = []
        self._codec = ValueCodec()
        self._cast = Cast(bodies, flow)
        self._loop = VirtualLoop()  # type: ignore[abstract]  # it has what bodies need
        # Only the loop is referred to: whoever forgets a simulation leaves no waiting coroutine behind.
        weakref.finalize(self, self._loop.close)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._results = deque[TaskDone]()
        self._inbox = deque[Signal]()
        self._signals = 0
        self._answers: dict[int, bytes | StepRaised] = {}
        state = self._codec.encode(_first(flow, initial_state))
        state = self._codec.encode(self._codec.decode(state))
        self._machine = Machine(
            flow.plan, state, self._codec, draw=random.Random(seed).random, probe=_watching(self.trace)
        )
        self._settle()

    def __repr__(self) -> str:
        where = f"ended with {self.events[-1]!r:.200}" if self.done else f"in {self.path}, attempt {self.attempt}"
        return f"<Simulation of {self.flow.name!r} at {self.now:g} ms, {where}>"

    # -------------------------------------------------------------- how it stands

    @property
    def now(self) -> float:
        """Virtual milliseconds since the beginning."""
        return round(self._loop.now * 1000, 6)

    @property
    def state(self) -> Any:
        """What ``get_state`` would return: a copy. After the end, the last state."""
        return self._codec.decode(self._machine.state)

    @property
    def path(self) -> str:
        """The step entered last, such as ``repeat/sequence[2]/run[1]``."""
        return self._machine.position[0]

    @property
    def attempt(self) -> int:
        """The attempt of that step, from 1."""
        return self._machine.position[1]

    @property
    def done(self) -> bool:
        """The flow has ended, in whatever way; the last of ``events`` says how."""
        return self._machine.over

    # -------------------------------------------------------------- what to do with it

    def advance(self, ms: float) -> None:
        """Let ``ms`` virtual milliseconds pass, each thing happening at its own moment.

        What falls on the very end still happens. At one moment signals come first, then results, then timers.
        """
        if not 0 <= ms < float("inf"):
            raise ValueError(f"ms must be finite and not negative: {ms!r}")
        self._advance_to(self._loop.now + ms / 1000, until=lambda: False)

    def signal(self, function: Callable[..., Any] | str, *args: Any) -> None:
        """``function(state, *args)`` is the new state, now. A function, or the name of a declared signal.

        One that raises leaves a ``SignalRejected`` in ``events``, at once or when the body that computes is done.
        Raises ``FlowNotRunning`` after the end, ``LookupError`` for an unknown name.
        """
        self._send("signal", 0, function, args)

    def update(self, function: Callable[..., Any] | str, *args: Any, timeout: float = 5.0) -> Any:
        """As ``signal``; returns the new state, or raises ``SignalFailed``.

        One that raises while a body computes is tried again when that is done (it may work on the state that the body
        returns), so virtual time passes here until then, at most ``timeout`` seconds. Raises ``FlowTimeout``
        after those, ``FlowNotRunning`` when the flow ends first.
        """
        call = self._signals + 1
        self._send("update", call, function, args)
        self._advance_to(self._loop.now + timeout, until=lambda: call in self._answers or self.done)
        match self._answers.pop(call, None):
            case None if self.done:
                raise self._not_running()
            case None:
                raise FlowTimeout("update", self.flow.name, timeout, f"in {self.path}, attempt {self.attempt}")
            case StepRaised() as error:
                raise SignalFailed(error)
            case state:
                return self._codec.decode(state)

    def stop(self) -> None:
        """Cancel what runs and end. Nothing after the end.

        An ``async def`` is cancelled now. A plain body cannot be: the flow ends when it ends, so let its time pass.
        The grace period and the kill after it are the supervisor's and not simulated.
        """
        self._feed(Stop())
        self._settle()

    # -------------------------------------------------------------- time

    def _advance_to(self, target: float, until: Callable[[], bool]) -> None:
        while not until():
            moments = [at for at in (self._machine.deadline, self._loop.next_timer) if at is not None]
            if not moments or min(moments) > target + MOMENT:
                self._loop.now = max(self._loop.now, target)
                return
            self._loop.now = max(self._loop.now, min(moments))
            self._settle()

    def _settle(self) -> None:
        """Everything that happens at this moment."""
        steps = len(self.trace)
        while len(self.trace) - steps <= STEPS_AT_ONCE:
            self._loop.settle()
            deadline = self._machine.deadline
            if self._inbox and not self._machine.saturated:
                self._feed(self._inbox.popleft())
            elif self._results:
                self._feed(self._results.popleft())
            elif deadline is not None and deadline <= self._loop.now + MOMENT:
                self._loop.now = max(self._loop.now, deadline)
                self._feed(Tick())
            else:
                return
        raise LimitExceeded("one virtual moment", len(self.trace) - steps, STEPS_AT_ONCE, "steps")

    # -------------------------------------------------------------- in and out of the machine

    def _send(self, what: str, call: int, function: Callable[..., Any] | str, args: tuple[Any, ...]) -> None:
        if self.done:
            raise self._not_running()
        if isinstance(function, str):
            if function not in self.flow.signals:
                raise LookupError(f"flow {self.flow.name!r} declares no signal {function!r}")
            function = self.flow.signals[function]
        if not callable(function):
            raise TypeError(f"{what} needs a function or the name of a declared signal, not {function!r}")
        self._signals += 1
        self._inbox.append(Signal(self._signals, call, function, args))
        self._settle()

    def _feed(self, event: Event) -> None:
        for effect in self._machine.advance(event, self._loop.now):
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case StartTask():
                self._start(effect)
            case CancelTask(task):
                if running := self._tasks.pop(task, None):
                    running.cancel()
            case Notify(seq, state):
                self.events.append(FlowState(self._decoded(state), seq=seq))
            case Applied(_, call, state):
                self._answers[call] = state
            case Rejected(_, 0, error, late):
                self.events.append(SignalRejected(error=error, late=late, seq=self._machine.seq))
            case Rejected(_, call, error, _):
                self._answers[call] = error
            case Finish(seq, state):
                self.events.append(FlowDone(self._decoded(state), seq=seq))
            case Fail(seq, reason):
                self.events.append(FlowError(self._decoded(reason), seq=seq))
            case Stopped(seq, state):
                self.events.append(FlowStopped(self._decoded(state), seq=seq))
            case Crash(error):
                cause = Cause("raised", f"{error.type}: {error.message}", error.path, error.attempt, error)
                self.events.append(FlowError(cause, seq=self._machine.seq + 1))
            case Entered():
                pass  # the trace has it
            case _:
                assert_never(effect)

    def _start(self, start: StartTask) -> None:
        script = self._cast.script(start)
        result = _call(start, script.of(start.fn))
        if not isinstance(result, Returned | Raised):
            self._tasks[start.task] = self._loop.create_task(_drive(self._results, start, result, script.ms))
        else:
            # Not at once, even if it takes no time: a thread's result too comes after all that was there before.
            self._loop.call_later(script.ms / 1000, self._results.append, TaskDone(start.task, result))

    def _decoded(self, data: bytes) -> Any:
        try:
            return self._codec.decode(data)
        except UndecodableState:
            return Encoded(data)  # raises where it is read, as in production

    def _not_running(self) -> FlowNotRunning:
        return FlowNotRunning(self.flow.name, f"ended with {self.events[-1]!r}")


def _first(flow: Flow, initial_state: Any) -> Any:
    state = flow.initial_state if initial_state is None else initial_state
    if not is_factory(state):
        return state
    try:
        return state()
    except Exception as error:
        raise BootError(flow.name, "its initial_state() raised", StepRaised.of(error)) from error


def _watching(trace: list[tuple[str, int]]) -> Callable[[str, int], None]:
    return lambda path, attempt: trace.append((path, attempt))


def _call(start: StartTask, fn: Callable[..., Any]) -> Returned | Raised | Awaitable[Any]:
    try:
        value = fn(*start.args)
        return value if inspect.isawaitable(value) else Returned(value)
    except BaseException as error:
        return Raised(StepRaised.of(error, start.path, start.attempt))


async def _drive(results: deque[TaskDone], start: StartTask, value: Awaitable[Any], ms: float) -> None:
    """An ``async def`` body to its end, also when that is its cancellation."""
    result: Returned | Raised
    try:
        await asyncio.sleep(ms / 1000)
        result = Returned(await value)
    except BaseException as error:
        result = Raised(StepRaised.of(error, start.path, start.attempt))
    finally:
        if inspect.iscoroutine(value):
            value.close()  # it may not have begun
    results.append(TaskDone(start.task, result))
