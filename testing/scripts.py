"""What stands in for a body in a simulation, and how long it takes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from ..flows.events import StartTask
from ..flows.flat import spell
from ..flows.flow import Flow
from ..flows.outcomes import UNSET
from ..flows.steps import Each, Parallel, Race, Run


@dataclass(frozen=True, slots=True)
class Script:
    """One run of a body. Made by :func:`takes`."""

    ms: float
    returns: Any = UNSET
    raises: BaseException | None = None
    calls: Callable[..., Any] | None = None

    def of(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """What is called in place of the body ``fn``."""
        if self.raises is not None or self.returns is not UNSET:
            return self._answer
        return self.calls or fn

    def _answer(self, *_args: Any) -> Any:
        if self.raises is not None:
            raise self.raises
        return self.returns


def takes(
    ms: float,
    *,
    returns: Any = UNSET,
    raises: BaseException | None = None,
    calls: Callable[..., Any] | None = None,
) -> Script:
    """A body that takes ``ms`` virtual milliseconds; ``math.inf``: for ever.

    Then it returns ``returns`` or raises ``raises``. Without either, the real body, or ``calls`` in its place, is
    called with the body's arguments: a plain function at once, its result arrives after ``ms``; an ``async def``
    after ``ms``, it may take its own time then.
    """
    if not ms >= 0:
        raise ValueError(f"ms must not be negative: {ms!r}")
    if sum([returns is not UNSET, raises is not None, calls is not None]) > 1:
        raise TypeError("a body does one thing: returns=, raises= or calls=")
    return Script(ms, returns, raises, calls)


Stand: TypeAlias = Script | Sequence[Script] | Callable[..., Any]
"""A script for every time, one for each time (the last one again and again), or a function in place of the body."""
Bodies: TypeAlias = Mapping[Any, Stand]
"""By the body itself, its ``__name__``, or the path of its step."""

REAL = Script(0)
SHOWN: Final = 20
"""Steps that an error lists."""


class Cast:
    """Who plays which body of the flow."""

    def __init__(self, bodies: Bodies, flow: Flow) -> None:
        self._scripts = {key: _scripts(key, stand) for key, stand in bodies.items()}
        _check(self._scripts, flow)
        self._played = dict.fromkeys(self._scripts, 0)

    def script(self, task: StartTask) -> Script:
        for key in (task.path, task.fn, getattr(task.fn, "__name__", None)):
            try:
                scripts = self._scripts.get(key)
            except TypeError:  # a callable object may be unhashable
                continue
            if scripts:
                at = self._played[key]
                self._played[key] += 1
                return scripts[min(at, len(scripts) - 1)]
        return REAL


def _scripts(key: object, stand: Stand) -> Sequence[Script]:
    match stand:
        case Script():
            return [stand]
        case list() | tuple() if stand and all(isinstance(script, Script) for script in stand):
            return stand
        case _ if callable(stand):
            return [Script(0, calls=stand)]
        case _:
            raise TypeError(f"bodies[{key!r}] must be takes(…), a list of them or a function, not {stand!r}")


def _check(keys: Iterable[object], flow: Flow) -> None:
    """A misspelt key would leave the real body in its place. Only a flow that builds tasks may have bodies that nobody
    knows yet, under a function or a name."""
    paths: dict[str, list[Callable[..., Any]]] = {}
    builds = False
    for node in flow.plan.nodes:
        match node.step:
            case Run(fn=fn) | Each(fn=fn):
                paths[flow.plan.path(node.id)] = [fn]
            case Race(tasks=tuple(fns)):
                paths[flow.plan.path(node.id)] = list(fns)
            case Parallel() | Race():
                paths[flow.plan.path(node.id)] = []
                builds = True
            case _:
                pass
    bodies = [fn for fns in paths.values() for fn in fns]
    named = {getattr(fn, "__name__", None): fn for fn in bodies}
    for key in keys:
        known = key in paths or key in named or key in bodies
        a_name = not isinstance(key, str) or key.isidentifier() or key == "<lambda>"
        if not known and not (builds and a_name):
            there = [f"{path!r} ({', '.join(map(spell, fns)) or 'builds its tasks'})" for path, fns in paths.items()]
            more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
            listed = ", ".join(there[:SHOWN]) or "none"
            raise ValueError(f"bodies[{key!r}] is no body of flow {flow.name!r}, which has {listed}{more}")
