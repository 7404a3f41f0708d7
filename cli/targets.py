"""What a command is about: a flow, named as ``package.module:attribute`` or ``path/to/file.py:name``."""

import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import ModuleType

from ..flows.flow import Flow
from ..protocol.pickles import article


class BadTarget(Exception):
    """Its text says what is wrong with the target, and what would be right."""


@dataclass(frozen=True, slots=True)
class Target:
    """``module`` can be imported, here and by workers; ``name`` is empty where none was given."""

    module: str
    name: str

    @classmethod
    def of(cls, text: str) -> "Target":
        """Puts the folder that it is imported from first on ``sys.path``, where it is not there yet.

        Raises ``BadTarget``.
        """
        place, colon, name = text.rpartition(":")
        if not colon:
            place, name = text, ""
        if place.endswith(".py") or os.sep in place:
            return cls(_module_of(Path(place)), name)
        if not all(part.isidentifier() for part in place.split(".")):
            raise BadTarget(f"{text!r} is neither package.module:name nor path/to/file.py:name")
        _look_in(Path.cwd())
        _find(place)
        return cls(place, name)

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"

    def load(self) -> tuple["Target", Flow]:
        """Imports it in this process. Without a name, the module's only flow. Raises ``BadTarget``."""
        module = importlib.import_module(self.module)
        if not self.name:
            return self._only_one(module)
        try:
            found = attrgetter(self.name)(module)
        except AttributeError:
            raise BadTarget(f"{self.module} has no {self.name!r}; {_flows_in_words(module)}") from None
        if not isinstance(found, Flow):
            raise BadTarget(f"{self} is no flow but {article(type(found).__name__)}; {_flows_in_words(module)}")
        return self, found

    def _only_one(self, module: ModuleType) -> tuple["Target", Flow]:
        flows = _flows(module)
        if len(flows) != 1:
            raise BadTarget(f"which flow? {_flows_in_words(module)}")
        [(name, flow)] = flows.items()
        return Target(self.module, name), flow


def _find(module: str) -> None:
    """Imports the packages that it lies in, not itself."""
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # what its packages import is not there
        found = None
    if found is None:
        raise BadTarget(f"there is no module {module!r} on the path, which begins with {sys.path[0]!r}")


def _module_of(path: Path) -> str:
    """As if its folder were where Python was started, or the one above the packages that it lies in."""
    file = path.resolve()
    if not file.is_file():
        raise BadTarget(f"there is no file {str(path)!r}")
    parts, folder = [file.stem], file.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    if parts[-1] == "__init__":
        parts.pop()
    module = ".".join(parts)
    if not all(part.isidentifier() for part in parts):
        raise BadTarget(f"{str(path)!r} cannot be imported: {module!r} is no name of a module")
    _look_in(folder)
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None or Path(found.origin).resolve() != file:
        other = found.origin if found else "nothing"
        raise BadTarget(f"{str(path)!r} cannot be imported: {module!r} already stands for {other}; rename the file")
    return module


def _look_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _flows(module: ModuleType) -> dict[str, Flow]:
    return {name: value for name, value in vars(module).items() if isinstance(value, Flow)}


def _flows_in_words(module: ModuleType) -> str:
    names = ", ".join(_flows(module))
    return f"its flows: {names}" if names else f"{module.__name__} has no flows"
