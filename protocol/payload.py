"""Values ↔ bytes. The bytes are the canonical form of a value: equal bytes, equal value.

Plain data is msgpack (see :mod:`.extensions`), anything else goes whole as a pickle. A pickle begins with 0x80 and is
longer than one byte; msgpack's 0x80 is the empty map and is never followed by anything. So no prefix, and no copy.
"""

import pickle
from typing import Any, Final, Literal

from caravela.errors import LimitExceeded, NotPortable, UndecodableState

from . import extensions, pickles

PAYLOAD_LIMIT: Final = 64 * 2**20
"""Bytes of one encoded value."""

LEVELS: Final = 1023
"""How deep plain data nests: what msgpack reads (1,024), less one that a tuple needs for itself."""


def encode(value: Any, *, what: str = "state") -> bytes:
    """``what`` names the value in errors.

    Types come back exactly: subclasses, and whatever else is not plain data, by pickle. Plain values that are equal
    in type, value and order of insertion give equal bytes; for pickled ones that is likely but not certain.

    Raises ``NotPortable`` (with the path to what cannot travel) and ``LimitExceeded`` (more than ``PAYLOAD_LIMIT``
    bytes; cyclic plain data, or deeper than ``LEVELS``; a pickle may reach the interpreter's recursion limit earlier).
    """
    try:
        data = extensions.pack(value)
    except extensions.NotPlain:
        return _pickle(value, what)
    except extensions.TooManySets:
        raise LimitExceeded(what, 0, extensions.SETS, "sets inside sets") from None
    except (MemoryError, OverflowError):
        raise LimitExceeded(what, 0, PAYLOAD_LIMIT) from None
    except (ValueError, RecursionError) as error:
        if "too large" in str(error):  # msgpack has no word for single items from 4 GiB on
            raise LimitExceeded(what, 0, PAYLOAD_LIMIT) from None
        raise LimitExceeded(what, 0, LEVELS, "levels") from None
    except RuntimeError as error:
        raise NotPortable(what, f"it changed while it was encoded ({error})") from error
    if len(data) > PAYLOAD_LIMIT:
        raise LimitExceeded(what, len(data), PAYLOAD_LIMIT)
    return data


def _pickle(value: Any, what: str) -> bytes:
    try:
        return pickles.dumps(value, what=what, limit=PAYLOAD_LIMIT)
    except MemoryError:
        raise LimitExceeded(what, 0, PAYLOAD_LIMIT) from None


def decode(data: bytes, *, trust: Literal["pickle", "data"] = "pickle") -> Any:
    """A value that is nobody else's. ``trust="data"`` refuses pickles, which can run code.

    Raises ``UndecodableState``, never anything else. The memory that it takes is not bounded by the payload's limit:
    4 MiB of empty dicts are 551 MB as objects. Who decodes, chooses to; the supervisor's loop never does.
    """
    pickled = _is_pickle(data)
    if pickled and trust == "data":
        raise UndecodableState('the value is a pickle, and a pickle from a worker is not trusted (trust="data")')
    try:
        return pickle.loads(data) if pickled else extensions.unpack(data)
    except Exception as error:
        raise UndecodableState(f"the value cannot be decoded: {type(error).__name__}: {error}") from error


def _is_pickle(data: bytes) -> bool:
    return data[:1] == b"\x80" and len(data) > 1


class ValueCodec:
    """:class:`caravela.flows.events.Codec` for states and reasons: what was encoded can be decoded."""

    def encode(self, value: Any, /) -> bytes:
        data = encode(value)
        if _is_pickle(data):  # an exception whose __init__ wants more than its args goes out and never comes back
            try:
                decode(data)
            except UndecodableState as error:
                why = error.__cause__
                raise NotPortable("state", f"it cannot be read back: {type(why).__name__}: {why}") from why
        return data

    def decode(self, data: bytes, /) -> Any:
        return decode(data)
