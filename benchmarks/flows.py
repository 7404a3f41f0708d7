"""The flow that is measured, and what is sent to it. Workers import this module: it imports nothing else."""

import gc
from typing import Any

from caravela import flow, repeat, wait_until

State = dict[str, Any]


def never(state: State) -> bool:
    return False


def count(state: State) -> State:
    return state | {"n": state["n"] + 1}


def collect(state: State) -> State:
    """A full collection writes to every object that it may look at: pages that were shared become the worker's own."""
    gc.collect()
    return state


idle = flow("idle", repeat(wait_until(never)), initial_state={"n": 0, "title": "Os Lusíadas"})
