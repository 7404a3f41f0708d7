"""Which branch serves whom: one for each setting, some at a time, none where it cannot be.

    planned ──first worker has loaded its flow──▶ asked of the root ──hello──▶ ready
       │  first worker is gone                       │  its import failed, or it was killed
       ▼                                             ▼
    dropped                                       condemned; killed for the first time: dropped

What was dropped is planned again at a later launch. Launches wait at a plan and at a branch that still imports,
``AWAITED`` seconds in all.
"""

import signal
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from logging import INFO, WARNING
from typing import Final

from caravela.errors import Cause

from ..boot import environment
from ..logs import say
from .base import Loop, Setting
from .deaths import send_signal
from .workers import Workers
from .zygote import Branch, Plan, Request, Zygote, branch

MOST: Final = 16
"""Branches of one engine: each holds what its modules take in memory."""

AWAITED: Final = 1.0
"""Seconds for which launches wait for a branch that is planned or still imports, as they would import for themselves;
then the root forks them."""


@dataclass(frozen=True, slots=True)
class Steering:
    """What the engine does for its branches: hear what one says, lose one, ask the root for what waits for it."""

    hear: Callable[[Zygote], None]
    lose: Callable[[Zygote], None]
    ask_the_root: Callable[[], None]


class Branches:
    """``preload``: modules for every branch; None: no branches. ``root`` is the queue of what the root is asked."""

    def __init__(self, preload: tuple[str, ...] | None, root: deque[Request], workers: Workers) -> None:
        self._preload = preload
        self._root = root
        self._workers = workers
        self._plans: dict[Setting, Plan] = {}
        self._all: dict[Setting, Branch] = {}  # the one used last is the last
        self._unsuitable: dict[tuple[str, ...], bytes] = {}  # modules → the surroundings in which they were tried
        self._killed: dict[tuple[str, ...], bytes] = {}  # the same, of those whose import was killed
        self._keys = count(1)

    def open(self, loop: Loop, engine: Steering) -> None:
        """What is to be preloaded anyway is asked for at once."""
        self._loop, self._engine = loop, engine
        if setting := self._setting(Setting((), environment())):
            self._make(self._plan(setting, 0))

    def __iter__(self) -> Iterator[Branch]:
        return iter(list(self._all.values()))

    def queues(self) -> list[deque[Request]]:
        """Of the branches that there are, and will be."""
        return [*(it.queue for it in self._all.values()), *(it.queue for it in self._plans.values())]

    # ------------------------------------------------------------------ launches

    def place(self, key: int, wanted: Setting) -> Branch | Plan | None:
        """Where the launch of ``key`` waits; None: at the root, which also has the first one of a setting."""
        setting = self._setting(wanted)
        if setting is None:
            return None
        if plan := self._plans.get(setting):
            return plan if plan.awaited else None
        if found := self._all.pop(setting, None):
            self._all[setting] = found
            return found if found.serves else None
        if self._superfluous(setting) is not None:
            self._plan(setting, key)
        return None

    def booted(self, key: int) -> None:
        if plan := self._first_was(key):
            self._make(plan)

    def gone(self, key: int) -> None:
        """A worker was not launched, or exited; was it the first of its setting, then before its flow was loaded."""
        if plan := self._first_was(key):
            self._give_up(plan)
            self._engine.ask_the_root()

    def hand_over(self) -> None:
        """All that waits is the root's."""
        for queue in self.queues():
            self._root.extend(queue)
            queue.clear()

    def _setting(self, wanted: Setting) -> Setting | None:
        """Of the branch for it; None for what starts from the root."""
        if self._preload is None:
            return None
        every = tuple(dict.fromkeys((*self._preload, *wanted.modules)))
        if not every or self._unsuitable.get(every) == wanted.environment:
            return None
        return Setting(every, wanted.environment)

    # ------------------------------------------------------------------ plans

    def _plan(self, setting: Setting, first: int) -> Plan:
        plan = self._plans[setting] = Plan(setting, first)
        plan.stop_waiting = self._loop.later(AWAITED, partial(self._await_no_longer, plan))
        return plan

    def _first_was(self, key: int) -> Plan | None:
        return next((it for it in self._plans.values() if it.first == key), None)

    def _await_no_longer(self, plan: Plan) -> None:
        plan.awaited = False
        self._to_the_root(plan)
        self._engine.ask_the_root()

    def _to_the_root(self, plan: Plan) -> None:
        self._root.extend(plan.queue)
        plan.queue.clear()

    def _give_up(self, plan: Plan) -> None:
        plan.stop_waiting()
        self._plans.pop(plan.setting, None)
        self._to_the_root(plan)

    def _make(self, plan: Plan) -> None:
        """The root is asked for it behind what it is asked already. Without room or fds for it, it is not."""
        superfluous = self._superfluous(plan.setting)
        for other in superfluous or ():
            self._engine.lose(other)
            self.drop(other)
        try:
            if superfluous is None:
                raise OSError("no room")
            made, request = branch(-next(self._keys), plan)  # workers' keys are positive
        except OSError:
            self._give_up(plan)
        else:
            self._all[plan.setting] = made
            del self._plans[plan.setting]
            self._root.append(request)
            self._loop.watch(made.control.fileno(), partial(self._engine.hear, made))
        self._engine.ask_the_root()

    def _superfluous(self, setting: Setting) -> list[Branch] | None:
        """What must go before one for ``setting`` comes; None when there is no room for it.

        Idle ones of the same modules go, for the surroundings have changed; else the idle one unused longest.
        """
        idlers = [it for it in self if self._idle(it)]
        outdated = [it for it in idlers if it.setting.modules == setting.modules]
        if outdated or len(self._all.keys() | self._plans.keys() - {setting}) < MOST:
            return outdated
        return idlers[:1] or None

    def _idle(self, it: Branch) -> bool:
        return not (it.queue or it.asked or self._workers.any_of(it))

    # ------------------------------------------------------------------ branches

    def with_key(self, key: int) -> Branch | None:
        return next((it for it in self if it.key == key), None)

    def made(self, key: int, death: int | None) -> None:
        """``death`` None: no fd left here; then only the end of its control socket ends it."""
        found = self.with_key(key)
        if death is None:
            return
        if found is None or not found.control_open:  # it became superfluous meanwhile, or has let go of us
            send_signal(death, signal.SIGKILL)
        if found is None:
            self._loop.unwatch(death, close=True)
        else:
            found.death = death

    def greeted(self, it: Branch) -> None:
        it.plan.stop_waiting()
        self._killed.pop(it.setting.modules, None)

    def condemn(self, it: Branch, why: str) -> None:
        """What it imports is unsuitable, in these surroundings."""
        it.unsuitable = True
        modules = it.setting.modules
        self._unsuitable[modules] = it.setting.environment
        level = WARNING if self._preload else INFO
        say(level, "not preloaded, each worker imports for itself: %s: %s", ", ".join(modules), why)

    def exited(self, key: int, why: Cause) -> None:
        """The root has reaped it. One that was killed, for its memory perhaps, is tried once more."""
        it = self.with_key(key)
        if it is None:
            return
        self._engine.hear(it)  # what it still said
        if it.control_open:
            self._engine.lose(it)
        if it.ready:
            return
        setting = it.setting
        if it.unsuitable:
            pass  # it said so itself
        elif why.kind == "signal" and self._killed.get(setting.modules) != setting.environment:
            self._killed[setting.modules] = setting.environment
        else:
            self.condemn(it, f"their import ended the process: {why}")
        self.drop(it)
        self._engine.ask_the_root()

    def drop(self, it: Branch) -> None:
        """One that was let go of; what waits for it is the root's."""
        it.plan.stop_waiting()
        self._to_the_root(it.plan)
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
        for plan in (*(it.plan for it in self), *self._plans.values()):
            plan.stop_waiting()
        self._all.clear()
        self._plans.clear()
