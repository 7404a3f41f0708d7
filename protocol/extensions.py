"""Plain values ↔ msgpack, each type exactly as it was.

What msgpack has no word for is written as an array that begins with a *mark*, an extension without data:
``(1, 2)`` is ``[mark TUPLE, 1, 2]``. Only sets hold their elements inside the extension, sorted by their encoded
bytes, so that equal sets give equal bytes. The codes are negative: there an ``ExtType`` of a user's own cannot be.

Everything else nests in msgpack's own arrays: depth is counted in one place, in msgpack, and no Python recurses.
"""

import gc
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields
from datetime import date, datetime, time, timedelta, timezone
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from msgpack import ExtType, Packer, unpackb

import caravela.errors
from caravela.errors import Cause, Reason

SETS: Final = 32
"""Sets inside sets: each is a payload in a payload, and they alone recurse."""

Writer: TypeAlias = Callable[[Any], Any]
Builder: TypeAlias = Callable[[list[Any]], Any]


class NotPlain(Exception):
    """The value holds something that is not plain data; it can only travel as a pickle."""


class TooManySets(Exception):
    """More than ``SETS`` inside each other."""


class _Mark:
    """What a mark reads as, until its array is complete."""

    __slots__ = ("build",)

    def __init__(self, build: Builder) -> None:
        self.build = build


_writers: dict[type, Writer] = {}
_late: list[tuple[str, str, Writer]] = []
_marks: dict[int, _Mark] = {}


def _mark(code: int, build: Builder) -> ExtType:
    _marks[code] = _Mark(build)
    return ExtType._make((code, b""))  # the constructor refuses negative codes


def _define(code: int, kind: type, split: Callable[[Any], Iterable[Any]], build: Builder) -> None:
    mark = _mark(code, build)
    _writers[kind] = lambda value: [mark, *split(value)]


def _define_late(code: int, module: str, name: str, split: Callable[[Any], Iterable[Any]], build: Builder) -> None:
    """For types whose modules are slow to import: a value of the type exists only where the module is loaded."""
    mark = _mark(code, build)
    _late.append((module, name, lambda value: [mark, *split(value)]))


# ------------------------------------------------------------------ the types


def _decimal(parts: list[Any]) -> Any:
    from decimal import Decimal

    return Decimal(*parts)


def _uuid(parts: list[Any]) -> Any:
    from uuid import UUID, SafeUUID

    return UUID(bytes=parts[0], is_safe=SafeUUID(parts[1]))


def _datetime_parts(value: datetime) -> tuple[Any, ...]:
    day = (value.year, value.month, value.day)
    return (*day, value.hour, value.minute, value.second, value.microsecond, value.tzinfo, value.fold)


def _time_parts(value: time) -> tuple[Any, ...]:
    return value.hour, value.minute, value.second, value.microsecond, value.tzinfo, value.fold


_define(-2, tuple, lambda value: value, tuple)
_define(-3, bytearray, lambda value: (bytes(value),), lambda parts: bytearray(*parts))
_define(-4, complex, lambda value: (value.real, value.imag), lambda parts: complex(*parts))
_define(-5, timedelta, lambda value: (value.days, value.seconds, value.microseconds), lambda parts: timedelta(*parts))
_define(-6, timezone, lambda value: value.__getinitargs__(), lambda parts: timezone(*parts))
_define(-7, date, lambda value: (value.year, value.month, value.day), lambda parts: date(*parts))
_define(-8, time, _time_parts, lambda parts: time(*parts[:5], fold=parts[5]))
_define(-9, datetime, _datetime_parts, lambda parts: datetime(*parts[:8], fold=parts[8]))
_define_late(-10, "decimal", "Decimal", lambda value: (str(value),), _decimal)
_define_late(-11, "uuid", "UUID", lambda value: (value.bytes, value.is_safe.value), _uuid)

_BIG: Final = _mark(-12, lambda parts: int.from_bytes(parts[0], "big", signed=True))
_SET: Final = -13
_FROZENSET: Final = -14

_reasons: dict[str, type] = {"Cause": Cause}
for _kind in vars(caravela.errors).values():
    if isinstance(_kind, type) and issubclass(_kind, Reason):
        _reasons[_kind.__name__] = _kind
_REASON: Final = _mark(-15, lambda parts: _reasons[parts[0]](*parts[1:]))


def _reason_writer(kind: type) -> Writer:
    names = [item.name for item in fields(kind)]

    def write(value: Any) -> list[Any]:
        # An exception may carry more than its fields (notes); only a pickle keeps that.
        if isinstance(value, Reason) and len(vars(value)) > len(names):
            raise NotPlain
        return [_REASON, kind.__name__, *[getattr(value, name) for name in names]]

    return write


_writers |= {kind: _reason_writer(kind) for kind in _reasons.values()}


