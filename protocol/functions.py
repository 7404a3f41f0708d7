"""Functions, flows, states and arguments to bytes for a worker, with what that worker must have first.

``export`` looks at everything anew, so nothing stale is sent; :class:`Held` then leaves out what one worker has
already: code, and in its mirrors functions and classes (which go once, by identity: what is changed in place later,
as in ``Cfg.debug = True``, does not follow) and other globals (which go again when their bytes differ from those last
sent: what the worker changed in place stays until the host does).
"""

import hashlib
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from types import FunctionType, ModuleType
from typing import Any, TypeVar
from weakref import ref

from caravela.errors import LimitExceeded

from . import culprit, extensions, mirror
from .codes import ByIdentity, known
from .encoder import encode, light
from .homes import NUMBER, home, mirrored, name_of
from .importable import importable, located, path_changed
from .messages import Code, Define
from .notes import Parcel
from .payload import PAYLOAD_LIMIT
from .payload import encode as encode_plain
from .reducers import bare_class, bare_function, rest_of_class, rest_of_function

CODES = 4096
"""Code objects that one worker keeps; the host names the ones to forget."""
NUMBERED = 256
"""Classes that functions made, and mirrors of globals of exec'ed code, that one worker keeps; as with code."""
_NOTHING: Mapping[str, bytes] = {}
K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Portable:
    """``needs``: in the order in which the worker must get them, before ``data``."""

    data: bytes
    needs: tuple[Code | Define, ...] = ()


class _Weak:
    """A parcel that is remembered, so it must not keep alive what it is remembered for."""

    __slots__ = ("_links", "_parcel", "_readers")

    def __init__(self, parcel: Parcel) -> None:
        self._parcel = replace(parcel, links=(), readers=())
        self._links = tuple(map(ref, parcel.links))
        self._readers = tuple(map(ref, parcel.readers))

    def parcel(self) -> Parcel:
        links = tuple(link for it in self._links if (link := it()) is not None)
        readers = tuple(reader for it in self._readers if (reader := it()) is not None)
        return replace(self._parcel, links=links, readers=readers)


@dataclass(frozen=True, slots=True)
class _Registered:
    """A function or class in a mirror: made bare, then filled, so that two of them may name each other."""

    bare: Define
    rest: Define
    of_bare: _Weak
    of_rest: _Weak


_registered: ByIdentity[_Registered] = ByIdentity()
_by_name: ByIdentity[Parcel] = ByIdentity()


def export(value: Any, *, what: str) -> Portable:
    """``what`` names the value in errors.

    Raises ``NotPortable``, naming the path to what cannot travel, and ``LimitExceeded``.
    """
    _look_at_the_path()
    try:
        return _export(value, what)
    except KeyboardInterrupt:
        raise
    except LimitExceeded:
        raise
    except BaseException as error:  # the user's own __reduce__ and properties run here: SystemExit, RecursionError, …
        raise culprit.blame(value, what, error, lambda part: _export(part, what)) from error


def address(flow: Any) -> str:
    """``module:qualname`` under which a worker finds that very flow; empty where there is none."""
    _look_at_the_path()
    place = flow.__caravela_name__()
    return ":".join(place) if place is not None and importable(place[0]) else ""


def _look_at_the_path() -> None:
    """What is known about importable things holds for one ``sys.path``."""
    if path_changed():
        _registered.clear()
        _by_name.clear()


def _export(value: Any, what: str) -> Portable:
    parcel = _parcel(value, what)
    if len(parcel.data) > PAYLOAD_LIMIT:
        raise LimitExceeded(what, len(parcel.data), PAYLOAD_LIMIT)
    if not (parcel.readers or parcel.links):
        return Portable(parcel.data, (*parcel.headers, *parcel.codes))
    return Portable(parcel.data, _Needs(parcel, what).in_order())


