"""What means something only in its own process, although pickle or dill would make a copy of it, and what is to blame
itself rather than the lock inside it.

Types are told by name, so that nothing is imported to recognise what nobody uses.
"""

from typing import Any, Final

UNPORTABLE: Final = "__caravela_unportable__"
"""Classes that carry this attribute, a text that says why, do not travel."""

_PROCESSES: Final = frozenset(
    f"{package}.{module}"
    for package in ("multiprocessing", "multiprocess")
    for module in ("connection", "pool", "process", "queues", "sharedctypes", "synchronize")
)
"""Of descriptors: a copy of a ``Connection`` is a mere number, and closes whatever has that number elsewhere."""

OWNERS_OF_LOCKS: Final = _PROCESSES | {"threading", "queue", "socket", "sqlite3", "asyncio.locks", "asyncio.queues"}
"""Modules whose objects are to blame themselves, not the lock inside them."""


def why_it_stays(value: Any) -> str | None:
    """None: it may try to travel.

    An ``asyncio.Lock``, ``Event``, ``Queue`` or ``Semaphore`` travels until somebody has waited for it: one at the
    head of a script serves the bodies of each worker, which have a loop of their own. After that it belongs to a loop.
    """
    kind = type(value)
    for base in kind.__mro__:
        match base.__module__:
            case "weakref" | "_weakrefset":
                return "what it refers to weakly stays in this process"
            case "tempfile" if base.__qualname__ == "TemporaryDirectory":
                return "a temporary directory belongs to the process that removes it; send its name"
            case "shelve" if base.__qualname__ == "Shelf":
                return "an open shelf cannot leave its process"
            case "asyncio.mixins" if getattr(value, "_loop", None) is not None:
                return f"this asyncio.{kind.__qualname__} belongs to an event loop of its process"
            case module if module in _PROCESSES and not issubclass(kind, BaseException):
                return f"{kind.__qualname__} cannot leave its process"
    text = getattr(kind, UNPORTABLE, None)
    return None if text is None else str(text)
