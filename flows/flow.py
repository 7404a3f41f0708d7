"""A flow: a name, a tree of steps, and how its state begins. A value; what runs it is elsewhere."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import BuiltinFunctionType, FunctionType, MappingProxyType, MethodType
from typing import Any

from .drawing import mermaid, tree
from .flat import Flattened, build, expression, flatten
from .plan import Plan
from .steps import Sequence


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False, repr=False)
class Flow:
    """Made by :func:`caravela.flow`, which checks it; ``str(flow)`` draws it as a tree.

    ``initial_state`` is kept as it was given; the runtime encodes it at every start, so that no run changes it.
    Flows are equal when name, steps, initial state and signals are; functions are equal when they are the same.
    """

    name: str
    root: Sequence
    initial_state: Any
    signals: Mapping[str, Callable[..., Any]]
    module: str | None = None
    """Where ``flow()`` was called: the first place to look for a name that this flow can travel by."""
    plan: Plan = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "signals", MappingProxyType(dict(self.signals)))
        object.__setattr__(self, "plan", Plan(self.root, f"flow {self.name!r}"))

    def mermaid(self) -> str:
        """A Mermaid flowchart: holders are subgraphs, an edge leads from the end of a ``repeat`` back to its start."""
        return mermaid(self.name, self.plan)

    def __str__(self) -> str:
        return tree(self.name, self.plan)

    def __repr__(self) -> str:
        steps = "".join(f", {expression(step)}" for step in self.root.steps)
        signals = f", signals={dict(self.signals)!r}" if self.signals else ""
        return f"flow({self.name!r}{steps}, initial_state={self.initial_state!r}{signals})"

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Flow):
            return NotImplemented
        mine = (self.name, self.root, self.initial_state, dict(self.signals))
        return mine == (other.name, other.root, other.initial_state, dict(other.signals))

    def __hash__(self) -> int:
        return hash((self.name, self.root))  # not the state: a dict has no hash

    def __reduce__(self) -> tuple[Callable[..., "Flow"], tuple[Any, ...]]:
        return _rebuild, (self.name, flatten(self.root), self.initial_state, dict(self.signals), self.module)

    def __copy__(self) -> "Flow":
        return self

    def __caravela_name__(self) -> tuple[str, str] | None:
        """Module and qualified name under which this very flow is found now; ``None`` when it has none."""
        module = sys.modules.get(self.module) if self.module else None
        waiting: list[tuple[str, object]] = [("", module)] if module else []
        for prefix, place in waiting:
            for name, value in list(vars(place).items()):
                if value is self:
                    return str(self.module), prefix + name
                if isinstance(value, type) and value.__module__ == self.module and value.__qualname__ == prefix + name:
                    waiting.append((f"{prefix}{name}.", value))
        return None


def _rebuild(name: str, root: Flattened, initial_state: Any, signals: dict[str, Any], module: str | None) -> Flow:
    return Flow(name, build(root), initial_state, signals, module)


def is_factory(initial_state: object) -> bool:
    """Whether it is called for the first state of every incarnation. Any other object is that state itself."""
    return isinstance(initial_state, FunctionType | MethodType | BuiltinFunctionType | partial | type)