def _parcel(value: Any, what: str) -> Parcel:
    if type(value) is FunctionType:
        return light(value) or _parcel_by_name(value)
    if isinstance(value, (type, ModuleType)):
        return _parcel_by_name(value)
    try:
        return Parcel(extensions.pack(value))
    except extensions.NotPlain:
        return encode(value)
    except Exception:  # too deep, too long: it knows the words for it
        return Parcel(encode_plain(value, what=what))


def _parcel_by_name(value: Any) -> Parcel:
    """The bytes that are a mere name do not change while the value lives."""
    if not _is_importable(value):
        return encode(value)
    return _by_name.get(value) or _by_name.put(value, encode(value))


def _is_importable(value: Any) -> bool:
    if isinstance(value, ModuleType):
        return sys.modules.get(value.__name__) is value and importable(value.__name__)
    where = located(value)
    return where is not None and importable(where[0])


# ------------------------------------------------------------------ what must go first


class _Needs:
    """Everything a parcel needs, transitively: mirrors, code, bare functions and classes (bases first), then what
    fills them and the globals they read, each after what it needs itself. Chains may be long, so no recursion."""

    def __init__(self, parcel: Parcel, what: str) -> None:
        self.what = what
        self.headers: dict[str, Define] = {}
        self.codes: dict[int, Code] = {}
        self.bare: dict[int, Define] = {}
        self.rest: list[Define] = []
        self.seen: dict[object, object] = {}  # by id, and holds what it is the id of
        todo: list[Parcel | Define] = [parcel]
        while todo:
            match todo.pop():
                case Define() as ready:
                    self.rest.append(ready)
                case Parcel() as parcel:
                    self.headers.update((header.module, header) for header in parcel.headers)
                    self.codes.update((code.id, code) for code in parcel.codes)
                    for value in parcel.links:
                        self._link(value, todo)
                    for reader in parcel.readers:
                        self._read(reader, todo)

    def in_order(self) -> tuple[Code | Define, ...]:
        return (*self.headers.values(), *self.codes.values(), *self.bare.values(), *self.rest)

    def _link(self, value: Any, todo: list[Parcel | Define]) -> None:
        if id(value) in self.seen:
            return
        self.seen[id(value)] = value
        it = _registered.get(value) or _registered.put(value, _register(value))
        bare = it.of_bare.parcel()
        for base in bare.links:
            self._link(base, todo)
        self.bare[id(value)] = it.bare
        todo += (it.rest, it.of_rest.parcel(), bare)

    def _read(self, reader: FunctionType, todo: list[Parcel | Define]) -> None:
        it = known(reader.__code__)
        names = it.globals_of(reader)
        if not names:
            return
        key, _ = home(reader.__globals__)
        for name in names:
            value = reader.__globals__.get(name)
            self._global(key, name, value, todo)
            if isinstance(value, ModuleType):
                self._read_modules(value, it.names, todo)

    def _read_modules(self, module: ModuleType, names: Iterable[str], todo: list[Parcel | Define]) -> None:
        """Of a module with a mirror of its own: what the code may mean by ``module.name`` and ``module.sub.name``."""
        modules = [module]
        for module in modules:  # grows meanwhile
            header = mirrored(module.__name__)
            if header is not None:
                self.headers[header.module] = header
            for name in sorted(name for name in names if name in module.__dict__):
                value = module.__dict__[name]
                if header is not None:
                    self._global(header.module, name, value, todo)
                if isinstance(value, ModuleType) and not any(value is other for other in modules):
                    modules.append(value)

    def _global(self, key: str, name: str, value: Any, todo: list[Parcel | Define]) -> None:
        if (key, name) in self.seen or name in mirror.OWN:
            return
        self.seen[key, name] = value
        if isinstance(value, (type, FunctionType)) and located(value) == (key, name):
            self._link(value, todo)
            return
        parcel = _parcel(value, self.what)
        if len(parcel.data) > PAYLOAD_LIMIT:
            raise LimitExceeded(f"global {name}", len(parcel.data), PAYLOAD_LIMIT)
        todo += (Define(key, name, parcel.data), parcel)


