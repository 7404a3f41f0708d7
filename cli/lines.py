"""How an event is written: a line to read, or a line of JSON."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TextIO

from caravela.errors import Cause, StepRaised

from ..supervisor.events import (
    Event,
    FlowDone,
    FlowError,
    FlowRestarted,
    FlowStarted,
    FlowState,
    FlowStopped,
    Lagged,
    Progress,
    SignalRejected,
    StepEntered,
)

WIDE: Final = 2_000
"""Characters of a value that are shown."""

_GREEN, _RED, _YELLOW, _CYAN, _DIM = "32", "31", "33", "36", "2"


@dataclass(slots=True)
class Readable:
    """What is said of each event, after seconds since the start. Of a state that is a dict only what has changed."""

    out: TextIO
    began: float = field(default_factory=time.monotonic)
    _state: Any = None

    def write(self, event: Event) -> None:
        sign, colour, text = self._words(event)
        when = self._paint(_DIM, f"{time.monotonic() - self.began:9.3f} s")
        first, *rest = text.splitlines() or [""]
        self._print(f"{when}  {self._paint(colour, sign)} {first}")
        for line in rest:
            self._print(f"{'':13}{self._paint(_DIM, line)}")

    def note(self, text: str) -> None:
        self._print(f"{'':13}{self._paint(_DIM, text)}")

    def _words(self, event: Event) -> tuple[str, str, str]:
        match event:
            case FlowStarted(pid=pid):
                return "○", _CYAN, f"started, pid {pid}"
            case FlowState(state):
                return "·", _DIM, self._change(state)
            case FlowRestarted(cause=cause, lost_signals=lost):
                self._state = None
                signals = f"; {lost} signal{'' if lost == 1 else 's'} lost" if lost else ""
                return "↻", _YELLOW, f"restarted after {_cause(cause)}{signals}"
            case SignalRejected(error=error):
                return "✗", _YELLOW, f"rejected a signal: {error}"
            case StepEntered(path=path, attempt=attempt):
                return "→", _DIM, path if attempt == 1 else f"{path}, attempt {attempt}"
            case Progress(done=done, total=total):
                return "…", _DIM, f"{done} of {total}"
            case Lagged(n=n):
                return "…", _YELLOW, f"{n} event{'' if n == 1 else 's'} left out"
            case FlowDone(state):
                return "●", _GREEN, f"done  {_shown(state)}"
            case FlowStopped(state):
                return "■", _YELLOW, f"stopped  {_shown(state)}"
            case FlowError():
                return "✗", _RED, f"failed: {_reason(event)}"
            case _:
                return "·", _DIM, repr(event)

    def _change(self, state: Any) -> str:
        before, self._state = self._state, state
        if not (isinstance(before, Mapping) and isinstance(state, Mapping)):
            return _shown(state)
        changed = [
            f"{key}: {_shown(value)}" for key, value in state.items() if key not in before or before[key] != value
        ]
        gone = [f"{key} is gone" for key in before if key not in state]
        return ", ".join([*changed, *gone]) or _shown(state)

    def _paint(self, colour: str, text: str) -> str:
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not self.out.isatty()
        return text if plain else f"\x1b[{colour}m{text}\x1b[0m"

    def _print(self, line: str) -> None:
        print(line, file=self.out, flush=True)


@dataclass(slots=True)
class Json:
    """One object a line: ``event``, ``flow_id``, ``incarnation``, ``seq``, ``time`` (seconds since the start), and what
    the event carries. What JSON has no word for is written as Python shows it."""

    out: TextIO
    began: float = field(default_factory=time.monotonic)

    def write(self, event: Event) -> None:
        row: dict[str, Any] = {
            "event": type(event).__name__,
            "flow_id": event.flow_id,
            "incarnation": event.incarnation,
            "seq": event.seq,
            "time": round(time.monotonic() - self.began, 6),
        }
        match event:
            case FlowState(state) | FlowDone(state) | FlowStopped(state):
                row["state"] = state
            case FlowError():
                row["reason"] = _reason(event)
                row["crashed"] = isinstance(event.reason, Cause)
            case FlowRestarted(cause=cause, lost_signals=lost):
                row["cause"] = _cause(cause)
                row["lost_signals"] = lost
            case FlowStarted(pid=pid):
                row["pid"] = pid
            case SignalRejected(error=error, late=late):
                row["error"] = str(error)
                row["late"] = late
            case StepEntered(path=path, attempt=attempt):
                row["path"] = path
                row["attempt"] = attempt
            case Progress(done=done, total=total):
                row["done"] = done
                row["total"] = total
            case Lagged(n=n):
                row["n"] = n
        print(_json(row), file=self.out, flush=True)

    def note(self, text: str) -> None:
        """For people only."""


def _json(row: dict[str, Any]) -> str:
    try:
        return json.dumps(row, default=repr, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):  # a key that is no text, or NaN
        return json.dumps({key: _plain(value) for key, value in row.items()}, ensure_ascii=False)


def _plain(value: Any) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return repr(value)
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= WIDE else f"{text[:WIDE]}… ({len(text):,} characters)"


def _cause(cause: Cause | None) -> str:
    return str(cause) if cause else "an end"


def _reason(event: FlowError) -> str:
    """With the traceback, where there is one."""
    reason = event.reason
    error = reason.error if isinstance(reason, Cause) else reason
    trace = error.traceback.rstrip() if isinstance(error, StepRaised) and error.traceback else ""
    return f"{reason}\n{trace}" if trace else str(reason)
