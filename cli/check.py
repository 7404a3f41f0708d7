"""``caravela check``: what would go wrong with a flow, without running any of it but the import of its module."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from caravela.errors import CaravelaError

from ..flows.flow import Flow, is_factory
from ..flows.plan import Plan
from ..flows.steps import Repeat, Sequence
from ..protocol import payload
from ..protocol.codec import encode
from ..protocol.functions import address, export
from .targets import Target


@dataclass(frozen=True, slots=True)
class Finding:
    right: bool
    text: str


def check(target: Target) -> Iterator[Finding]:
    """Raises ``BadTarget``, and whatever the module raises when it is imported."""
    began = time.perf_counter()
    target, flow = target.load()
    yield Finding(True, f"{target} is flow {flow.name!r}, imported in {(time.perf_counter() - began) * 1000:.0f} ms")
    yield _travels(flow)
    yield _begins(flow)
    yield from _never_reached(flow.plan)


def _travels(flow: Flow) -> Finding:
    if place := address(flow):
        return Finding(True, f"workers import it as {place}")
    try:
        sent = export(flow, what=f"flow {flow.name!r}")
    except CaravelaError as error:
        return Finding(False, str(error))
    size = len(sent.data) + sum(map(len, map(encode, sent.needs)))
    return Finding(True, f"workers cannot import it by a name; it travels whole, {size:,} bytes")


def _begins(flow: Flow) -> Finding:
    state = flow.initial_state
    if is_factory(state):
        return Finding(True, "each worker makes its first state by a call, which is not tried here")
    try:
        data = payload.encode(state, what="initial_state")
        payload.decode(data)
    except CaravelaError as error:
        return Finding(False, str(error))
    return Finding(True, f"its first state takes {len(data):,} bytes")


def _never_reached(plan: Plan) -> Iterator[Finding]:
    """What stands behind a step that never ends: a ``repeat``, or what holds one. Children have higher numbers than
    what holds them."""
    endless: set[int] = set()
    unreached = []
    for id in range(len(plan.nodes) - 1, -1, -1):
        node = plan.nodes[id]
        first = next((child for child in node.children if child in endless), None)
        if isinstance(node.step, Repeat) or (isinstance(node.step, Sequence) and first is not None):
            endless.add(id)
        if first is not None:
            behind = node.children[node.children.index(first) + 1 :]
            unreached += [(child, first) for child in behind]
    for child, first in sorted(unreached):
        yield Finding(False, f"{plan.path(child)} is never reached: {plan.path(first)} does not end")
    if not unreached:
        yield Finding(True, "every step can be reached")