def _register(value: Any) -> _Registered:
    module, name = name_of(value)
    if isinstance(value, type):
        bare, rest = encode(bare_class(value)), encode(rest_of_class(value), value)
    else:
        bare, rest = encode(bare_function(value)), encode(rest_of_function(value))
    return _Registered(
        Define(module, name, bare.data), Define(module, name + mirror.REST, rest.data), _Weak(bare), _Weak(rest)
    )


# ------------------------------------------------------------------ what one worker has


class Held:
    """What one incarnation of a worker has been sent. Used under the lock of its flow, in the order of the pipe.

    What has a name for good stays. Code and what is called by a number come without end: what was needed longest ago
    is named once more with nothing in it, and the worker forgets it. What it has made of that lives on."""

    def __init__(self) -> None:
        self._codes: OrderedDict[int, None] = OrderedDict()
        self._numbered: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._defined: dict[str, dict[str, bytes]] = {}

    def missing(self, needs: Iterable[Code | Define]) -> list[Code | Define]:
        """What of ``needs`` must be written now; it is taken as written."""
        needs = tuple(needs)
        missing = self.lacking(needs)
        self.keep(needs, missing)
        return missing

    def lacking(self, needs: Sequence[Code | Define]) -> list[Code | Define]:
        """What of ``needs`` must be written, and behind it what the worker is to forget: nothing of ``needs``."""
        lacking = [need for need in needs if not self._has(need)]
        if not lacking:
            return lacking
        if len(lacking) > 1:
            lacking = list(dict.fromkeys(lacking))
        if len(self._codes) + len(lacking) > CODES:
            codes = {need.id for need in needs if isinstance(need, Code)}
            lacking += [Code(number, b"") for number in _beyond(CODES, self._codes, codes)]
        if len(self._numbered) + len(lacking) > NUMBERED:
            numbered = {_unit(need) for need in needs if isinstance(need, Define) and _is_numbered(need)}
            lacking += [Define(*key, b"") for key in _beyond(NUMBERED, self._numbered, numbered)]
        return lacking

    def keep(self, needs: Sequence[Code | Define], lacking: Sequence[Code | Define]) -> None:
        """``lacking`` of ``needs`` is on its way. Doing so twice is doing so once."""
        for need in needs:
            if isinstance(need, Code):
                self._codes[need.id] = None
                self._codes.move_to_end(need.id)
            elif _is_numbered(need):
                key = _unit(need)
                self._numbered[key] = None
                self._numbered.move_to_end(key)
        for need in lacking:
            match need:
                case Code(number, b""):
                    self._codes.pop(number, None)
                case Define(module, name, b""):
                    self._forget(module, name)
                case Define(module, name, value):
                    self._defined.setdefault(module, {})[name] = _mark(value)

    def _forget(self, module: str, name: str) -> None:
        self._numbered.pop((module, name), None)
        if name == mirror.HEADER:
            self._defined.pop(module, None)
        elif module in self._defined:
            self._defined[module].pop(name, None)
            self._defined[module].pop(name + mirror.REST, None)

    def _has(self, need: Code | Define) -> bool:
        if isinstance(need, Code):
            return need.id in self._codes
        return self._defined.get(need.module, _NOTHING).get(need.name) == _mark(need.value)


def _is_numbered(need: Define) -> bool:
    return NUMBER in need.name or NUMBER in need.module


def _unit(need: Define) -> tuple[str, str]:
    """What is forgotten as a whole: a mirror, or a class with what fills it."""
    return (need.module, mirror.HEADER if NUMBER in need.module else need.name.removesuffix(mirror.REST))


def _beyond(limit: int, kept: OrderedDict[K, None], needed: set[K]) -> Iterator[K]:
    """What is to be forgotten, so that with ``needed`` no more than ``limit`` are kept; what is needed always is."""
    excess = len(kept) + sum(key not in kept for key in needed) - max(limit, len(needed))
    return islice((key for key in kept if key not in needed), max(excess, 0))


def _mark(value: bytes) -> bytes:
    return value if len(value) <= 64 else hashlib.blake2b(value, digest_size=16).digest()
