"""What one payload needs before it can be loaded, noted while it is written."""

from dataclasses import dataclass
from types import FunctionType
from typing import Any

from . import mirror
from .codes import known
from .homes import home, mirrored, name_of
from .importable import held
from .messages import Code, Define


@dataclass(frozen=True, slots=True)
class Parcel:
    """A payload with its codes, the mirrors it is loaded in, functions and classes that must be ``Define``d first, and
    functions that will read globals of a mirror."""

    data: bytes
    codes: tuple[Code, ...] = ()
    headers: tuple[Define, ...] = ()
    links: tuple[Any, ...] = ()
    readers: tuple[FunctionType, ...] = ()


class Notes:
    """``subject``: the class or function whose own filling is being written; its parts travel in it."""

    def begin(self, subject: type | FunctionType | None) -> None:
        self.subject = subject
        self.cells: set[int] = set()
        self.boxes: dict[int, list[Any]] = {}
        self._codes: dict[int, Code] = {}
        self._headers: dict[str, Define] = {}
        self._links: dict[int, Any] = {}
        self._readers: list[FunctionType] = []

    def link(self, value: Any) -> tuple[Any, tuple[str, str]]:
        """By its name in the worker, where a ``Define`` will have brought it."""
        module, name = name_of(value)
        owner = value
        if isinstance(value, FunctionType) and "." in name:  # a method: it comes with its class
            owner = held(module, name.rpartition(".")[0])
        self._links[id(owner)] = owner
        self.mirror(module)
        return mirror.named, (module, name)

    def mirror(self, module: str) -> None:
        header = mirrored(module)
        if header is not None:
            self._headers[module] = header

    def bare(self, function: FunctionType) -> tuple[Any, tuple[Any, ...]]:
        """The function with nothing in its cells: those may lead back to it."""
        key, header = home(function.__globals__)
        message = known(function.__code__).message
        self._codes[message.id] = message
        if header is not None:
            self._headers[key] = header
            self._readers.append(function)
        self.cells.update(map(id, function.__closure__ or ()))
        return mirror.function, (message.id, key, function.__closure__)

    def parcel(self, data: bytes) -> Parcel:
        headers, links = tuple(self._headers.values()), tuple(self._links.values())
        return Parcel(data, tuple(self._codes.values()), headers, links, tuple(self._readers))
