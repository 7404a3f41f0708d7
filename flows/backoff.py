"""How long to wait before another attempt."""

from collections.abc import Callable

from .steps import Run


def delay_ms(step: Run, attempt: int, draw: Callable[[], float]) -> float:
    """Milliseconds after failed attempt number ``attempt`` (1, 2, …), capped by ``max_delay``, then jittered.

    ``draw`` returns a number in [0, 1). Jitter is a fraction: the delay is uniform over [delay * (1 - jitter), delay],
    so that the cap stays a cap and ``jitter=1`` is the "full jitter" of Brooker,
    *Exponential Backoff And Jitter*, AWS Architecture Blog, 2015.
    """
    match step.backoff:
        case "constant":
            delay = step.base_delay
        case "linear":
            delay = step.base_delay * attempt
        case "exponential":
            # 2**1023 is the largest power that a float holds; beyond it only the cap is meant.
            delay = step.base_delay * 2.0 ** min(attempt - 1, 1000)
    if step.max_delay is not None:
        delay = min(delay, step.max_delay)
    return delay * (1 - step.jitter * draw())
