"""Steps nest to any depth, and whatever recursed over them would end at Python's stack.

Here they are laid out flat: a post-order list of (class, fields, number of inner steps). Comparing, hashing, printing
and pickling a step go through that list; 3,000 nested sequences overflow every pickler otherwise.
"""

from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass
from functools import partial
from typing import Any, ClassVar, Final, TypeAlias, cast

from caravela.errors import LimitExceeded

MAX_STEPS: Final = 1_000_000
"""A sub-tree may stand in many places, so a few lines can describe more steps than memory holds."""

Flattened: TypeAlias = list[tuple[type["Flat"] | None, tuple[Any, ...], int]]


class Flat:
    """Mixin of all steps: equal when of one class with equal fields and equal inner steps; hashable; picklable."""

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    dsl: ClassVar[str]
    """What the step is called in the DSL: ``wait_until`` of ``WaitUntil``."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.dsl = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in cls.__name__).lstrip("_")

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Flat):
            return NotImplemented
        return type(self) is type(other) and flatten(self) == flatten(other)

    def __hash__(self) -> int:
        return hash(tuple((kind, _hash(fields), count) for kind, fields, count in flatten(self)))

    def __repr__(self) -> str:
        return expression(self)

    def __reduce__(self) -> tuple[Callable[[Flattened], Any], tuple[Flattened]]:
        return build, (flatten(self),)

    def __copy__(self) -> "Flat":
        return self


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Branching(Flat):
    """What the two steps that hold steps have in common."""

    steps: tuple[Any, ...]


def inner(step: object) -> tuple[Any, ...]:
    """The steps inside ``step``, none for a leaf or for what is no step at all."""
    return step.steps if isinstance(step, Branching) and isinstance(step.steps, tuple) else ()


def count(root: object) -> int:
    """How many steps there are, counting one that stands in two places twice."""
    counts: dict[int, int] = {}
    waiting = [root]
    while waiting:
        step = waiting[-1]
        children = inner(step)
        unknown = [child for child in children if id(child) not in counts]
        if unknown:
            waiting.extend(unknown)
        else:
            counts[id(step)] = 1 + sum(counts[id(child)] for child in children)
            waiting.pop()
    return counts[id(root)]


def limit(root: object, what: str) -> None:
    """Raises ``LimitExceeded`` for a tree of more than ``MAX_STEPS``."""
    if (size := count(root)) > MAX_STEPS:
        raise LimitExceeded(what, size, MAX_STEPS, "steps")


def flatten(root: object) -> Flattened:
    """What :func:`build` takes. Raises ``LimitExceeded``."""
    limit(root, "a step")
    flat: Flattened = []
    waiting = [root]
    while waiting:
        step = waiting.pop()
        children = inner(step)
        flat.append((*_fields(step), len(children)))
        waiting.extend(children)
    flat.reverse()  # a pre-order from the right, read backwards, is the post-order
    return flat


def build(flat: Flattened) -> Any:
    """The step that was flattened."""
    done: list[Any] = []
    for kind, fields, size in flat:
        children = tuple(done[len(done) - size :])
        del done[len(done) - size :]
        if kind is None:
            done.append(fields[0])
        else:
            make = cast("Callable[..., Flat]", kind)
            done.append(make(*fields) if fields else make(children))
    return done.pop()


def _fields(step: object) -> tuple[type[Flat] | None, tuple[Any, ...]]:
    """No fields mean: a holder of steps. No class: not a step, kept for the builder to complain about."""
    match step:
        case Branching(steps=tuple()):
            return type(step), ()
        case Flat():
            return type(step), tuple(getattr(step, name) for name in type(step).__match_args__)
        case _:
            return None, (step,)


def _hash(fields: tuple[Any, ...]) -> int:
    try:
        return hash(fields)
    except TypeError:  # a callable object may be unhashable and is a good body all the same
        return len(fields)


# ------------------------------------------------------------------ as text


def expression(root: object) -> str:
    """The step in one line, as it is written in the DSL."""
    if (size := count(root)) > MAX_STEPS:
        return f"<{size:,} steps>"
    parts: list[str] = []
    waiting: list[tuple[object, str | None]] = [(root, None)]
    while waiting:
        step, text = waiting.pop()
        children = inner(step)
        if text is not None:
            parts.append(text)
        elif not isinstance(step, Flat):
            parts.append(spell(step))
        elif not children:
            positional, named = arguments(step)
            written = [spell(value) for value in positional] + [f"{name}={spell(value)}" for name, value in named]
            parts.append(f"{step.dsl}({', '.join(written)})")
        else:
            parts.append(f"{step.dsl}(")
            waiting.append((None, ")"))
            for at in range(len(children) - 1, -1, -1):
                waiting.append((children[at], None))
                if at:
                    waiting.append((None, ", "))
    return "".join(parts)


def arguments(step: Flat) -> tuple[list[Any], list[tuple[str, Any]]]:
    """Those without a default, then those that differ from it; inner steps are not among them."""
    positional, named = [], []
    _, values = _fields(step)
    for field, value in zip(step.__dataclass_fields__.values(), values, strict=False):  # none of a holder of steps
        if field.default is MISSING:
            positional.append(value)
        elif value != field.default:
            named.append((field.name, value))
    return positional, named


def spell(value: object) -> str:
    """A value for people: functions by their name, lists of functions too, all else by ``repr``."""
    match value:
        case partial():
            return f"partial({spell(value.func)})"
        case list() | tuple():
            return f"[{', '.join(spell(item) for item in value)}]"
        case _ if callable(value):
            named = getattr(value, "__qualname__", None)
            return (
                named.rpartition("<locals>.")[2] if isinstance(named, str) else f"<{type(value).__qualname__} object>"
            )
        case _:
            return repr(value)
