"""Values that are more than plain data: pickle, bounded, and an answer to *what* in there cannot be pickled.

The fast path asks nothing. Only after a failure the value is walked, object by object, each one pickled by itself
with a stand-in for everything that it refers to: so the culprit is found by pickle's own rules, on a readable path.
"""

import io
import pickle
import reprlib
import sys
from collections import deque
from collections.abc import Container, Iterable, Iterator
from types import FunctionType
from typing import Any, Final

from caravela.errors import CaravelaError, LimitExceeded, NotPortable

from .stays import OWNERS_OF_LOCKS, why_it_stays

_SCALARS: Final = frozenset({int, float, complex, bool, str, bytes, bytearray, type(None)})
_CONTAINERS: Final = frozenset({dict, list, tuple})


class _Unportable(Exception):
    """Inside this file: something that pickle would copy does not travel."""


class _TooLong(Exception):
    """Inside this file: the pickle outgrew its limit."""


class _Bounded(io.BytesIO):
    def __init__(self, limit: int) -> None:
        super().__init__()
        self.room = limit

    def write(self, data: Any, /) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise _TooLong
        return super().write(data)


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any, /) -> Any:
        if why_it_stays(obj) is not None:
            raise _Unportable
        return NotImplemented


def dumps(value: Any, *, what: str, limit: int) -> bytes:
    """Protocol 5. Raises ``LimitExceeded``, and ``NotPortable`` with the path, from ``what``, to the culprit."""
    file = _Bounded(limit)
    try:
        _Pickler(file, 5).dump(value)
    except _TooLong:
        raise LimitExceeded(what, 0, limit) from None
    except RecursionError:
        # Each level of a value takes at least two of the interpreter's.
        raise LimitExceeded(what, 0, sys.getrecursionlimit() // 2, "levels") from None
    except (MemoryError, CaravelaError):
        raise
    except Exception as error:  # whatever a __reduce__ raises
        raise _blame(value, what, error) from error
    return file.getvalue()


# ------------------------------------------------------------------ who is to blame


class _Alone(_Pickler):
    """Pickles one object; what it refers to is collected in place of being pickled."""

    def __init__(self, subject: Any) -> None:
        super().__init__(io.BytesIO(), 5)
        self.subject = subject
        self.parts: list[Any] = []

    def persistent_id(self, obj: Any) -> Any:
        if obj is self.subject:
            return None
        self.parts.append(obj)
        return 0


def _blame(value: Any, what: str, error: Exception) -> NotPortable:
    """Breadth first, so that the shortest path is named."""
    seen: dict[int, Any] = {}  # keeps what reduces made for us alive: an id must not come again
    todo = deque([(what, value)])
    while todo:
        path, item = todo.popleft()
        if type(item) in _SCALARS or id(item) in seen:
            continue
        seen[id(item)] = item
        if (stays := why_it_stays(item)) is not None:
            return NotPortable(path, stays)
        if type(item).__module__ in OWNERS_OF_LOCKS and not isinstance(item, BaseException):
            return NotPortable(path, _cannot_leave(item))
        alone = _Alone(item)
        try:
            alone.dump(item)
        except RecursionError:
            continue
        except Exception as why:
            return NotPortable(path, _reason(item, why))
        names = {id(inner): name for name, inner in _named(item, path)}
        todo.extend((names.get(id(part), path), part) for part in _unwrapped(alone.parts, names))
    return NotPortable(what, f"{type(error).__name__}: {error}")


def _unwrapped(parts: Iterable[Any], names: Container[int]) -> Iterator[Any]:
    """What an object's reduce made up around its attributes (a dict of them, tuples of arguments) is taken off."""
    todo = deque(parts)
    while todo:
        part = todo.popleft()
        if type(part) in _SCALARS:
            continue
        if id(part) in names or type(part) not in _CONTAINERS:
            yield part
        else:
            todo.extend(part.values() if type(part) is dict else part)


def _named(item: Any, path: str) -> Iterator[tuple[str, Any]]:
    """What ``item`` holds, under the names that a reader of Python would use; pickle may want less of it."""
    match item:
        case dict():
            for key, inner in item.items():
                if type(inner) not in _SCALARS:
                    yield f"{path}[{reprlib.repr(key)}]", inner
                if type(key) not in _SCALARS:
                    yield f"{path} key {reprlib.repr(key)}", key
        case list() | tuple() | deque():
            for index, inner in enumerate(item):
                if type(inner) not in _SCALARS:
                    yield f"{path}[{index}]", inner
        case set() | frozenset():
            for inner in item:
                if type(inner) not in _SCALARS:
                    yield f"{path} element {reprlib.repr(inner)}", inner
        case _:
            pass
    yield from ((f"{path}.{name}", inner) for name, inner in _attributes(item))


def _attributes(item: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(item, type):
        return
    yield from getattr(item, "__dict__", {}).items()
    for kind in type(item).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(item, name):
                yield name, getattr(item, name)


def _reason(item: Any, error: Exception) -> str:
    if isinstance(item, io.IOBase):
        return f"an open file ({type(item).__name__}) cannot leave its process"
    if isinstance(item, (type, FunctionType)):
        kind = "class" if isinstance(item, type) else "function"
        local = ": a function made it; move it to the head of the module" if "<locals>" in item.__qualname__ else ""
        return f"the {kind} {item.__module__}.{item.__qualname__} cannot be found under its name{local}"
    if isinstance(error, TypeError) and "cannot pickle" in str(error):
        return _cannot_leave(item)
    return f"{article(type(item).__qualname__)} cannot be pickled: {type(error).__name__}: {error}"


def _cannot_leave(item: Any) -> str:
    return f"{article(type(item).__qualname__)} cannot leave its process"


def article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
