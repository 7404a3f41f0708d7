"""caravela: ephemeral workflow orchestration, every flow in its own, crash-isolated OS process.

The names to write flows with are here at once. Those of the runtime load at first use, so that a worker that
imports a user's module does not load the supervisor.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from caravela.errors import (
    AllFailed,
    BootError,
    CaravelaError,
    Cause,
    FlowBusy,
    FlowCrashed,
    FlowFailed,
    FlowNotRunning,
    FlowTimeout,
    InvalidOutcome,
    LimitExceeded,
    NotPortable,
    ProtocolError,
    Reason,
    RetriesExhausted,
    SignalFailed,
    StepRaised,
    StepTimedOut,
    SupervisorForked,
    UndecodableState,
)
from caravela.flows import (
    Error,
    Flow,
    Ok,
    Retry,
    Skip,
    debounce,
    each,
    flow,
    parallel,
    race,
    repeat,
    run,
    sequence,
    set_state,
    wait,
    wait_until,
)

if TYPE_CHECKING:
    from caravela.supervisor.aio import AsyncFlowHandle, AsyncSupervisor
    from caravela.supervisor.default import get_state, shutdown, signal, start, stop
    from caravela.supervisor.events import (
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
    from caravela.supervisor.handle import FlowHandle
    from caravela.supervisor.supervisor import Supervisor
    from caravela.worker.tasks import stopping

__all__ = [
    "AllFailed",
    "AsyncFlowHandle",
    "AsyncSupervisor",
    "BootError",
    "CaravelaError",
    "Cause",
    "Error",
    "Flow",
    "FlowBusy",
    "FlowCrashed",
    "FlowDone",
    "FlowError",
    "FlowFailed",
    "FlowHandle",
    "FlowNotRunning",
    "FlowRestarted",
    "FlowStarted",
    "FlowState",
    "FlowStopped",
    "FlowTimeout",
    "InvalidOutcome",
    "Lagged",
    "LimitExceeded",
    "NotPortable",
    "Ok",
    "Progress",
    "ProtocolError",
    "Reason",
    "RetriesExhausted",
    "Retry",
    "SignalFailed",
    "SignalRejected",
    "Skip",
    "StepEntered",
    "StepRaised",
    "StepTimedOut",
    "Supervisor",
    "SupervisorForked",
    "UndecodableState",
    "debounce",
    "each",
    "flow",
    "get_state",
    "parallel",
    "race",
    "repeat",
    "run",
    "sequence",
    "set_state",
    "shutdown",
    "signal",
    "start",
    "stop",
    "stopping",
    "wait",
    "wait_until",
]

_LATE = {
    "caravela.supervisor.aio": ("AsyncFlowHandle", "AsyncSupervisor"),
    "caravela.supervisor.default": ("get_state", "shutdown", "signal", "start", "stop"),
    "caravela.supervisor.events": (
        "FlowDone",
        "FlowError",
        "FlowRestarted",
        "FlowStarted",
        "FlowState",
        "FlowStopped",
        "Lagged",
        "Progress",
        "SignalRejected",
        "StepEntered",
    ),
    "caravela.supervisor.handle": ("FlowHandle",),
    "caravela.supervisor.supervisor": ("Supervisor",),
    "caravela.worker.tasks": ("stopping",),
}
_HOME = {name: module for module, names in _LATE.items() for name in names}

if not TYPE_CHECKING:  # or type checkers would believe every misspelt name

    def __getattr__(name: str) -> object:
        if name in _HOME:
            value = getattr(import_module(_HOME[name]), name)
            globals()[name] = value  # from now on found without asking here
            return value
        raise AttributeError(f"module 'caravela' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
