"""May a flow that died start once more? ``(history, now) → verdict``, on a monotonic clock."""

from dataclasses import dataclass
from typing import Final

BOOT_FAILURES: Final = 5
"""Failed boots in a row, at restarts, that end a flow."""
BOOT_BACKOFF: Final = 0.1
BOOT_BACKOFF_CAP: Final = 30.0


@dataclass(frozen=True, slots=True)
class Budget:
    """``max_restarts`` within any ``max_seconds``: OTP's intensity and period."""

    max_restarts: int
    max_seconds: float

    def charge(self, history: tuple[float, ...], now: float) -> tuple[float, ...] | None:
        """The history with one more restart, or None where that would be one too many."""
        recent = tuple(then for then in history if now - then <= self.max_seconds)
        return (*recent, now) if len(recent) < self.max_restarts else None


def boot_delay(failures: int) -> float | None:
    """Seconds before the next try after ``failures`` failed boots in a row: 0.1 doubling to 30; None: give up."""
    if failures >= BOOT_FAILURES:
        return None
    return min(BOOT_BACKOFF * 2.0 ** (failures - 1), BOOT_BACKOFF_CAP)
