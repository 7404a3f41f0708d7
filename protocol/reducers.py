"""How things travel that pickle takes by name only, or not at all: functions, classes, and what is made of them.

What an importable module holds under a name travels as that name. A function without a name travels as code, cells and
defaults, and finds its globals in the worker. Functions and classes of modules that cannot be imported travel as a name
in the mirror, where a ``Define`` of it went first.
"""

import abc
import dataclasses
import functools
import io
import sys
import threading
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from enum import EnumMeta
from types import (
    CellType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    TracebackType,
)
from typing import Any

from caravela.errors import NotPortable

from . import mirror
from .codes import ByIdentity, numbers
from .importable import held, importable, located
from .notes import Notes
from .stays import why_it_stays

_dispatching = typing.cast("FunctionType", functools.singledispatch(len)).__code__
_choosing = typing.cast("FunctionType", functools.singledispatch(len).dispatch).__code__
_dump_of_abc = vars(abc)["_get_dump"]
# Compared by identity, found under no name of their own.
_SENTINELS = {
    id(vars(dataclasses)[name]): name
    for name in ("MISSING", "KW_ONLY", "_HAS_DEFAULT_FACTORY", "_FIELD", "_FIELD_CLASSVAR", "_FIELD_INITVAR")
    if name in vars(dataclasses)
}
_UNNAMED_TYPES = {kind: name for name, kind in vars(types).items() if isinstance(kind, type) and located(kind) is None}
_VARIANCE = ("covariant", "contravariant", *(("infer_variance",) if sys.version_info >= (3, 12) else ()))
_NO_DEFAULT = getattr(typing, "NoDefault", None)  # since 3.13
_numbers: ByIdentity[int] = ByIdentity()
_MADE_BY_TYPE = {
    "__dict__",
    "__weakref__",
    "__module__",
    "__qualname__",
    "__slots__",
    "__doc__",
    "__orig_bases__",
    "_abc_impl",
}


@dataclass(frozen=True, slots=True)
class Bare:
    """Pickles as the function without what fills it."""

    function: FunctionType


@dataclass(frozen=True, slots=True)
class Call:
    """Pickles as the result of a call in the worker."""

    builder: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.builder, self.arguments


def reduce(notes: Notes, value: Any) -> Any:
    """A reducer's answer, or ``NotImplemented``: pickle itself knows what to do."""
    kind = type(value)
    reducer = _REDUCERS.get(kind)
    if reducer is not None:
        return reducer(notes, value)
    if issubclass(kind, type):
        return _class(notes, value)
    if id(value) in _SENTINELS:
        return mirror.imported, ("dataclasses", _SENTINELS[id(value)])
    stays = why_it_stays(value)
    if stays is not None:
        raise NotPortable(kind.__name__, stays)
    if hasattr(kind, "__caravela_name__"):
        place = value.__caravela_name__()
        return (mirror.imported, place) if place is not None and importable(place[0]) else NotImplemented
    if kind is notes.subject and isinstance(kind, EnumMeta):
        return _member(value)
    return NotImplemented


# ------------------------------------------------------------------ functions


def _function(notes: Notes, value: FunctionType) -> Any:
    if mirror.BUILDERS.get(value.__name__) is value:
        return NotImplemented
    where = located(value)
    if where is not None:
        if importable(where[0]):
            return NotImplemented
        if not _within(notes.subject, value):
            return notes.link(value)
    if value.__code__ is _choosing:  # from 3.13 on a bound singledispatchmethod holds it
        places = dict(zip(_choosing.co_freevars, value.__closure__ or (), strict=True))
        return mirror.chooser, (dict(places["registry"].cell_contents),)
    if value.__code__ is _dispatching:
        return (mirror.dispatcher, (), _dispatch_state(value), None, None, mirror.fill_dispatcher)
    return (*notes.bare(value), _function_state(value), None, None, mirror.fill)


def _within(subject: type | FunctionType | None, value: FunctionType) -> bool:
    """A method while its own class is being filled; anything else that has a name goes by it."""
    return (
        isinstance(subject, type)
        and value.__module__ == subject.__module__
        and value.__qualname__.rpartition(".")[0] == subject.__qualname__
    )


def bare_function(value: FunctionType) -> Bare | Call:
    return Call(mirror.dispatcher, ()) if value.__code__ is _dispatching else Bare(value)


