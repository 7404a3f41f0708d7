"""Which branch serves whom: one for each setting, some at a time, none where it cannot be."""

import logging
import signal
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from typing import Final

from .base import Loop, Setting
from .deaths import send_signal
from .zygote import Branch, Request, branch

MOST: Final = 16
"""Branches of one engine: each holds what its modules take in memory."""

AWAITED: Final = 1.0
"""Seconds for which launches wait for a branch that still imports, as they would import for themselves; then the root
forks them."""

log = logging.getLogger("caravela")


class Branches:
    """``preload``: modules for every branch; None: no branches. ``root`` is the queue of what the root is asked."""

    def __init__(self, preload: tuple[str, ...] | None, root: deque[Request]) -> None:
        self._preload = preload
        self._root = root
        self._all: dict[Setting, Branch] = {}  # the one used last is the last
        self._unsuitable: dict[tuple[str, ...], bytes] = {}  # modules → the surroundings in which they were tried
        self._keys = count(1)

    def open(self, loop: Loop, hear: Callable[[Branch], None], too_late: Callable[[Branch], None]) -> None:
        self._loop, self._hear, self._too_late = loop, hear, too_late

    def __iter__(self) -> Iterator[Branch]:
        return iter(list(self._all.values()))

    def setting(self, wanted: Setting) -> Setting | None:
        """Of the branch for it; None for what starts from the root."""
        if self._preload is None:
            return None
        every = tuple(dict.fromkeys((*self._preload, *wanted.modules)))
        if not every or self._unsuitable.get(every) == wanted.environment:
            return None
        return Setting(every, wanted.environment)

    def use(self, setting: Setting) -> Branch | None:
        found = self._all.pop(setting, None)
        if found is not None:
            self._all[setting] = found
        return found

    def with_key(self, key: int) -> Branch | None:
        return next((it for it in self if it.key == key), None)

    def superfluous(self, setting: Setting, idle: Callable[[Branch], bool]) -> list[Branch] | None:
        """What must go before one for ``setting`` comes; None when there is no room for it.

        Idle ones of the same modules go, for the surroundings have changed; else the idle one unused longest.
        """
        idlers = [it for it in self if idle(it)]
        outdated = [it for it in idlers if it.setting.modules == setting.modules]
        if outdated or len(self._all) < MOST:
            return outdated
        return idlers[:1] or None

    def make(self, setting: Setting) -> None:
        """The root is asked for it behind what it is asked already. Without fds for it, it is not."""
        try:
            made, request = branch(-next(self._keys), setting)  # workers' keys are positive
        except OSError:
            return
        self._all[setting] = made
        self._root.append(request)
        self._loop.watch(made.control.fileno(), lambda: self._hear(made))
        made.stop_waiting = self._loop.later(AWAITED, lambda: self._too_late(made))

    def made(self, key: int, death: int | None) -> None:
        """``death`` None: no fd left here; then only the end of its control socket ends it."""
        found = self.with_key(key)
        if death is None:
            return
        if found is None:  # it became superfluous meanwhile
            send_signal(death, signal.SIGKILL)
            self._loop.unwatch(death, close=True)
        else:
            found.death = death

    def condemn(self, it: Branch, why: str) -> None:
        """What it imports is unsuitable, in these surroundings."""
        self._unsuitable[it.setting.modules] = it.setting.environment
        level = logging.WARNING if self._preload else logging.INFO
        log.log(level, "not preloaded, each worker imports for itself: %s: %s", ", ".join(it.setting.modules), why)

    def drop(self, it: Branch) -> None:
        """One that was let go of."""
        if self._all.get(it.setting) is it:
            del self._all[it.setting]
        for request in list(self._root):
            if request.key == it.key:
                self._root.remove(request)
                request.close()
        if it.death >= 0:
            self._loop.unwatch(it.death, close=True)
            it.death = -1

    def clear(self) -> None:
        for it in self:
            it.stop_waiting()
        self._all.clear()
