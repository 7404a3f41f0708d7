"""Every error of the project, one tree.

CaravelaError
├── NotPortable          what you sent cannot travel to a worker, or a state back    (also a TypeError)
├── LimitExceeded        a state, result or message above a limit                    (also a ValueError)
├── UndecodableState     a subscriber cannot decode the state that it was sent
├── ProtocolError        bytes on a pipe that are no message
├── BootError            a worker could not load its flow or make its first state
├── SignalFailed         the function of an ``update`` raised in the worker
├── FlowNotRunning       a call on a flow that has ended, or was never there
├── FlowFailed           ``result()`` of a flow that failed
├── FlowCrashed          the worker died under a call, or ``result()`` of a flow out of restarts
├── FlowTimeout          a call was not answered in time                             (also a TimeoutError)
├── FlowBusy             the flow does not read its signals                          (also a BlockingIOError)
├── SupervisorForked     a supervisor used in a forked child of its process
└── Reason               why a flow failed, when the flow itself did not say
    ├── StepRaised           a user's function raised; the error as text
    ├── StepTimedOut         a step took longer than its ``timeout``
    ├── InvalidOutcome       a user's function returned what its step does not know
    ├── RetriesExhausted     ``Retry`` was returned more often than ``retries`` allows
    └── AllFailed            every contestant of a ``race`` failed

All of them survive pickling: the constructor's arguments are ``args``, in the order of the fields.
"""

from dataclasses import dataclass, field, fields
from typing import Any

__all__ = [
    "AllFailed",
    "BootError",
    "CaravelaError",
    "Cause",
    "FlowBusy",
    "FlowCrashed",
    "FlowFailed",
    "FlowNotRunning",
    "FlowTimeout",
    "InvalidOutcome",
    "LimitExceeded",
    "NotPortable",
    "ProtocolError",
    "Reason",
    "RetriesExhausted",
    "SignalFailed",
    "StepRaised",
    "StepTimedOut",
    "SupervisorForked",
    "UndecodableState",
]


@dataclass(eq=False)
class CaravelaError(Exception):
    """The root. Equal when of one type with equal fields, so that tests and ``match`` can compare reasons."""

    def __post_init__(self) -> None:
        # BaseException.__reduce__ rebuilds from `args`; a dataclass does not fill them from keywords.
        self.args = tuple(getattr(self, item.name) for item in fields(self))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, CaravelaError) and other.args == self.args

    def __hash__(self) -> int:
        return hash(type(self))  # fields may be unhashable (a reason is any value)


# ------------------------------------------------------------------ reasons


class Reason(CaravelaError):
    """Why a flow failed, when the flow itself did not say; as value in ``FlowError.reason``."""


@dataclass(eq=False)
class StepRaised(Reason):
    """A user's function raised. The exception itself stays in the worker; its text travels."""

    type: str
    message: str
    traceback: str = field(default="", repr=False)
    path: str = ""
    attempt: int = 0

    @classmethod
    def of(cls, error: BaseException, path: str = "", attempt: int = 0) -> "StepRaised":
        """The text of an exception, its traceback from the first frame that is not ours."""
        import traceback  # costs a worker nothing until something raises

        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("caravela."):
            trace = trace.tb_next
        kind = type(error)
        name = (
            kind.__qualname__
            if kind.__module__ in ("builtins", "__main__")
            else f"{kind.__module__}.{kind.__qualname__}"
        )
        try:
            message = str(error)
        except BaseException as broken:
            message = f"<no text: its __str__ raised {type(broken).__name__}>"
        lines = traceback.format_exception(kind, error, trace or error.__traceback__)
        return cls(name, message, "".join(lines).rstrip(), path, attempt)

    def __str__(self) -> str:
        where = f" in {self.path}" if self.path else ""
        attempt = f", attempt {self.attempt}" if self.attempt > 1 else ""
        return f"{self.type}: {self.message}{where}{attempt}"


@dataclass(eq=False)
class StepTimedOut(Reason):
    """A step was not done after ``timeout`` milliseconds. A body on a thread cannot be killed: it was abandoned."""

    path: str
    timeout: float
    attempt: int = 0

    def __str__(self) -> str:
        attempt = f", attempt {self.attempt}" if self.attempt > 1 else ""
        return f"{self.path} was not done after {self.timeout:g} ms{attempt}"


@dataclass(eq=False)
class InvalidOutcome(Reason):
    """A user's function returned what its step does not know; never retried."""

    path: str
    got: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.path} returned {self.got}; allowed are {self.allowed}"


@dataclass(eq=False)
class RetriesExhausted(Reason):
    """``Retry`` came back once more than ``retries`` allows; ``last`` is the state that the last one carried."""

    attempts: int
    last: Any = None
    path: str = ""

    def __str__(self) -> str:
        return f"{self.path or 'a step'} asked for another try after {self.attempts} attempts"


@dataclass(eq=False)
class AllFailed(Reason):
    """Every contestant of a ``race`` failed; ``reasons`` in the order of the tasks."""

    reasons: list[Any]

    def __str__(self) -> str:
        return f"all {len(self.reasons)} contestants failed: " + "; ".join(str(reason) for reason in self.reasons)


# ------------------------------------------------------------------ causes