def rest_of_function(value: FunctionType) -> Call:
    if value.__code__ is _dispatching:
        return Call(mirror.fill_dispatcher, (value, _dispatch_state(value)))
    return Call(mirror.fill, (value, _function_state(value)))


def _function_state(value: FunctionType) -> tuple[tuple[tuple[Any, ...], ...], dict[str, Any], dict[str, Any]]:
    code = value.__code__
    attributes: dict[str, Any] = {}
    for name, standard in (("__name__", code.co_name), ("__qualname__", code.co_qualname)):
        if getattr(value, name) != standard:
            attributes[name] = getattr(value, name)
    for name in ("__defaults__", "__kwdefaults__", "__annotations__", "__type_params__"):
        if getattr(value, name, None):
            attributes[name] = getattr(value, name)
    if value.__module__ != value.__globals__.get("__name__"):
        attributes["__module__"] = value.__module__
    if value.__doc__ != (code.co_consts[0] if code.co_consts and isinstance(code.co_consts[0], str) else None):
        attributes["__doc__"] = value.__doc__
    return tuple(map(_content, value.__closure__ or ())), attributes, dict(value.__dict__)


def _content(place: CellType) -> tuple[Any, ...]:
    try:
        return (place.cell_contents,)
    except ValueError:
        return ()


def _dispatch_state(value: Any) -> tuple[dict[type, Any], dict[str, Any]]:
    attributes = {name: getattr(value, name) for name in ("__name__", "__qualname__", "__module__", "__doc__")}
    own = {"register", "dispatch", "registry", "_clear_cache"}
    return dict(value.registry), attributes | {name: item for name, item in value.__dict__.items() if name not in own}


def _cell(notes: Notes, value: CellType) -> Any:
    if id(value) not in notes.cells:
        raise NotPortable("cell", "a cell travels only inside its function")
    return mirror.cell, ()


def _refused(notes: Notes, value: Any) -> Any:
    raise NotPortable(
        type(value).__name__, f"{type(value).__qualname__} cannot leave its process"
    )  # dill would copy it


def _method(notes: Notes, value: MethodType) -> Any:
    # pickle would look the name up on the object, which a `super().method` or a method made by hand does not survive.
    named = getattr(value.__self__, value.__func__.__name__, None)
    return NotImplemented if named == value else (MethodType, (value.__func__, value.__self__))


def _cache(notes: Notes, value: Any) -> Any:
    where = located(value)
    if where is not None and importable(where[0]):
        return NotImplemented
    parameters = value.cache_parameters()
    return mirror.cache, (value.__wrapped__, parameters["maxsize"], parameters["typed"], dict(value.__dict__))


def _module(notes: Notes, value: ModuleType) -> Any:
    name = value.__name__
    if sys.modules.get(name) is not value:
        raise NotPortable(f"module {name}", "not the one that sys.modules holds under this name")
    if importable(name):
        return mirror.module, (name,)
    notes.mirror(name)
    return mirror.module, (name,)


# ------------------------------------------------------------------ classes


def _class(notes: Notes, value: type) -> Any:
    where = located(value)
    if where is not None:
        return NotImplemented if importable(where[0]) else notes.link(value)
    if value in _UNNAMED_TYPES:
        return mirror.imported, ("types", _UNNAMED_TYPES[value])
    alias = _alias(value)
    return notes.link(value) if alias is None else (mirror.imported, alias)


def _alias(value: type) -> tuple[str, str] | None:
    """A class that a function made, and that an importable module holds under a name of its own."""
    module = value.__module__
    if not importable(module):
        return None
    return next(((module, name) for name, other in tuple(vars(sys.modules[module]).items()) if other is value), None)


def bare_class(value: type) -> Call:
    own = vars(value)
    namespace = {name: own[name] for name in ("__module__", "__slots__", "__doc__", "__orig_bases__") if name in own}
    namespace["__qualname__"] = value.__qualname__
    number = _numbers.get(value) or _numbers.put(value, next(numbers))
    return Call(mirror.bare_class, (number, type(value), value.__name__, value.__bases__, namespace))


def rest_of_class(value: type) -> Call:
    attributes = {
        name: item
        for name, item in tuple(vars(value).items())
        if name not in _MADE_BY_TYPE
        and not (isinstance(item, (MemberDescriptorType, GetSetDescriptorType)) and item.__objclass__ is value)
    }
    return Call(mirror.fill_class, (value, attributes, _registered(value)))


def _registered(value: type) -> list[type]:
    if "_abc_impl" not in vars(value):
        return []
    others = (reference() for reference in _dump_of_abc(value)[0])
    return [other for other in others if other is not None]


