"""``--state``: what the command line says of the first state, laid over what the flow declares. Runs in the worker."""

import importlib
from operator import attrgetter
from typing import Any

from ..flows.flow import Flow, is_factory
from ..protocol import payload


def overlaid(module: str, name: str, given: Any) -> Any:
    """Two dicts are merged, the given keys win; anything else that is given is the state."""
    flow = attrgetter(name)(importlib.import_module(module))
    if not isinstance(flow, Flow) or not isinstance(given, dict):
        return given
    declared = flow.initial_state
    declared = declared() if is_factory(declared) else payload.decode(payload.encode(declared))
    return declared | given if isinstance(declared, dict) else given
