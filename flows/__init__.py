"""What a flow is, and the pure machine that runs it. These are the names to write flows with."""

# Flow comes through the builder: `from .flow import …` here would bind the module where the function belongs.

from .builder import Flow, debounce, each, flow, parallel, race, repeat, run, sequence, set_state, wait, wait_until
from .outcomes import Error, Ok, Retry, Skip

__all__ = [
    "Error",
    "Flow",
    "Ok",
    "Retry",
    "Skip",
    "debounce",
    "each",
    "flow",
    "parallel",
    "race",
    "repeat",
    "run",
    "sequence",
    "set_state",
    "wait",
    "wait_until",
]