def _member(value: Any) -> Any:
    base = type(value)._member_type_
    arguments = value.__getnewargs__() if hasattr(base, "__getnewargs__") else ()
    return mirror.member, (type(value), base, arguments), dict(value.__dict__), None, None, mirror.fill_member


def _stands(value: Any) -> bool:
    """What pickle takes by its name is found under it, also in the worker. Type variables of ``def f[T]`` say that
    they were of ``typing``."""
    return importable(value.__module__) and held(value.__module__, value.__name__) is value


def _type_variable(notes: Notes, value: Any) -> Any:
    if _stands(value):
        return NotImplemented
    options: dict[str, Any] = {name: True for name in _VARIANCE if getattr(value, f"__{name}__", False)}
    if (bound := _evaluated(value, "__bound__", None)) is not None:
        options["bound"] = bound
    if _NO_DEFAULT is not None and (default := _evaluated(value, "__default__", _NO_DEFAULT)) is not _NO_DEFAULT:
        options["default"] = default
    names = value.__name__, *_evaluated(value, "__constraints__", ())
    return mirror.type_variable, (type(value), value.__module__, names, options)


def _type_alias(notes: Notes, value: Any) -> Any:
    if _stands(value):
        return NotImplemented
    names, parameters = (value.__module__, value.__name__), value.__type_params__
    box = notes.boxes.get(id(value))
    if box is None:
        box = notes.boxes[id(value)] = []
        if (meaning := _evaluated(value, "__value__", box)) is not box:
            box.append(meaning)
        if box and parameters:
            return mirror.type_alias, (*names, meaning, parameters)
    # ``type Tree = list[Tree]``: what it means stands in a list, which pickle knows before that is filled. With
    # parameters, those of ``type Tree[T] = list[Tree[T]]`` are then others than the ones that it means.
    signs = {typing.TypeVarTuple: "*", typing.ParamSpec: "**"}
    return mirror.lazy_type_alias, (*names, [signs.get(type(it), "") + it.__name__ for it in parameters], box)


def _evaluated(value: Any, name: str, otherwise: Any) -> Any:
    """``otherwise`` for what has no such attribute, and for a lazy one that names what only a type checker sees."""
    try:
        return getattr(value, name)
    except (AttributeError, NameError):
        return otherwise


def _new_type(notes: Notes, value: Any) -> Any:
    return NotImplemented if _stands(value) else (typing.NewType, (value.__name__, value.__supertype__))


_REDUCERS: dict[type, Callable[[Notes, Any], Any]] = {
    Bare: lambda notes, value: notes.bare(value.function),
    FunctionType: _function,
    CellType: _cell,
    MethodType: _method,
    ModuleType: _module,
    type: _class,
    functools._lru_cache_wrapper: _cache,
    # Made anew: from 3.13 on it also holds a weak cache of its own, which stays here.
    functools.singledispatchmethod: lambda notes, value: (
        functools.singledispatchmethod,
        (value.func,),
        {"dispatcher": value.dispatcher},
    ),
    functools.cached_property: lambda notes, value: (mirror.cached_property, (value.func, value.attrname)),
    staticmethod: lambda notes, value: (staticmethod, (value.__func__,)),
    classmethod: lambda notes, value: (classmethod, (value.__func__,)),
    property: lambda notes, value: (property, (value.fget, value.fset, value.fdel, value.__doc__)),
    MappingProxyType: lambda notes, value: (MappingProxyType, (dict(value),)),
    typing.NewType: _new_type,
}
_REDUCERS |= dict.fromkeys((typing.TypeVar, typing.ParamSpec, typing.TypeVarTuple), _type_variable)
_REDUCERS |= dict.fromkeys(
    (typing.ParamSpecArgs, typing.ParamSpecKwargs), lambda notes, value: (type(value), (value.__origin__,))
)
if "TypeAliasType" in vars(typing):  # since 3.12
    _REDUCERS[vars(typing)["TypeAliasType"]] = _type_alias
_REDUCERS |= dict.fromkeys((type(threading.Lock()), type(threading.RLock()), GeneratorType, CoroutineType), _refused)
_REDUCERS |= dict.fromkeys((io.FileIO, io.BufferedReader, io.BufferedWriter, io.BufferedRandom), _refused)
_REDUCERS |= dict.fromkeys((io.TextIOWrapper, FrameType, TracebackType), _refused)
