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
_here: str | None = None
"""The current directory, where an entry of that path is relative to it."""
_answers: dict[str, tuple[ModuleType, object, bool]] = {}


def path_changed() -> bool:
    """Whether ``sys.path`` is another than at the last call, or means other places: a relative entry, as ``""`` in the
    REPL, does after ``os.chdir``. Every answer is forgotten then."""
    global _path, _here
    now = tuple(sys.path)
    if now == _path and (_here is None or _here == _cwd()):
        return False
    _answers.clear()
    _path, _here = now, _cwd() if any(isinstance(entry, str) and not os.path.isabs(entry) for entry in now) else None
    return True


def _cwd() -> str:
    """Empty where it was removed: relative entries find nothing then."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


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
    loader = getattr(module, "__loader__", None)
    if any(loader is first and first.find_spec(name) is not None for first in (BuiltinImporter, FrozenImporter)):
        return True  # they are asked before the path, whatever files are called
    spec = _spec(name)
    if spec is None:
        return False
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
    # By full paths: the finder that Python keeps for a relative entry stays where it was made.
    entries = [os.path.join(_cwd(), entry) for entry in sys.path if isinstance(entry, str)]
    spec = PathFinder.find_spec(name, [entry for entry in entries if os.path.isabs(entry)])
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
