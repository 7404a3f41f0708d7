"""The worker's side of function payloads: mirrors of modules that it cannot import, and what rebuilds things in them.

Every builder below is named in payloads that :mod:`.reducers` writes. It takes the importer first; the unpickler
binds it.
Messages and payloads must be given to an importer in the order in which they came through the pipe.
"""

import contextlib
import functools
import importlib
import io
import marshal
import pickle
import sys
import typing
from _thread import get_ident  # `threading` costs every worker memory
from abc import ABCMeta
from collections.abc import Callable, Iterator, Mapping
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, cast
from weakref import WeakValueDictionary

import msgpack

from . import payload
from .messages import Code, Define

LIGHT = b"\xc1"
"""First byte of a function that needs no pickle; no msgpack value begins with it."""
REST = "+"
"""``Define("m", "Book", …)`` makes the bare class, ``Define("m", "Book+", …)`` fills it: two may name each other."""
HEADER = ""
"""``Define("m", "", …)`` makes the mirror itself."""

OWN = frozenset(
    {
        "__name__",
        "__file__",
        "__package__",
        "__builtins__",
        "__spec__",
        "__loader__",
        "__doc__",
        "__cached__",
        "__path__",
    }
)
"""What every module has for itself; no value of the user's."""

_IMMUTABLE = 1 << 8
"""Among a class's flags: it is one of C's, which cannot be changed."""

# What the host's own process has no name for; an importer that lives there (the inline engine's) looks here.
unnamed: "WeakValueDictionary[str, Any]" = WeakValueDictionary()
detached: dict[str, dict[str, Any]] = {}


class Importer:
    """Loads what :func:`.functions.export` wrote. ``home``: in the host's own process, where every module is itself."""

    def __init__(self, home: bool = False) -> None:
        self._home = home
        self._codes: dict[int, CodeType] = {}
        self._mirrors: dict[str, ModuleType] = {}
        self._made: dict[str, dict[str, Any]] = {}
        self._forgotten: WeakValueDictionary[tuple[str, str], Any] | None = None  # most workers need none
        if not home:
            self._mirror("__main__", "__main__", {})

    def code(self, message: Code) -> None:
        """Empty code: the host will not name this one any more."""
        if message.code:
            self._codes[message.id] = marshal.loads(message.code)
        else:
            self._codes.pop(message.id, None)

    def define(self, message: Define) -> None:
        """Empty value: the host will not name this one any more, unless it sends it again."""
        if self._home:
            return
        if not message.value:
            return self._forget(message.module, message.name)
        living = self._forgotten.pop((message.module, message.name), None) if self._forgotten else None
        value = self.load(message.value) if living is None else living
        if message.name == HEADER:
            self._mirror(message.module, value.pop("__name__"), value)
        elif not message.name.endswith(REST):
            self._made.setdefault(message.module, {})[message.name] = value
            mirror = self._mirrors.get(message.module)
            if mirror is not None and message.name.isidentifier():
                mirror.__dict__[message.name] = value

    def _forget(self, module: str, name: str) -> None:
        """Functions keep their globals. A class that something still holds is the same when it is sent again."""
        if name == HEADER:
            self._mirrors.pop(module, None)
            self._made.pop(module, None)
        elif isinstance(made := self._made.get(module, {}).pop(name, None), type):
            if self._forgotten is None:
                self._forgotten = WeakValueDictionary()
            self._forgotten[module, name] = made

    def load(self, data: bytes) -> Any:
        """Raises whatever the import of a user's module, or the making of a user's object, raises."""
        if data[:1] == LIGHT:
            return self._light(data)
        if data[:1] == b"\x80" and len(data) > 1:
            return _Unpickler(self, data).load()
        return payload.decode(data)

    def namespace(self, key: str) -> dict[str, Any]:
        """The globals that functions of this module run against."""
        mirror = self._mirrors.get(key)
        if mirror is not None:
            return mirror.__dict__
        if self._home and key in detached:
            return detached[key]
        module = sys.modules.get(key) or importlib.import_module(key)
        return module.__dict__

    def made_from(self, code: int) -> CodeType:
        return self._codes[code]

    def find(self, module: str, name: str) -> Any:
        if self._home and name in unnamed:
            return unnamed[name]
        owner, _, attribute = name.rpartition(".")
        made = self._made.get(module, {}).get(name, self)
        if made is not self:
            return made
        if owner:
            return getattr(self.find(module, owner), attribute)
        return self.namespace(module)[name]

    def _light(self, data: bytes) -> FunctionType:
        code, key, name, qualname, defaults, kwdefaults, cells = msgpack.unpackb(
            memoryview(data)[1:], use_list=False, strict_map_key=False
        )
        made = FunctionType(self._codes[code], self.namespace(key), name, defaults, tuple(map(CellType, cells)) or None)
        made.__qualname__ = qualname or made.__qualname__
        made.__kwdefaults__ = kwdefaults
        return made

    def _mirror(self, key: str, name: str, attributes: Mapping[str, Any]) -> None:
        mirror = self._mirrors.get(key)
        if mirror is None:
            mirror = self._mirrors[key] = ModuleType(name)
            mirror.__dict__["__builtins__"] = sys.modules["builtins"]
            if key == name:
                _adopt(name, mirror)
        mirror.__dict__.update(attributes)


