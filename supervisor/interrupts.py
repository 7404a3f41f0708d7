"""The host's signal handlers run where its main thread waits in here, or leaves; never between two of our steps.

Python runs them in the main thread after any bytecode, and what one raises, as a Ctrl-C does, breaks off whatever
stands there: a frame that is half written, a lock that nobody will release. So they are put off while that thread is at
work in here. Other threads run no handlers.
"""

import threading
from _signal import getsignal, signal  # type: ignore[import-not-found]  # typeshed has no private modules
from _thread import get_ident
from collections.abc import Callable
from signal import SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2
from types import FrameType
from typing import Any, Final, TypeVar

Value = TypeVar("Value")
Handler = Callable[[int, FrameType | None], object]

PUT_OFF: Final = tuple(map(int, (SIGTERM, SIGHUP, SIGQUIT, SIGALRM, SIGUSR1, SIGUSR2, SIGINT)))
"""Those whose handlers people let raise, or call this API in."""


class _MainThread:
    """``handlers``: whose turn it will be; empty where none are put off. ``came``: signals that wait for theirs."""

    __slots__ = ("came", "handlers", "waits")

    def __init__(self) -> None:
        self.handlers: dict[int, Handler] = {}
        self.came: dict[int, FrameType | None] = {}
        self.waits = False


_main = _MainThread()


class uninterrupted:
    """A context in which handlers run only in :func:`interruptible`, and at its end. In other threads it does nothing.

    A second signal of the same kind is not put off: code of the user's that was called in here may not return.
    """

    __slots__ = ("_nested", "_waited")

    def __enter__(self) -> None:
        self._nested = True
        self._waited = False
        if get_ident() != threading.main_thread().ident:
            return
        if _main.handlers:  # in a handler that runs while we wait, or in a queue's put
            self._waited, _main.waits = _main.waits, False
            return
        _main.handlers = {number: handler for number in PUT_OFF if callable(handler := getsignal(number))}
        try:
            for number in _main.handlers:
                signal(number, _put_off)
        except BaseException:  # of a handler that was not yet put off
            _restore()
            raise
        self._nested = False

    def __exit__(self, *_: object) -> None:
        if not self._nested:
            _restore()
        elif self._waited:
            _main.waits = True
            _look()


def interruptible(wait: Callable[..., Value], *args: Any) -> Value:
    """Calls what only waits: where a handler raises, its value is lost, and nothing else."""
    if not _main.handlers or get_ident() != threading.main_thread().ident:
        return wait(*args)
    _main.waits = True
    try:
        _look()
        return wait(*args)
    finally:
        _main.waits = False


def was_interrupted(error: BaseException) -> bool:
    """Whether ``error`` came out of the user's code for a second Ctrl-C; it is then raised where we wait or leave."""
    if not isinstance(error, KeyboardInterrupt) or get_ident() != threading.main_thread().ident:
        return False
    if SIGINT not in _main.handlers:
        return False
    _main.came[SIGINT] = None
    return True


def _put_off(number: int, frame: FrameType | None) -> None:
    second = number in _main.came
    _main.came[number] = frame
    if second and not _main.waits:
        _run(_main.handlers, _main.came)
    else:
        _look()


def _look() -> None:
    """What a handler raises ends the wait."""
    if _main.waits and _main.came:
        _main.waits = False
        _run(_main.handlers, _main.came)
        _main.waits = True


def _run(handlers: dict[int, Handler], came: dict[int, FrameType | None]) -> None:
    """All of them, although one may raise."""
    if came:
        number, frame = came.popitem()
        try:
            handlers[number](number, frame)
        finally:
            _run(handlers, came)


def _restore() -> None:
    """SIGINT is the last: one that comes from then on raises here."""
    handlers = _main.handlers
    try:
        for number, handler in handlers.items():
            if getsignal(number) is _put_off:
                signal(number, handler)
    finally:
        came, _main.came, _main.handlers, _main.waits = _main.came, {}, {}, False
        _run(handlers, came)
