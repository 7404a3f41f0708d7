"""The specification's functions: ``start``, ``signal``, ``get_state``, ``stop``, without naming a supervisor.

``start`` makes the flow a child of the running supervisor (the first one that was entered and is still open). Without
one it runs unsupervised (never restarted) in a supervisor of this module, which ``shutdown()`` or the end of the
interpreter closes.
"""

import inspect
import os
import threading
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from .events import Terminal
from .handle import FlowHandle, checked
from .interrupts import uninterrupted
from .loop import hands_free
from .supervisor import Supervisor, running

P = ParamSpec("P")
R = TypeVar("R")

_lock = threading.Lock()
_own: Supervisor | None = None


def _signed_as(method: Callable[Concatenate[Supervisor, P], R]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """Gives a function the parameters of a method, also for editors, so that they are written once."""

    def sign(function: Callable[..., R]) -> Callable[P, R]:
        _, *parameters = inspect.signature(method).parameters.values()
        function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect looks there
        return function

    return sign


@_signed_as(Supervisor.start)
def start(*args: Any, **options: Any) -> FlowHandle:
    """See :meth:`Supervisor.start`."""
    return (running() or _unsupervised()).start(*args, **options)


def signal(handle: FlowHandle, function: Callable[..., Any] | str, *args: Any, timeout: float = 5.0) -> None:
    """See :meth:`FlowHandle.signal`."""
    checked(handle).signal(function, *args, timeout=timeout)


def get_state(handle: FlowHandle, timeout: float = 5.0) -> Any:
    """See :meth:`FlowHandle.get_state`."""
    return checked(handle).get_state(timeout)


def stop(handle: FlowHandle, timeout: float | None = None) -> Terminal:
    """See :meth:`FlowHandle.stop`."""
    return checked(handle).stop(timeout)


def shutdown() -> None:
    """End all unsupervised flows and what serves them; the next ``start`` begins anew. Idempotent."""
    global _own
    with uninterrupted():
        with _lock:
            own = _own
        if own is not None:
            own.close()
            with _lock:
                if _own is own:
                    _own = None


def _unsupervised() -> Supervisor:
    global _own
    with uninterrupted(), hands_free, _lock:  # in the order in which a loop takes them
        if _own is None or not _own.running:
            _own = Supervisor(restart="temporary").open(private=True)
        return _own


def _after_fork_in_child() -> None:
    """Another thread of the parent may have held the lock."""
    global _lock, _own
    _lock, _own = threading.Lock(), None


os.register_at_fork(after_in_child=_after_fork_in_child)
