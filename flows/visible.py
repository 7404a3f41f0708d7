"""The state that everybody sees, and the signals that change it: G1, G2, G3 and the arithmetic of G5."""

import copy
from typing import Any

from caravela.errors import StepRaised

from .events import Applied, Codec, Effect, Notify, Rejected, Signal
from .flat import spell


class Visible:
    """The canonical bytes, their number, and whether they were announced. Effects go to ``effects``."""

    __slots__ = ("_announced", "codec", "effects", "seq", "state")

    def __init__(self, state: bytes, codec: Codec) -> None:
        self.state = state
        self.seq = 0
        self.codec = codec
        self.effects: list[Effect] = []
        self._announced = state

    def value(self) -> Any:
        """A copy for one reader alone (G1)."""
        return self.codec.decode(self.state)

    def become(self, state: bytes) -> None:
        """G3: equal bytes say nothing, different bytes say it once."""
        self.state = state
        if state != self._announced:
            self._announced = state
            self.seq += 1
            self.effects.append(Notify(self.seq, state))

    def apply(self, signal: Signal, base: bytes, *, again: bool) -> bytes | StepRaised:
        """What the signal makes of ``base``; nothing but the return value counts (G2).

        ``again``: it may be applied once more, and must then find its arguments as they came.
        """
        try:
            args = _copied(signal.args) if again else signal.args
            value = signal.fn(self.codec.decode(base), *args)
            if value is None:
                raise TypeError("the function returned None; return the new state")
            return self.codec.encode(value)
        except BaseException as error:
            return StepRaised.of(error, f"signal {spell(signal.fn)}")

    def accept(self, signal: Signal, state: bytes) -> None:
        self.become(state)
        if signal.call:
            self.effects.append(Applied(signal.no, signal.call, state))

    def reject(self, signal: Signal, error: StepRaised, *, late: bool) -> None:
        self.effects.append(Rejected(signal.no, signal.call, error, late))


def _copied(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """One by one: a module, for one, cannot be copied, and is passed as it is."""
    return tuple(map(_copy, args))


def _copy(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:
        return value
