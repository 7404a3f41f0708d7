"""What is said over the pipe: two unions of frozen messages.

On the wire a message is a msgpack array ``[tag, *fields]``; the tag is the place in its union. ``bytes`` fields are
payloads (see :mod:`.payload`): opaque here, limited on their own. Everything else is the envelope.

``call`` numbers a question that somebody waits for; 0 means that nobody does. ``no`` numbers the signals of one worker.
"""

from dataclasses import dataclass
from typing import TypeAlias

VERSION = 1


# ------------------------------------------------------------------ both ways


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame on each pipe. ``pid`` is the sender's; the worker returns the ``nonce`` that it got."""

    version: int
    pid: int
    nonce: bytes


# ------------------------------------------------------------------ to the worker


@dataclass(frozen=True, slots=True)
class Start:
    """``state`` empty: the flow's own. ``options`` and ``environment`` are payloads of dicts."""

    flow: bytes
    state: bytes
    options: bytes
    environment: bytes


@dataclass(frozen=True, slots=True)
class Code:
    """A code object that later payloads name by ``id``."""

    id: int
    code: bytes


@dataclass(frozen=True, slots=True)
class Define:
    """``name`` in the mirror of ``module`` is now ``value``."""

    module: str
    name: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Signal:
    """``function``: a payload of a function, or of a declared signal's name; ``args``: one of a tuple, empty for ()."""

    no: int
    call: int
    function: bytes
    args: bytes


@dataclass(frozen=True, slots=True)
class Query:
    call: int


@dataclass(frozen=True, slots=True)
class Interest:
    """What somebody listens to: 0 nothing but the ends, 1 states, 2 also steps entered."""

    level: int


@dataclass(frozen=True, slots=True)
class Stop:
    reason: str


@dataclass(frozen=True, slots=True)
class Ping:
    call: int


ToWorker: TypeAlias = Hello | Start | Code | Define | Signal | Query | Interest | Stop | Ping


# ------------------------------------------------------------------ to the supervisor


@dataclass(frozen=True, slots=True)
class Ready:
    """The flow is loaded; ``state`` is number 0 of this incarnation, ``signals`` a payload of the names declared."""

    state: bytes
    name: str
    signals: bytes


@dataclass(frozen=True, slots=True)
class State:
    seq: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Done:
    seq: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    seq: int
    reason: bytes


@dataclass(frozen=True, slots=True)
class Stopped:
    seq: int
    state: bytes


@dataclass(frozen=True, slots=True)
class BootFailed:
    """``error`` is a payload of a ``StepRaised``."""

    error: bytes


@dataclass(frozen=True, slots=True)
class Crashed:
    error: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """``value`` is a state, or, when not ``ok``, a ``StepRaised``."""

    call: int
    ok: bool
    value: bytes


@dataclass(frozen=True, slots=True)
class Rejected:
    """A signal that nobody waits for was not applied."""

    no: int
    error: bytes
    late: bool


@dataclass(frozen=True, slots=True)
class Progress:
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Entered:
    path: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Log:
    """``record`` is a payload of a dict: name, level, message, path."""

    record: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    call: int


ToSupervisor: TypeAlias = (
    Hello
    | Ready
    | State
    | Done
    | Failed
    | Stopped
    | BootFailed
    | Crashed
    | Reply
    | Rejected
    | Progress
    | Entered
    | Log
    | Pong
)