@dataclass(frozen=True, slots=True)
class Cause:
    """Why an incarnation of a worker ended without its flow ending.

    ``kind`` is one of ``signal``, ``exit``, ``raised``, ``boot``, ``protocol``, ``zygote_lost``, ``unknown``, and
    ``ended`` where a permanent flow finished or failed.
    ``detail`` is the text for people: ``SIGSEGV``, ``exit code 7``, ``ValueError: …``.
    ``path`` and ``attempt`` say where the flow stood, as far as its last status tells. ``spent`` says why it was not
    started again, where it might have been. ``carried`` is what ``reason`` is decoded from.
    """

    kind: str
    detail: str
    path: str = ""
    attempt: int = 0
    error: StepRaised | None = None
    spent: str = ""
    carried: Any = field(default=None, hash=False)  # as bytes: the supervisor, which makes causes, decodes no values

    @property
    def reason(self) -> Any:
        """What a permanent flow failed with: the value of its ``Error(reason)``, or a ``Reason``; else None.

        A copy at each access. Raises ``UndecodableState``.
        """
        return None if self.carried is None else self.carried.copy().get()

    def __str__(self) -> str:
        told = f": {self._reason_shown()}" if self.carried is not None else ""
        where = f" in {self.path}" if self.path and self.path not in told else ""
        spent = f"; {self.spent}" if self.spent else ""
        return f"{self.detail}{told}{where}{spent}"

    def _reason_shown(self) -> str:
        try:
            return str(self.reason)
        except Exception as error:  # it is the user's value: perhaps it cannot be decoded here, or has no text
            return f"a reason that cannot be shown ({type(error).__name__})"


# ------------------------------------------------------------------ errors of calls


@dataclass(eq=False)
class NotPortable(CaravelaError, TypeError):
    """``path`` leads from what was sent to the object that cannot travel: ``closure of signal → lock``."""

    path: str
    why: str

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


@dataclass(eq=False)
class LimitExceeded(CaravelaError, ValueError):
    """``what`` has ``size`` of something of which ``limit`` are allowed (``unit``: bytes, levels, entries)."""

    what: str
    size: int
    limit: int
    unit: str = "bytes"

    def __str__(self) -> str:
        size = f"{self.size:,}" if self.size > self.limit else f"more than {self.limit:,}"
        unit = "levels (or is cyclic)" if self.unit == "levels" else self.unit
        return f"{self.what} has {size} {unit}; the limit is {self.limit:,}"


@dataclass(eq=False)
class UndecodableState(CaravelaError):
    """``why`` in words; raised where the state is read, never as AttributeError (``match`` would swallow that)."""

    why: str

    def __str__(self) -> str:
        return self.why


@dataclass(eq=False)
class ProtocolError(CaravelaError):
    """Bytes on a pipe that are no message of this protocol."""

    why: str

    def __str__(self) -> str:
        return self.why


@dataclass(eq=False)
class BootError(CaravelaError):
    """A worker could not load its flow or make its first state; ``remote`` holds the worker's traceback."""

    flow: str
    why: str
    remote: StepRaised | None = None

    def __str__(self) -> str:
        text = f"flow {self.flow!r} cannot start: {self.why}"
        return f"{text}\n\n{self.remote.traceback}" if self.remote and self.remote.traceback else text


@dataclass(eq=False)
class SignalFailed(CaravelaError):
    """The function of an ``update`` raised in the worker, or returned what cannot be a state; the state stands."""

    remote: StepRaised

    def __str__(self) -> str:
        text = f"{self.remote.type}: {self.remote.message}"
        return f"{text}\n\n{self.remote.traceback}" if self.remote.traceback else text


@dataclass(eq=False)
class FlowNotRunning(CaravelaError):
    """``how`` says how the flow ended."""

    flow: str
    how: str

    def __str__(self) -> str:
        return f"flow {self.flow!r} is not running: {self.how}" if self.flow else self.how


@dataclass(eq=False)
class FlowFailed(CaravelaError):
    """The flow failed; ``reason`` is the value of its ``Error(reason)``, or a ``Reason``."""

    flow: str
    reason: Any

    def __str__(self) -> str:
        return f"flow {self.flow!r} failed: {self.reason}"


@dataclass(eq=False)
class FlowCrashed(CaravelaError):
    """The worker died. ``outcome="unknown"``: the call under way was written, perhaps applied, never answered.

    Empty where there was none: ``result()`` of a flow that has crashed (if permanent: crashed or ended) too often.
    """

    flow: str
    cause: Cause | None
    outcome: str = "unknown"

    def __str__(self) -> str:
        outcome = f" (outcome of the call: {self.outcome})" if self.outcome else ""
        return f"flow {self.flow!r} crashed: {self.cause}{outcome}"


@dataclass(eq=False)
class FlowTimeout(CaravelaError, TimeoutError):
    """No answer within ``seconds``; ``doing`` says what the worker was doing. An ``update`` may still be applied."""

    call: str
    flow: str
    seconds: float
    doing: str

    def __str__(self) -> str:
        return f"{self.call} of flow {self.flow!r} not answered within {self.seconds:g} s: {self.doing}"


@dataclass(eq=False)
class FlowBusy(CaravelaError, BlockingIOError):
    """``waiting`` bytes of signals wait to be read by the worker; ``doing`` says what it does instead."""

    flow: str
    waiting: int
    doing: str

    def __str__(self) -> str:
        return f"flow {self.flow!r} does not read its signals, {self.waiting:,} bytes wait: {self.doing}"


@dataclass(eq=False)
class SupervisorForked(CaravelaError):
    """A supervisor and its handles stay with the process that made them; make a new one in a forked child."""

    pid: int

    def __str__(self) -> str:
        return f"this supervisor belongs to process {self.pid}; a forked child needs one of its own"
