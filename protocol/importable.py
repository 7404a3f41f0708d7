"""Which modules a worker can import for itself: the path finder, with our ``sys.path``, finds the very same file.

``importlib.util.find_spec`` is not asked: it answers from ``sys.modules``, so it says yes to whatever is loaded, such
as a test module under pytest's importlib mode.
"""

import os
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_OWN = __name__.partition(".")[0]
_path: tuple[str, ...] = ()
_answers: dict[str, tuple[ModuleType, object, bool]] = {}


def path_changed() -> bool:
    """Whether ``sys.path`` is another than at the last call; every answer is forgotten then."""
    global _path
    now = tuple(sys.path)
    if now == _path:
        return False
    _answers.clear()
    _path = now
    return True


def importable(name: str) -> bool:
    module = sys.modules.get(name)
    if module is None or name == "__main__":
        return False
    file = getattr(module, "__file__", None)
    known = _answers.get(name)
    if known is not None and known[0] is module and known[1] == file:
        return known[2]
    answer = _found(name, module, file)
    _answers[name] = (module, file, answer)
    return answer


def located(value: Any) -> tuple[str, str] | None:
    """Module and qualified name under which that very function or class is found, as pickle would look for it."""
    name = getattr(value, "__module__", None)
    path = getattr(value, "__qualname__", None)
    if not isinstance(name, str) or not isinstance(path, str) or "<" in path:
        return None
    return (name, path) if held(name, path) is value else None


def held(module: str, path: str) -> Any:
    """What a loaded module holds under a qualified name; None when there is nothing."""
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def _found(name: str, module: ModuleType, file: object) -> bool:
    if name.partition(".")[0] == _OWN:
        return True  # the worker is made of it
    if _stands_at(name, module, file):
        return True
    # A second name that the standard library gives a module: os.path, from 3.13 on also collections.abc.
    first = getattr(getattr(module, "__spec__", None), "name", name)
    return first != name and name.partition(".")[0] in sys.stdlib_module_names and _stands_at(first, module, file)


def _stands_at(name: str, module: ModuleType, file: object) -> bool:
    spec = _spec(name)
    if spec is None:
        return BuiltinImporter.find_spec(name) is not None or FrozenImporter.find_spec(name) is not None
    if isinstance(file, str):
        return spec.origin is not None and os.path.realpath(spec.origin) == os.path.realpath(file)
    return spec.origin is None and _places(spec) == list(getattr(module, "__path__", ()))


def _spec(name: str) -> ModuleSpec | None:
    """Walks the packages part by part, each alone: a dotted search would consult ``sys.modules`` for the parents."""
    spec: ModuleSpec | None = None
    path: list[str] | None = None
    loaded = ""
    for part in name.split("."):
        spec = _top_level(part) if path is None else PathFinder.find_spec(part, path)
        if spec is None:
            return None
        path = _places(spec)
        loaded = f"{loaded}.{part}".lstrip(".")
        package = sys.modules.get(loaded)
        if package is not None and spec.origin is not None and getattr(package, "__file__", None) == spec.origin:
            path = list(getattr(package, "__path__", path))  # a package may have extended its own path
    return spec


def _top_level(name: str) -> ModuleSpec | None:
    spec = PathFinder.find_spec(name)
    if spec is not None:
        return spec
    for finder in sys.meta_path:  # editable installs: site puts their finders into every interpreter, the worker's too
        if "editable" in getattr(finder, "__module__", ""):
            spec = finder.find_spec(name, None)
            if spec is not None:
                return spec
    return None


def _places(spec: ModuleSpec) -> list[str]:
    return list(spec.submodule_search_locations or ())