def _adopt(name: str, mirror: ModuleType) -> None:
    """Into ``sys.modules``, with its packages: unpickling ``a.b.c`` asks for ``a`` as well."""
    sys.modules[name] = mirror
    package, _, tail = name.rpartition(".")
    if not package:
        return
    try:
        parent = importlib.import_module(package)
    except Exception:  # whatever the package does at its import: it is not what was sent
        parent = ModuleType(package)
        parent.__path__ = []
        _adopt(package, parent)
    setattr(parent, tail, mirror)


class _Unpickler(pickle.Unpickler):
    def __init__(self, importer: Importer, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._importer = importer

    def find_class(self, module: str, name: str, /) -> Any:
        if module == __name__:
            return functools.partial(BUILDERS[name], self._importer)
        return super().find_class(module, name)


# ------------------------------------------------------------------ builders


def named(importer: Importer, module: str, name: str) -> Any:
    """A function or class that a ``Define`` has brought."""
    return importer.find(module, name)


def imported(importer: Importer, module: str, name: str) -> Any:
    found: Any = sys.modules.get(module) or importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def module(importer: Importer, name: str) -> ModuleType:
    return sys.modules.get(name) or importlib.import_module(name)


def cell(importer: Importer) -> CellType:
    return CellType()


def function(importer: Importer, code: int, key: str, closure: tuple[CellType, ...] | None) -> FunctionType:
    return FunctionType(importer.made_from(code), importer.namespace(key), None, None, closure)


def fill(
    importer: Importer, made: FunctionType, state: tuple[tuple[tuple[Any, ...], ...], dict[str, Any], dict[str, Any]]
) -> None:
    """``contents``: one tuple per cell, empty for an empty cell."""
    contents, attributes, namespace = state
    for place, content in zip(made.__closure__ or (), contents, strict=True):
        if content:
            place.cell_contents = content[0]
    for name, value in attributes.items():
        setattr(made, name, value)
    made.__dict__.update(namespace)


def bare_class(
    importer: Importer, number: int, meta: type, name: str, bases: tuple[type, ...], namespace: dict[str, Any]
) -> type:
    """Past the metaclass's own ``__new__``: what that did to the class is part of what fills it. ``number`` makes the
    bytes of a class defined anew different from those of its forerunner."""
    maker = ABCMeta if issubclass(meta, ABCMeta) else type  # which has something of its own in C
    try:
        return cast("type", maker.__new__(meta, name, bases, namespace))
    except Exception:  # a base's `__init_subclass__` wants keywords, or what the class does not have yet
        with _hooks_off(bases):
            return cast("type", maker.__new__(meta, name, bases, namespace))


@contextlib.contextmanager
def _hooks_off(bases: tuple[type, ...]) -> Iterator[None]:
    """No ``__init_subclass__`` of theirs runs in this thread. Python has no word for that, so they are replaced for a
    moment; in other threads, where bodies make classes, the replaced ones do what they did."""
    here = get_ident()

    def quiet(hook: Any) -> Any:
        def init_subclass(cls: type, /, **keywords: Any) -> None:
            if get_ident() != here:
                hook.__get__(None, cls)(**keywords)

        return classmethod(init_subclass)

    owners = [owner for base in bases for owner in base.__mro__ if not owner.__flags__ & _IMMUTABLE]
    hooks = [(owner, vars(owner)["__init_subclass__"]) for owner in owners if "__init_subclass__" in vars(owner)]
    try:
        for owner, hook in hooks:
            type.__setattr__(owner, "__init_subclass__", quiet(hook))
        yield
    finally:
        for owner, hook in hooks:
            type.__setattr__(owner, "__init_subclass__", hook)


def fill_class(importer: Importer, made: type, attributes: dict[str, Any], registered: list[type]) -> None:
    for name, value in attributes.items():
        type.__setattr__(made, name, value)
        if type(value) is property:
            value.__set_name__(made, name)  # type: ignore[attr-defined]  # the stubs do not know it
    for other in registered:
        ABCMeta.register(cast("ABCMeta", made), other)


def member(importer: Importer, owner: type, base: type, arguments: tuple[Any, ...]) -> Any:
    """A member of an enumeration, past its ``__new__``, which would look the member up."""
    return base.__new__(owner, *arguments)


def fill_member(importer: Importer, made: Any, attributes: dict[str, Any]) -> None:
    made.__dict__.update(attributes)


def dispatcher(importer: Importer) -> Any:
    return functools.singledispatch(_undispatched)


def fill_dispatcher(importer: Importer, made: Any, state: tuple[dict[type, Any], dict[str, Any]]) -> None:
    registry, attributes = state
    for kind, implementation in registry.items():
        made.register(kind, implementation)
    for name, value in attributes.items():
        setattr(made, name, value)


def chooser(importer: Importer, registry: dict[type, Any]) -> Callable[[type], Any]:
    """What a dispatcher asks for the implementation of a type."""
    made = functools.singledispatch(_undispatched)
    for kind, implementation in registry.items():
        made.register(kind, implementation)
    return made.dispatch


def _undispatched(value: Any) -> Any:
    raise NotImplementedError  # stands until `fill_dispatcher` registers the user's own function for `object`


def cache(
    importer: Importer, wrapped: Callable[..., Any], maxsize: int | None, typed: bool, attributes: dict[str, Any]
) -> Any:
    made = functools.lru_cache(maxsize, typed)(wrapped)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def cached_property(importer: Importer, wrapped: Callable[[Any], Any], name: str | None) -> Any:
    made: functools.cached_property[Any] = functools.cached_property(wrapped)
    if name is not None:
        made.__set_name__(object, name)
    return made


def type_variable(
    importer: Importer, kind: Callable[..., Any], module: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """``kind``: also of ``ParamSpec`` and ``TypeVarTuple``."""
    made = kind(*arguments, **options)
    made.__module__ = module
    return made


def type_alias(importer: Importer, module: str, name: str, value: Any, parameters: tuple[Any, ...]) -> Any:
    """Its module is that of the text that makes it, for ever."""
    scope = {"__name__": module, "name": name, "value": value, "parameters": parameters, "typing": typing}
    return eval("typing.TypeAliasType(name, value, type_params=parameters)", scope)


def lazy_type_alias(importer: Importer, module: str, name: str, parameters: list[str], box: list[Any]) -> Any:
    """``box`` may be filled later; it stays empty where the host could not tell what the alias means."""

    def value() -> Any:
        if box:
            return box[0]
        raise NameError(f"the type alias {name} could not be evaluated where it was defined")

    scope: dict[str, Any] = {"__name__": module, "what_it_means": value}
    generic = f"[{', '.join(parameters)}]" if parameters else ""
    exec(f"type {name}{generic} = what_it_means()", scope)
    return scope[name]


BUILDERS: dict[str, Callable[..., Any]] = {
    builder.__name__: builder
    for builder in (
        named, imported, module, cell, function, fill, bare_class, fill_class, member, fill_member,
        dispatcher, fill_dispatcher, chooser, cache, cached_property, type_variable, type_alias, lazy_type_alias,
    )
}  # fmt: skip
