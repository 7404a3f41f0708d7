"""Anything to bytes that an :class:`.mirror.Importer` loads: pickle 5 with our reducers, less for simple functions."""

import io
import os
import pickle
import threading
from types import FunctionType
from typing import Any

import msgpack

from caravela.errors import NotPortable

from . import mirror
from .codes import known
from .homes import home
from .notes import Notes, Parcel
from .reducers import reduce

SCALARS = frozenset({int, float, str, bytes, bool, type(None)})
_dill_lock = threading.Lock()


def _after_fork_in_child() -> None:
    """Another thread of the parent may have held it."""
    global _dill_lock
    _dill_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)


class _Reducing(Notes):
    def reducer_override(self, value: Any) -> Any:
        return reduce(self, value)


class _Fast(_Reducing, pickle.Pickler):
    pass


def encode(value: Any, subject: type | FunctionType | None = None) -> Parcel:
    """``subject``: whose own filling this is, so that its parts travel in it. Raises whatever pickling raises."""
    file = io.BytesIO()
    pickler = _Fast(file, protocol=5)
    pickler.begin(subject)
    try:
        pickler.dump(value)
    except NotPortable:
        raise
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        return _by_dill(value, subject, error)
    return pickler.parcel(file.getvalue())


def _by_dill(value: Any, subject: type | FunctionType | None, refused: Exception) -> Parcel:
    """Types beyond pickle: weak references, dict views, descriptors of C. Functions and classes stay ours."""
    import dill  # 30 ms: only when something needs it

    class Slow(_Reducing, dill.Pickler):
        pass

    file = io.BytesIO()
    with _dill_lock:
        pickler = Slow(file, protocol=5, recurse=False)
        pickler.begin(subject)
        try:
            pickler.dump(value)
        except NotPortable:
            raise
        except Exception:
            raise refused from None
    return pickler.parcel(file.getvalue())


def light(function: FunctionType) -> Parcel | None:
    """A function whose cells and defaults are scalars; in microseconds. None: it needs the pickler."""
    if function.__dict__ or function.__annotations__ or "<" not in function.__qualname__:
        return None
    if getattr(function, "__type_params__", ()):
        return None
    code = function.__code__
    try:
        cells = [place.cell_contents for place in function.__closure__ or ()]
    except ValueError:  # an empty cell
        return None
    defaults, kwdefaults = function.__defaults__, function.__kwdefaults__
    values = [*cells, *(defaults or ()), *(kwdefaults.values() if kwdefaults else ())]
    if not all(type(value) in SCALARS for value in values):
        return None
    if function.__module__ != function.__globals__.get("__name__"):
        return None
    key, header = home(function.__globals__)
    name = None if function.__name__ == code.co_name else function.__name__
    qualname = None if function.__qualname__ == code.co_qualname else function.__qualname__
    it = known(code)
    try:
        body = msgpack.packb((it.message.id, key, name, qualname, defaults, kwdefaults, cells))
    except (OverflowError, UnicodeEncodeError):
        return None
    data = mirror.LIGHT + body
    if header is None:
        return Parcel(data, (it.message,))
    return Parcel(data, (it.message,), (header,), (), (function,) if it.globals_of(function) else ())
