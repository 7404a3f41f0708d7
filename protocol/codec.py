"""Messages ↔ bytes: ``[tag, *fields]`` in msgpack, flat, every field of exactly its declared type.

The tables are made of the unions in :mod:`.messages` and of their field annotations: a new message needs nothing here.
Bytes from a pipe are believed in nothing. What the decoder makes of them is bounded before it is made: arrays by the
longest message (so that nested ones amplify nothing), strings, maps and extensions by msgpack's limits, all of it by
the buffer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from operator import attrgetter
from typing import Any, Final, Literal, TypeAlias, get_args, get_type_hints

from msgpack import BufferFull, Packer, Unpacker

from caravela.errors import LimitExceeded, ProtocolError

from .messages import ToSupervisor, ToWorker
from .payload import PAYLOAD_LIMIT

ENVELOPE_LIMIT: Final = 64 * 2**10
"""Bytes of a message without its payloads."""

_READ: Final = 256 * 2**10
"""What is fed to msgpack at once; more is cut."""

_LARGE: Final = 2**20
"""An unpacker whose buffer grew beyond this is replaced when it is empty: it would keep the memory."""

_INT_END: Final = 2**63

Message: TypeAlias = ToWorker | ToSupervisor


@dataclass(frozen=True, slots=True)
class _Shape:
    """What one class looks like on the wire."""

    kind: type
    tag: int
    types: tuple[type, ...]
    """Of the whole array, the tag included."""
    values: Callable[[Any], tuple[Any, ...]]
    ints: tuple[int, ...]
    """Their places in the array."""
    payloads: tuple[int, ...]


def _shape(kind: type, tag: int) -> _Shape:
    names = [item.name for item in fields(kind)]
    hints = get_type_hints(kind)
    types = (int, *(hints[name] for name in names))
    get = attrgetter(*names)
    return _Shape(
        kind=kind,
        tag=tag,
        types=types,
        values=get if len(names) > 1 else lambda message: (get(message),),
        ints=tuple(place for place, declared in enumerate(types) if declared is int and place),
        payloads=tuple(place for place, declared in enumerate(types) if declared is bytes),
    )


def _shapes(union: Any) -> tuple[_Shape, ...]:
    return tuple(_shape(kind, tag) for tag, kind in enumerate(get_args(union)))


_UNIONS: Final = {"to_worker": _shapes(ToWorker), "to_supervisor": _shapes(ToSupervisor)}

# A class of both unions must have one tag in both: an encoder is not told who will read.
_BY_KIND: Final = {shape.kind: shape for shapes in _UNIONS.values() for shape in shapes}
assert all(_BY_KIND[shape.kind].tag == shape.tag for shapes in _UNIONS.values() for shape in shapes)


def encode(message: Message) -> bytes:
    """Lone surrogates in texts are sent escaped: envelopes are for people, values travel in payloads.

    Raises ``LimitExceeded`` for an envelope or a payload above its limit, ``TypeError`` for what is no message.
    """
    shape = _BY_KIND.get(type(message))
    if shape is None:
        raise TypeError(f"{type(message).__name__} is no message")
    row = (shape.tag, *shape.values(message))
    if tuple(map(type, row)) != shape.types:
        raise TypeError(_mismatch(shape, row))
    for place in shape.ints:
        if not 0 <= row[place] < _INT_END:
            raise TypeError(f"{shape.kind.__name__} holds {row[place]}; allowed is 0 to 2**63 - 1")
    try:
        data = Packer(unicode_errors="backslashreplace", buf_size=512).pack(row)
    except ValueError:  # msgpack has no word for single items from 4 GiB on
        data = b""
    if not 0 < len(data) <= ENVELOPE_LIMIT:
        _check_limits(shape, row, len(data))
    return data


def _check_limits(shape: _Shape, row: tuple[Any, ...], size: int) -> None:
    for place in shape.payloads:
        if len(row[place]) > PAYLOAD_LIMIT:
            raise LimitExceeded(f"a payload of {shape.kind.__name__}", len(row[place]), PAYLOAD_LIMIT)
    envelope = size - sum(len(row[place]) for place in shape.payloads)
    if envelope > ENVELOPE_LIMIT or not size:
        raise LimitExceeded(f"the envelope of {shape.kind.__name__}", envelope, ENVELOPE_LIMIT)


def _mismatch(shape: _Shape, row: Sequence[Any]) -> str:
    wanted = ", ".join(declared.__name__ for declared in shape.types[1:])
    got = ", ".join(type(item).__name__ for item in row[1:])
    return f"{shape.kind.__name__} is made of ({wanted}), not of ({got})"


def _build(shapes: tuple[_Shape, ...], row: Sequence[Any]) -> Message:
    """Called by msgpack for every array, the innermost first: so the longest message bounds also what nests."""
    tag = row[0] if row else None
    if type(tag) is not int:
        raise ProtocolError(f"a message begins with its tag, not with {type(tag).__name__}")
    if not 0 <= tag < len(shapes):
        raise ProtocolError(f"no message has the tag {tag}")
    shape = shapes[tag]
    if tuple(map(type, row)) != shape.types:
        raise ProtocolError(_mismatch(shape, row))
    for place in shape.ints:
        if not 0 <= row[place] < _INT_END:
            raise ProtocolError(f"{shape.kind.__name__} holds {row[place]}; allowed is 0 to 2**63 - 1")
    message: Message = shape.kind(*row[1:])
    return message


class Decoder:
    """Takes a stream in pieces of any size and gives its messages.

    Feed it what one read brought: what comes out of it is held in memory at once.
    """

    __slots__ = ("_end", "_fed", "_kinds", "_large", "_shapes", "_unpacker", "_why")

    def __init__(self, union: Literal["to_worker", "to_supervisor"]) -> None:
        self._shapes = _UNIONS[union]
        self._kinds = frozenset(shape.kind for shape in self._shapes)
        self._why: str | None = None
        self._renew()

    def _renew(self) -> None:
        self._unpacker = Unpacker(
            read_size=16 * 2**10,  # the default owns 1 MiB from the start
            list_hook=partial(_build, self._shapes),
            max_array_len=max(len(shape.types) for shape in self._shapes),
            max_map_len=0,
            max_ext_len=0,
            max_str_len=ENVELOPE_LIMIT,
            max_bin_len=PAYLOAD_LIMIT,
            max_buffer_size=PAYLOAD_LIMIT + ENVELOPE_LIMIT + _READ,
        )
        self._fed = self._end = 0
        self._large = False

    @property
    def pending(self) -> int:
        """Bytes of a message that is not complete yet; at the end of a stream: of one that was cut."""
        return self._fed - self._end

    def feed(self, data: bytes | memoryview) -> list[Message]:
        """Raises ``ProtocolError`` for bytes that are no message, and from then on always: where the next one would
        begin is not known any more.
        """
        messages: list[Message] = []
        self.take(data, messages)
        return messages

    def take(self, data: bytes | memoryview, messages: list[Message]) -> None:
        """Like :meth:`feed`, but what stood before the bytes that are no message is in ``messages`` all the same."""
        if self._why is not None:
            raise ProtocolError(self._why)
        try:
            if len(data) <= _READ:
                self._read(data, messages)
            else:
                view = memoryview(data)
                for start in range(0, len(view), _READ):
                    self._read(view[start : start + _READ], messages)
        except ProtocolError as error:
            self._break(error.why)
            raise
        except BufferFull as error:
            raise self._break("a message is larger than any can be") from error
        except Exception as error:
            raise self._break(f"no msgpack: {type(error).__name__} {error}".rstrip()) from error

    def _read(self, data: bytes | memoryview, messages: list[Message]) -> None:
        unpacker, end = self._unpacker, self._end
        unpacker.feed(data)
        self._fed += len(data)
        for message in unpacker:
            if type(message) not in self._kinds:
                raise ProtocolError(f"a bare {type(message).__name__} is no message")
            start, end = end, unpacker.tell()
            if end - start > ENVELOPE_LIMIT:
                self._check_envelope(message, end - start)
            messages.append(message)
        self._end = end
        if self._fed - end > _LARGE:
            self._large = True
        elif self._large and self._fed == end:
            self._renew()

    def _check_envelope(self, message: Message, size: int) -> None:
        values = _BY_KIND[type(message)].values(message)
        size -= sum(len(value) for value in values if type(value) is bytes)
        if size > ENVELOPE_LIMIT:
            envelope = f"the envelope of {type(message).__name__}"
            raise ProtocolError(f"{envelope} has {size:,} bytes; the limit is {ENVELOPE_LIMIT:,}")

    def _break(self, why: str) -> ProtocolError:
        self._renew()  # lets go of what was fed
        self._why = why
        return ProtocolError(why)