# ------------------------------------------------------------------ writing


class _Mode(NamedTuple):
    """How to write: with lone surrogates, item by item, and how many sets deep we are."""

    errors: str | None = None
    boxed: bool = False
    sets: int = 0


class _Box:
    """Hides an item from msgpack, so that :func:`_write` is asked for it."""

    __slots__ = ("item",)

    def __init__(self, item: Any) -> None:
        self.item = item


_AS_IT_IS: Final = frozenset({str, bytes, float, bool, type(None), ExtType})


def _packer(mode: _Mode) -> Packer:
    # A new one for each value: it keeps its buffer at the largest size it ever had, and threads must not share it.
    return Packer(default=partial(_write, mode), strict_types=True, unicode_errors=mode.errors, buf_size=256)


def _write(mode: _Mode, value: Any) -> Any:
    kind = type(value)
    if kind is _Box:
        return _unbox(mode, value.item)
    if write := _writers.get(kind):
        return write(value)
    if kind is int:
        return [_BIG, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)]
    if kind is set:
        return _write_set(mode, _SET, value)
    if kind is frozenset:
        return _write_set(mode, _FROZENSET, value)
    for module, name, write in _late:
        if kind is getattr(sys.modules.get(module), name, None):
            _writers[kind] = write
            return write(value)
    raise NotPlain


def _write_set(mode: _Mode, code: int, value: Iterable[Any]) -> ExtType:
    if mode.sets == SETS:
        raise TooManySets
    packer = _packer(mode._replace(sets=mode.sets + 1))
    elements = sorted(packer.pack(_Box(element) if mode.boxed else element) for element in value)
    return ExtType._make((code, packer.pack_array_header(len(elements)) + b"".join(elements)))


def _unbox(mode: _Mode, item: Any) -> Any:
    kind = type(item)
    if kind in _AS_IT_IS or (kind is int and -(2**63) <= item < 2**64):
        return item
    if kind is list:
        return [_Box(inner) for inner in item]
    if kind is dict:
        return {_Box(key): _Box(inner) for key, inner in item.items()}
    written = _write(mode, item)
    return [written[0], *[_Box(part) for part in written[1:]]] if type(written) is list else written


_CONTAINERS: Final = frozenset({list, dict, tuple, set, frozenset, *_reasons.values()})
_TAKEN_FOR_BYTES: Final = frozenset({bytearray, memoryview})


def _taken_for_bytes(value: Any) -> bool:
    """Whether something in there is no ``bytes`` and was written as if it were."""
    level = [value]
    while level:
        if not _TAKEN_FOR_BYTES.isdisjoint(map(type, level)):
            return True
        level = gc.get_referents(*[item for item in level if type(item) in _CONTAINERS])
    return False


_write_plain: Final = partial(_write, _Mode())


def pack(value: Any) -> bytes:
    """Canonical: equal values with equal order of insertion give equal bytes.

    Raises ``NotPlain``, ``TooManySets``, and what msgpack raises: ``ValueError`` or ``RecursionError`` for what is
    cyclic or too deep, ``RuntimeError`` for a dict that changes meanwhile.
    """
    # msgpack writes one level more than it reads: so write one more, and take it off again.
    try:
        data = Packer(default=_write_plain, strict_types=True, buf_size=256).pack([value])[1:]
    except UnicodeEncodeError:
        data = _packer(_Mode("surrogatepass")).pack([value])[1:]
    # msgpack's strict_types does not cover bytearray and memoryview. They can only be where a bin header is.
    if (0xC4 in data or 0xC5 in data or 0xC6 in data) and _taken_for_bytes(value):
        data = _packer(_Mode("surrogatepass", boxed=True)).pack([_Box(value)])[1:]
    return data


# ------------------------------------------------------------------ reading


def _read_list(items: list[Any]) -> Any:
    if items and type(items[0]) is _Mark:
        return items[0].build(items[1:])
    return items


def _read_extension(sets: int, code: int, data: bytes) -> Any:
    if mark := _marks.get(code):
        return mark
    if code in (_SET, _FROZENSET):
        if sets == SETS:
            raise ValueError(f"more than {SETS} sets inside sets")
        elements = _unpack(data, sets + 1)
        return set(elements) if code == _SET else frozenset(elements)
    return ExtType(code, data)


_hooks: Final = [partial(_read_extension, sets) for sets in range(SETS + 1)]


def _unpack(data: bytes, sets: int) -> Any:
    hook = _hooks[sets]
    return unpackb(data, strict_map_key=False, unicode_errors="surrogatepass", list_hook=_read_list, ext_hook=hook)


def unpack(data: bytes) -> Any:
    """The value that :func:`pack` got. Raises all sorts of things for bytes that it did not make."""
    return _unpack(data, 0)
