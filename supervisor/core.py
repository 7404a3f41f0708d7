"""The pure supervisor machine: ``(event, now) → effects``. No clock, no I/O, no thread, no log.

    StartAsked ─▶ STARTING ──Ready──▶ RUNNING ──frame of an end──▶ LEAVING ──Exited──▶ ENDED
                     ▲   │ boot fails     │ dies                       │ (permanent: restart)
                     │   ▼                ▼                            │
                  BACKOFF ◀──────── restart verdict ◀──────────────────┘
    StopAsked: from any of them to STOPPING: message ─grace─▶ SIGTERM ─0.5 s─▶ SIGKILL; LEAVING stays what it is.

Readiness is an event, so a slow boot holds up nobody. Death is told by ``Exited``, always after every frame that the
worker could still send: an end that was announced and then killed is that end, not a crash.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, TypeAlias, assert_never

from caravela.errors import Cause, StepRaised

from ..protocol import messages
from .endings import End, GaveUp, LastWord, Refused, Silenced
from .events import Encoded
from .restarts import Budget, boot_delay
from .spec import Policy

TERM_TO_KILL: Final = 0.5
LEAVE: Final = 1.0
"""Seconds that a worker has to exit once it has said its last word."""

LAUNCH: Final = 1.0
"""Seconds that an engine may wait before it forks a worker; ``boot_timeout`` begins when it has."""

LOST: Final = 5
"""A worker whose zygote is lost so often in a row before it is ready may be what kills it."""


class Phase(Enum):
    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "backoff"
    STOPPING = "stopping"
    LEAVING = "leaving"
    ENDED = "ended"


# ------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class StartAsked:
    pass


@dataclass(frozen=True, slots=True)
class LaunchFailed:
    why: str


@dataclass(frozen=True, slots=True)
class Ready:
    pass


@dataclass(frozen=True, slots=True)
class BootFailed:
    error: StepRaised


@dataclass(frozen=True, slots=True)
class Crashed:
    error: StepRaised


@dataclass(frozen=True, slots=True)
class Ended:
    word: LastWord


@dataclass(frozen=True, slots=True)
class Broken:
    """The worker lives but cannot be talked to."""

    why: str


@dataclass(frozen=True, slots=True)
class Launched:
    """It has a process."""


@dataclass(frozen=True, slots=True)
class Exited:
    cause: Cause


@dataclass(frozen=True, slots=True)
class StopAsked:
    grace: float


@dataclass(frozen=True, slots=True)
class KillAsked:
    """Stop without grace."""


@dataclass(frozen=True, slots=True)
class Tick:
    pass


Event: TypeAlias = (
    StartAsked
    | LaunchFailed
    | Launched
    | Ready
    | BootFailed
    | Crashed
    | Ended
    | Broken
    | Exited
    | StopAsked
    | KillAsked
    | Tick
)


# ------------------------------------------------------------------ effects


@dataclass(frozen=True, slots=True)
class Launch:
    pass


@dataclass(frozen=True, slots=True)
class SendStop:
    pass


@dataclass(frozen=True, slots=True)
class Terminate:
    pass


@dataclass(frozen=True, slots=True)
class Kill:
    pass


@dataclass(frozen=True, slots=True)
class Up:
    """The flow runs: for the first time (``cause`` None) or again, after it died of ``cause``."""

    cause: Cause | None


@dataclass(frozen=True, slots=True)
class Publish:
    """The terminal event; exactly one per flow."""

    end: End


@dataclass(frozen=True, slots=True)
class Forget:
    """No process is left, and none will come."""


Effect: TypeAlias = Launch | SendStop | Terminate | Kill | Up | Publish | Forget


# ------------------------------------------------------------------ the machine


@dataclass(slots=True)
class Child:
    """One flow over all its incarnations. ``deadline``: when to send ``Tick`` (seconds; None: not at all)."""

    policy: Policy
    phase: Phase = Phase.STARTING
    incarnation: int = 0
    deadline: float | None = None
    cause: Cause | None = None
    """Why the last incarnation died."""
    history: tuple[float, ...] = ()
    boot_failures: int = 0
    lost: int = 0
    """Times in a row that the zygote was lost before ``Ready``."""
    ever_up: bool = False
    """It has run: ``Up`` was told."""
    up: bool = False
    """This incarnation got as far as ``Ready``."""
    dying: Cause | None = None
    """What this incarnation said of its death, or why it was killed; knows more than its exit status."""
    published: bool = False
    terminated: bool = False

    @property
    def status(self) -> str:
        """In the words of a handle; of a flow that has ended its terminal event knows more."""
        match self.phase:
            case Phase.RUNNING:
                return "running"
            case Phase.STOPPING:
                return "stopping"
            case _:
                return "restarting" if self.ever_up else "starting"

    def advance(self, event: Event, now: float) -> list[Effect]:
        if self.phase is Phase.ENDED:
            return []
        match event:
            case StartAsked():
                return self._launch(now)
            case Launched():
                return self._launched(now)
            case Ready():
                return self._ready()
            case Ended(word):
                return self._ended(word, now)
            case BootFailed(error):
                return self._dying(_raised("boot", error), now)
            case Crashed(error):
                return self._dying(_raised("raised", error), now)
            case Broken(why):
                return [*self._dying(Cause("protocol", why), now), Kill()]
            case LaunchFailed(why):
                return self._gone(Cause("boot", why), now)
            case Exited(cause):
                return self._gone(cause, now)
            case StopAsked(grace):
                return self._stop(grace, now)
            case KillAsked():
                return self._kill(now)
            case Tick():
                return self._tick(now)
            case _:
                assert_never(event)

    def _launch(self, now: float) -> list[Effect]:
        self.incarnation += 1
        self.phase = Phase.STARTING
        self.deadline = now + LAUNCH + self.policy.boot_timeout
        self.up = False
        self.dying = None
        return [Launch()]

    def _launched(self, now: float) -> list[Effect]:
        if self.phase is Phase.STARTING:
            self.deadline = now + self.policy.boot_timeout
        return []

    def _ready(self) -> list[Effect]:
        if self.phase is Phase.LEAVING:
            return []  # too late: it has been given up, and such a boot must not clear the count of failed ones
        self.up = True
        self.boot_failures = self.lost = 0
        if self.phase is not Phase.STARTING:
            return []  # it is being stopped
        again, self.ever_up = self.ever_up, True
        self.phase = Phase.RUNNING
        self.deadline = None
        return [Up(self.cause if again else None)]

    # -------------------------------------------------------------- last words

    def _ended(self, word: LastWord, now: float) -> list[Effect]:
        if self.phase is Phase.LEAVING:
            return []
        again = self.policy.restart == "permanent" and self.phase is not Phase.STOPPING
        self._leave(now)
        if again:
            self.dying = self._ended_as(word)
            return []
        self.published = True
        return [Publish(word)]

    def _ended_as(self, word: LastWord) -> Cause:
        if not isinstance(word, messages.Failed):
            return Cause("ended", "finished")
        return Cause("ended", "failed", carried=Encoded(word.reason, self.policy.trust))

    def _dying(self, cause: Cause, now: float) -> list[Effect]:
        if self.phase in (Phase.STARTING, Phase.RUNNING):
            self.dying = cause
            self._leave(now)
        return []

    def _leave(self, now: float) -> None:
        self.phase = Phase.LEAVING
        self.deadline = now + LEAVE

    # -------------------------------------------------------------- no process any more

    def _gone(self, cause: Cause, now: float) -> list[Effect]:
        if self.published:
            return self._forget()
        if self.phase is Phase.STOPPING:
            return self._publish(Silenced())
        self.cause = cause = self.verdict(cause)
        restart = self.policy.restart
        if cause.kind == "zygote_lost" and restart != "temporary":
            self.lost += not self.up
            if self.lost < LOST:
                return self._launch(now)  # nobody's fault: charged to no budget
        if not self.ever_up:
            return self._publish(Refused(cause))
        if restart == "temporary":
            return self._publish(GaveUp(cause))
        if not self.up:
            return self._boot_again(now)
        history = Budget(self.policy.max_restarts, self.policy.max_seconds).charge(self.history, now)
        if history is None:
            policy = self.policy
            spent = f"max_restarts={policy.max_restarts} within {policy.max_seconds:g} s are spent"
            return self._give_up(spent)
        self.history = history
        return self._launch(now)

    def verdict(self, exit: Cause) -> Cause:
        """What it said of its death knows more than how it left; where it stood then, its status page."""
        if self.dying is None:
            return exit
        return self.dying if self.dying.path else replace(self.dying, path=exit.path, attempt=exit.attempt)

    def _boot_again(self, now: float) -> list[Effect]:
        self.boot_failures += 1
        delay = boot_delay(self.boot_failures)
        if delay is None:
            return self._give_up(f"{self.boot_failures} boots in a row have failed")
        self.phase = Phase.BACKOFF
        self.deadline = now + delay
        return []

    def _give_up(self, spent: str) -> list[Effect]:
        assert self.cause is not None
        self.cause = replace(self.cause, spent=spent)
        return self._publish(GaveUp(self.cause))

    def _publish(self, end: End) -> list[Effect]:
        self.published = True
        return [Publish(end), *self._forget()]

    def _forget(self) -> list[Effect]:
        self.phase = Phase.ENDED
        self.deadline = None
        return [Forget()]

    # -------------------------------------------------------------- stopping and time

    def _stop(self, grace: float, now: float) -> list[Effect]:
        match self.phase:
            case Phase.BACKOFF:
                return self._publish(Silenced())
            case Phase.STARTING if not self.incarnation:  # before its start was asked for: it will not come
                return self._publish(Silenced())
            case Phase.LEAVING if self.published:
                return []
            case Phase.STOPPING:
                if not self.terminated:
                    self.deadline = now + grace if self.deadline is None else min(self.deadline, now + grace)
                return []
            case _:
                self.phase = Phase.STOPPING
                self.deadline = now + grace
                return [SendStop()]

    def _kill(self, now: float) -> list[Effect]:
        effects = self._stop(0.0, now)
        return effects if self.phase is Phase.ENDED else [*effects, Kill()]

    def _tick(self, now: float) -> list[Effect]:
        if self.deadline is None or now < self.deadline:
            return []
        match self.phase:
            case Phase.BACKOFF:
                return self._launch(now)
            case Phase.STOPPING if not self.terminated:
                self.terminated = True
                self.deadline = now + TERM_TO_KILL
                return [Terminate()]
            case Phase.STARTING:
                self._dying(Cause("boot", f"not ready within {self.policy.boot_timeout:g} s"), now)
        self.deadline = now + LEAVE  # a process in an uninterruptible call dies when it returns; ask again until then
        return [Kill()]


def _raised(kind: str, error: StepRaised) -> Cause:
    return Cause(kind, f"{error.type}: {error.message}", error.path, error.attempt, error)
