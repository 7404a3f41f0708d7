"""What in a value cannot travel, and on which path it is found. Slow, and only asked after a failure.

From what failed to that part of it that fails by itself, and on, until no part does.
"""

import functools
import io
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import FunctionType, MethodType
from typing import Any

from caravela.errors import NotPortable

from .codes import known
from .homes import home
from .importable import importable, located
from .stays import OWNERS_OF_LOCKS, why_it_stays

STEPS = 100
"""The longest path that is followed."""


@dataclass(frozen=True, slots=True)
class _Path:
    """Text in three parts: ``closure of signal → `` · ``lock`` · nothing."""

    name: str
    before: str = ""
    after: str = ""

    def __str__(self) -> str:
        return self.before + self.name + self.after

    def at(self, more: str) -> "_Path":
        return replace(self, name=self.name + more)


def blame(value: Any, what: str, error: BaseException, attempt: Callable[[Any], object]) -> NotPortable:
    """``attempt`` raises for what cannot travel."""
    path = _Path(what)
    seen = {id(value): value}
    for _ in range(STEPS):
        if (stays := why_it_stays(value)) is not None:
            return NotPortable(str(path), stays)
        if type(value).__module__ in OWNERS_OF_LOCKS:
            break
        for inner, part in _safely(_parts(value, path)):
            if id(part) in seen:
                continue
            seen[id(part)] = part
            try:
                attempt(part)
            except KeyboardInterrupt:
                raise
            except BaseException as why:
                value, path, error = part, inner, why
                break
        else:
            break
    return NotPortable(str(path), _reason(value, error))


def _safely(parts: Iterator[tuple[_Path, Any]]) -> Iterator[tuple[_Path, Any]]:
    try:
        yield from parts
    except KeyboardInterrupt:
        raise
    except BaseException:  # a property or a repr of the user's: what was found before it counts
        return


def _parts(value: Any, path: _Path) -> Iterator[tuple[_Path, Any]]:
    match value:
        case FunctionType():
            yield from _function(value, path)
        case MethodType():
            yield from _parts(value.__func__, path)
            yield path.at(".__self__"), value.__self__
        case staticmethod() | classmethod():
            yield from _parts(value.__func__, path)
        case property():
            for inner in (value.fget, value.fset, value.fdel):
                yield from _parts(inner, path)
        case functools.partial():
            yield path.at(".func"), value.func
            yield from ((path.at(f".args[{index}]"), part) for index, part in enumerate(value.args))
            yield from ((path.at(f".keywords[{key!r}]"), part) for key, part in value.keywords.items())
        case functools._lru_cache_wrapper():
            yield path.at(".__wrapped__"), value.__wrapped__
        case type():
            yield from _class(value, path)
        case dict():
            for key, part in value.items():
                yield path.at(f"[{_short(key)}]"), part
                yield path.at(f" key {_short(key)}"), key
        case list() | tuple():
            yield from ((path.at(f"[{index}]"), part) for index, part in enumerate(value))
        case set() | frozenset():
            yield from ((path.at(f"{{{_short(part)}}}"), part) for part in value)
        case _ if hasattr(type(value), "__caravela_name__"):
            yield from _flow(value, path)
        case _:
            yield from _attributes(value, path)


def _function(value: FunctionType, path: _Path) -> Iterator[tuple[_Path, Any]]:
    where = located(value)
    if where is not None and importable(where[0]):
        return
    for name, place in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
        try:
            yield _Path(name, f"closure of {path} → "), place.cell_contents
        except ValueError:  # an empty cell
            continue
    defaults = value.__defaults__ or ()
    names = value.__code__.co_varnames[: value.__code__.co_argcount]
    defaulted = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True)) | (value.__kwdefaults__ or {})
    yield from ((_Path(name, f"default of {path} → "), part) for name, part in defaulted.items())
    yield from ((path.at(f".{name}"), part) for name, part in value.__dict__.items())
    if home(value.__globals__)[1] is None:
        return
    for name in known(value.__code__).globals_of(value):
        part = value.__globals__[name]
        if isinstance(part, FunctionType):
            yield _Path(name, "function ", f", named by {path}"), part
        elif isinstance(part, type):
            yield _Path(name, "class ", f", named by {path}"), part
        else:
            yield _Path(name, "global ", f" of {path}"), part


def _class(value: type, path: _Path) -> Iterator[tuple[_Path, Any]]:
    for base in value.__bases__:
        yield _Path(base.__qualname__, "class ", f", base of {path}"), base
    for name, part in vars(value).items():
        if isinstance(part, (FunctionType, staticmethod, classmethod, property)):
            yield from _parts(part, path.at(f".{name}"))  # by itself it would fail with its class
        else:
            yield path.at(f".{name}"), part


def _flow(value: Any, path: _Path) -> Iterator[tuple[_Path, Any]]:
    for node in value.plan.nodes:
        if not hasattr(node.step, "steps"):
            yield from _attributes(node.step, _Path(value.plan.path(node.id), after=f" of {path}"))
    yield path.at(".initial_state"), value.initial_state
    yield path.at(".signals"), dict(value.signals)


def _attributes(value: Any, path: _Path) -> Iterator[tuple[_Path, Any]]:
    yield _Path(type(value).__qualname__, "class ", f" of {path}"), type(value)
    yield from ((path.at(f".{name}"), part) for name, part in getattr(value, "__dict__", {}).items())
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                yield path.at(f".{name}"), getattr(value, name)


def _short(item: Any) -> str:
    text = repr(item)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _reason(value: Any, error: BaseException) -> str:
    if isinstance(value, io.IOBase):
        return f"an open file ({type(value).__name__}) cannot leave its process"
    if isinstance(error, NotPortable) and type(value).__module__ not in OWNERS_OF_LOCKS:
        return error.why
    if type(value).__module__ in OWNERS_OF_LOCKS or (isinstance(error, TypeError) and "cannot pickle" in str(error)):
        return f"{type(value).__qualname__} cannot leave its process"
    said = "".join(traceback.format_exception_only(error)).strip()  # str() of a user's error may raise
    return f"{type(value).__qualname__} cannot be pickled: {said}"
