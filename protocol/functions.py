"""Functions, flows, states and arguments to bytes for a worker, with what that worker must have first.

``export`` looks at everything anew, so nothing stale is sent; :class:`Held` then leaves out what one worker has
already: code, and in its mirrors functions and classes (which go once, by identity: what is changed in place later,
as in ``Cfg.debug = True``, does not follow) and other globals (which go again when their bytes differ from those last
sent: what the worker changed in place stays until the host does).
"""

import hashlib
import sys
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from types import FunctionType, ModuleType
from typing import Any
from weakref import ref

from caravela.errors import LimitExceeded

from . import culprit, extensions, mirror
from .codes import ByIdentity, known
from .encoder import encode, light
from .homes import home, mirrored, name_of
from .importable import importable, located, path_changed
from .messages import Code, Define
from .notes import Parcel
from .payload import PAYLOAD_LIMIT
from .payload import encode as encode_plain
from .reducers import bare_class, bare_function, rest_of_class, rest_of_function

CODES = 4096
"""Code objects that one worker keeps; the host names the ones to forget."""


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
                self._read_module(value, it.names, todo)

    def _read_module(self, module: ModuleType, names: Iterable[str], todo: list[Parcel | Define]) -> None:
        """Of a module with a mirror of its own: what the code may mean by ``module.name``."""
        header = mirrored(module.__name__)
        if header is None:
            return
        self.headers[header.module] = header
        for name in sorted(names):
            if name in module.__dict__:
                self._global(header.module, name, module.__dict__[name], todo)

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
    """What one incarnation of a worker has been sent. Used under the lock of its flow, in the order of the pipe."""

    def __init__(self) -> None:
        self._codes: OrderedDict[int, None] = OrderedDict()
        self._defined: dict[tuple[str, str], bytes] = {}

    def missing(self, needs: Iterable[Code | Define]) -> list[Code | Define]:
        """What of ``needs`` must be written now; it is taken as written."""
        needs = tuple(needs)
        missing = self.lacking(needs)
        self.keep(needs, missing)
        return missing

    def lacking(self, needs: Sequence[Code | Define]) -> list[Code | Define]:
        """What of ``needs`` must be written. Beyond ``CODES`` the code that was needed longest ago is named with
        nothing in it: the worker forgets it, and functions that it has made live on."""
        lacking = [need for need in needs if not self._has(need)]
        if len(lacking) > 1:
            lacking = list(dict.fromkeys(lacking))
        if len(self._codes) + len(lacking) > CODES:
            codes = {need.id for need in needs if isinstance(need, Code)}
            excess = len(self._codes.keys() | codes) - max(CODES, len(codes))
            unneeded = (number for number in self._codes if number not in codes)
            lacking += [Code(number, b"") for number in islice(unneeded, max(excess, 0))]
        return lacking

    def keep(self, needs: Sequence[Code | Define], lacking: Sequence[Code | Define]) -> None:
        """``lacking`` of ``needs`` is on its way. Doing so twice is doing so once."""
        for need in needs:
            if isinstance(need, Code):
                self._codes[need.id] = None
                self._codes.move_to_end(need.id)
        for need in lacking:
            match need:
                case Code(number, b""):
                    self._codes.pop(number, None)
                case Define(module, name, value):
                    self._defined[module, name] = _mark(value)

    def _has(self, need: Code | Define) -> bool:
        match need:
            case Code(number):
                return number in self._codes
            case Define(module, name, value):
                return self._defined.get((module, name)) == _mark(value)


def _mark(value: bytes) -> bytes:
    return value if len(value) <= 64 else hashlib.blake2b(value, digest_size=16).digest()
