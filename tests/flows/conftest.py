"""A bench on which one flow machine runs event by event, for what a simulation hides: effects, fuel, deadlines."""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from caravela.errors import StepRaised
from caravela.flows import Flow, flow
from caravela.flows import events as e
from caravela.flows.machine import Machine
from caravela.protocol.payload import ValueCodec

T = TypeVar("T")


class Bench:
    """``now`` is in seconds and moves only by hand. ``effects``: all there were."""

    codec = ValueCodec()

    def __init__(self, *steps: Any, state: Any = None, fuel: int = 128) -> None:
        made: Flow = flow("bench", *steps)
        self.machine = Machine(
            made.plan, self.codec.encode({} if state is None else state), self.codec, draw=lambda: 0.0, fuel=fuel
        )
        self.now = 0.0
        self.effects: list[e.Effect] = []
        self._signals = 0

    def send(self, event: e.Event) -> list[e.Effect]:
        effects = self.machine.advance(event, self.now)
        self.effects.extend(effects)
        return effects

    def tick(self) -> list[e.Effect]:
        return self.send(e.Tick())

    def settle(self) -> "Bench":
        """Tick until it waits for something."""
        while (deadline := self.machine.deadline) is not None and deadline <= self.now:
            self.tick()
        return self

    def signal(self, fn: Callable[..., Any], *args: Any, call: int = 0, size: int = 0) -> list[e.Effect]:
        self._signals += 1
        return self.send(e.Signal(self._signals, call, fn, args, size))

    def stop(self) -> list[e.Effect]:
        return self.send(e.Stop())

    @property
    def task(self) -> e.StartTask:
        """The one started last."""
        return self.all(e.StartTask)[-1]

    def returns(self, value: Any = None, task: int | None = None) -> list[e.Effect]:
        return self.send(e.TaskDone(self.task.task if task is None else task, e.Returned(value)))

    def raises(self, error: BaseException, task: int | None = None) -> list[e.Effect]:
        raised = e.Raised(StepRaised.of(error))
        return self.send(e.TaskDone(self.task.task if task is None else task, raised))

    def all(self, kind: type[T]) -> list[T]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    @property
    def state(self) -> Any:
        return self.codec.decode(self.machine.state)

    @property
    def states(self) -> list[Any]:
        """Those announced, in order."""
        return [self.codec.decode(notify.state) for notify in self.all(e.Notify)]


@pytest.fixture(scope="session")
def bench() -> type[Bench]:
    return Bench
