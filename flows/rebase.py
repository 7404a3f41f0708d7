"""G5: what a signal that comes while a body computes does to the state that the body returns."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from caravela.errors import StepRaised

from .events import Applied, Rejected, Signal
from .visible import Visible

LOG_ENTRIES: Final = 10_000
LOG_BYTES: Final = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Logged:
    """``failed``: what the signal raised on the visible state; then its verdict is still open."""

    signal: Signal
    failed: StepRaised | None


@dataclass(slots=True)
class RebaseLog:
    """The signals that came while one body computed, in their order."""

    entries: list[Logged] = field(default_factory=list)
    size: int = 0

    def append(self, signal: Signal, failed: StepRaised | None) -> None:
        self.entries.append(Logged(signal, failed))
        self.size += signal.size

    @property
    def full(self) -> bool:
        return len(self.entries) >= LOG_ENTRIES or self.size >= LOG_BYTES

    def stand_by(self, visible: Visible) -> None:
        """The body brought no state: the visible one stands, and what failed on it has failed."""
        for logged in self.entries:
            if logged.failed:
                visible.reject(logged.signal, logged.failed, late=True)


@dataclass(slots=True)
class Rebase:
    """A log being replayed on the state that a body returned; in steps, since it may be long."""

    log: RebaseLog
    base: bytes
    done: int = 0

    @property
    def complete(self) -> bool:
        return self.done == len(self.log.entries)

    def replay(self, visible: Visible, fuel: int, watch: Callable[[int], None]) -> int:
        """Replay at most ``fuel`` signals; returns how many. Once complete, ``base`` is the state to become.

        ``watch`` hears the number of each before it is applied, and 0 after the last.
        """
        last = min(self.done + fuel, len(self.log.entries))
        used = last - self.done
        for logged in self.log.entries[self.done : last]:
            signal = logged.signal
            watch(signal.no)
            # An update is answered at its first success; after that nobody waits for it any more.
            call = signal.call if logged.failed else 0
            match visible.apply(signal, self.base, again=True):
                case StepRaised() as error:
                    visible.effects.append(Rejected(signal.no, call, error, late=True))
                case state:
                    self.base = state
                    if call:
                        visible.effects.append(Applied(signal.no, call, state))
        if used:
            watch(0)
        self.done = last
        return used
