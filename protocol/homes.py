"""What a worker calls the globals of a function, and a function or class that it cannot import."""

import functools
import sys
from typing import Any

from . import mirror, payload
from .codes import ByIdentity, numbers
from .importable import importable, located
from .messages import Define

DETACHED_LIMIT = 1024
"""Globals of exec'ed code that are remembered. A dict cannot be held weakly; one that was let go gets a mirror anew."""
NUMBER = "@"
"""Before the number in the name of what has none that is its own for good; a worker keeps some of these only."""

_detached: dict[int, str] = {}
_names: ByIdentity[str] = ByIdentity()


def home(namespace: dict[str, Any]) -> tuple[str, Define | None]:
    """The worker's key of these globals, and what makes their mirror when it cannot import them."""
    name = namespace.get("__name__")
    name = name if isinstance(name, str) else "builtins"  # exec without a name
    module = sys.modules.get(name)
    attached = module is not None and module.__dict__ is namespace
    if attached and importable(name):
        return name, None
    key = name if attached else _key_of_detached(name, namespace)
    file, package = namespace.get("__file__"), namespace.get("__package__")
    return key, _header(
        key, name, file if isinstance(file, str) else None, package if isinstance(package, str) else None
    )


def mirrored(name: str) -> Define | None:
    """What makes the mirror of a module; None when it needs none."""
    module = sys.modules.get(name)
    return None if module is None or importable(name) else home(module.__dict__)[1]


def name_of(value: Any) -> tuple[str, str]:
    """What a function or class that is ``Define``d is called in the worker; a local class gets a number."""
    where = located(value)
    if where is not None:
        return where
    name = _names.get(value) or _names.put(value, f"{value.__qualname__}{NUMBER}{next(numbers)}")
    mirror.unnamed.setdefault(name, value)
    return str(value.__module__), name


@functools.lru_cache(maxsize=256)
def _header(key: str, name: str, file: str | None, package: str | None) -> Define:
    return Define(key, mirror.HEADER, payload.encode({"__name__": name, "__file__": file, "__package__": package}))


def _key_of_detached(name: str, namespace: dict[str, Any]) -> str:
    """Globals of exec'ed code, as NamedTuple makes them."""
    key = _detached.get(id(namespace))
    if key is not None and mirror.detached.get(key) is namespace:
        return key
    while len(_detached) >= DETACHED_LIMIT:
        mirror.detached.pop(_detached.pop(next(iter(_detached))), None)
    key = _detached[id(namespace)] = f"{name}{NUMBER}{next(numbers)}"
    mirror.detached[key] = namespace
    return key
