"""The host's signal handlers run where its main thread waits in here, or leaves; never between two of our steps.

Python runs them in the main thread after any bytecode, and what one raises, as a Ctrl-C does, breaks off whatever
stands there: a frame that is half written, a lock that nobody will release. So they are put off while that thread is at
work in here. Other threads run no handlers.
"""

import os
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
    __slots__ = ("came", "foreign", "inside", "known", "thrown", "waits")

    def __init__(self) -> None:
        self.inside = False
        """Its handlers are put off."""
        self.known: dict[int, Handler] = {}
        """They, as last seen."""
        self.came: dict[int, FrameType | None] = {}
        """Signals whose handlers have not run yet."""
        self.waits = False
        self.foreign = False
        self.thrown: tuple[BaseException, int] | None = None
        """What a handler has thrown into foreign code, and for which signal."""


_main = _MainThread()


class uninterrupted:
    """A context in which handlers run only in :func:`interruptible`, and at its end. In other threads it does nothing.

    One in another, as in a handler that runs while we wait, is a part of it.
    """

    __slots__ = ("_outer",)

    def __enter__(self) -> None:
        self._outer: tuple[bool, bool] | None = False, False
        if not _is_main():
            return
        if _main.inside:
            self._outer = _main.waits, _main.foreign
            _main.waits = _main.foreign = False
        elif _put_all_off():
            self._outer = None

    def __exit__(self, *_: object) -> None:
        if self._outer is None:
            _leave()
        elif True in self._outer:
            _main.waits, _main.foreign = self._outer
            _look()


def interruptible(wait: Callable[..., Value], *args: Any) -> Value:
    """Calls what only waits: where a handler raises, its value is lost, and nothing else."""
    if not (_main.inside and _is_main()):
        return wait(*args)
    _main.waits = True
    try:
        _look()
        return wait(*args)
    finally:
        _main.waits = False


def foreign(call: Callable[..., Value], *args: Any, **options: Any) -> Value:
    """Calls code of the user's, which may not return: the second signal of a kind is not put off in it."""
    if not (_main.inside and _is_main()):
        return call(*args, **options)
    _main.foreign = True
    try:
        return call(*args, **options)
    finally:
        _main.foreign = False


def was_interrupted(error: BaseException) -> bool:
    """Whether ``error`` came out of foreign code because a handler had thrown it; it is then thrown again later."""
    if _main.thrown is None or _main.thrown[0] is not error:
        return False
    _main.came[_main.thrown[1]] = None
    _main.thrown = None
    return True


def _is_main() -> bool:
    return get_ident() == threading.main_thread().ident


def _put_all_off() -> bool:
    """False: none is, also not where ``threading`` takes another thread than Python for the main one."""
    for number in PUT_OFF:
        handler = getsignal(number)
        if handler is _put_off:  # left there by one that raised while we left
            continue
        if callable(handler):
            _main.known[number] = handler
        else:
            _main.known.pop(number, None)
    _main.inside = bool(_main.known)
    try:
        for number in _main.known:
            signal(number, _put_off)
    except ValueError:
        _main.inside = False
    except BaseException:  # of a handler that was not yet put off
        _leave()
        raise
    return _main.inside


def _put_off(number: int, frame: FrameType | None) -> None:
    if not _main.inside:  # we have left, or are leaving
        _main.known[number](number, frame)
        return
    second = number in _main.came
    _main.came[number] = frame
    if second and _main.foreign:
        _main.foreign = False
        try:
            _run(number)
        except BaseException as error:
            _main.thrown = error, number
            raise
        _main.foreign = True
    _look()


def _look() -> None:
    """What a handler raises ends the wait."""
    while _main.waits and _main.came:
        _main.waits = False
        _run_all()
        _main.waits = True


def _run_all() -> None:
    """Also when one raises."""
    if _main.came:
        try:
            _run(next(iter(_main.came)))
        finally:
            _run_all()


def _run(number: int) -> None:
    frame = _main.came.pop(number)  # first: the handler may wait in here too, where what has come is run
    _main.known[number](number, frame)


def _leave() -> None:
    """From now on ours passes on, wherever it still stands because another one has raised."""
    _main.inside = _main.waits = False
    try:
        _put_back()
    except BaseException:
        _put_back()
        raise
    finally:
        _run_all()


def _put_back() -> None:
    for number, handler in list(_main.known.items()):  # a handler that runs here may come in, and see others
        if getsignal(number) is _put_off:
            signal(number, handler)


def _after_fork_in_child() -> None:
    """Its main thread is the one that forked: nobody else leaves there."""
    _main.came.clear()
    _leave()


os.register_at_fork(after_in_child=_after_fork_in_child)
