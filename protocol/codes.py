"""Code objects as the host names them. Only code is remembered; cells, defaults and globals are looked
at anew at every send."""

import dis
import itertools
import marshal
from types import CodeType, FunctionType
from typing import Any, Generic, TypeVar
from weakref import ref

from .messages import Code

_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"})
V = TypeVar("V")
numbers = itertools.count(1)


class ByIdentity(Generic[V]):
    """A weak table of objects that may compare equal (two code objects) or not hash at all (a class, by its
    metaclass)."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[ref[Any], V]] = {}

    def get(self, key: Any) -> V | None:
        entry = self._entries.get(id(key))
        return entry[1] if entry is not None and entry[0]() is key else None

    def put(self, key: Any, value: V) -> V:
        """The first one put stays: two threads that meet here get the same."""
        place = id(key)

        def gone(dead: ref[Any]) -> None:
            if (entry := self._entries.get(place)) is not None and entry[0] is dead:
                del self._entries[place]

        mine = (ref(key, gone), value)
        entry = self._entries.setdefault(place, mine)
        if entry[0]() is not key:  # its predecessor at this address, whose callback is still to come
            entry = self._entries[place] = mine
        return entry[1]

    def clear(self) -> None:
        self._entries.clear()


class Known:
    """A code object that has been named. ``names`` are all that it names, also attributes, also in inner functions."""

    __slots__ = ("_globals", "message", "names")

    def __init__(self, code: CodeType) -> None:
        self.message = Code(next(numbers), marshal.dumps(code))
        self.names = frozenset(name for inner in _nest(code) for name in inner.co_names)
        self._globals: frozenset[str] | None = None

    def globals_of(self, function: FunctionType) -> list[str]:
        """Those of its globals that it names, in order of name; not attributes that happen to be called like one."""
        namespace = function.__globals__
        if not any(map(namespace.__contains__, self.names)):
            return []
        if self._globals is None:
            self._globals = frozenset(
                step.argval
                for inner in _nest(function.__code__)
                for step in dis.get_instructions(inner)
                if step.opname in _GLOBAL
            )
        return sorted(name for name in self._globals if name in namespace)


_known: ByIdentity[Known] = ByIdentity()


def known(code: CodeType) -> Known:
    return _known.get(code) or _known.put(code, Known(code))


def _nest(code: CodeType) -> list[CodeType]:
    nest = [code]
    for inner in nest:
        nest.extend(const for const in inner.co_consts if isinstance(const, CodeType))
    return nest
