"""The steps of a flow by number, each with its place: what the machine runs and errors name."""

from dataclasses import dataclass
from typing import Any, Final

from .flat import Flat, inner, limit
from .steps import Sequence

KEPT: Final = 6
"""Segments of a long path that are written out at either end."""


@dataclass(slots=True)  # not frozen: three times as quick to make, and a plan is made at every boot
class Node:
    """A step and its place. ``parent`` is -1 for the root; ``index`` counts from 0 among the parent's steps."""

    id: int
    step: Any
    parent: int
    index: int
    children: tuple[int, ...]


class Plan:
    """All steps under ``root`` in pre-order: ``nodes[0]`` is the root, a step comes before its inner steps.

    A step that stands in two places has two nodes. Things that are no steps get one too; the builder complains.
    Raises ``LimitExceeded`` for more than a million steps.
    """

    __slots__ = ("_depths", "_heads", "_paths", "nodes")

    def __init__(self, root: Sequence, what: str = "a flow") -> None:
        limit(root, what)
        self.nodes: list[Node] = []
        self._depths: list[int] = []
        self._heads: list[int] = []  # the ancestor KEPT levels below the root: a long path begins with its path
        self._paths: dict[int, str] = {}
        below: list[list[int]] = []
        waiting: list[tuple[Any, int, int]] = [(root, -1, 0)]
        while waiting:
            step, parent, index = waiting.pop()
            node = len(self.nodes)
            self.nodes.append(Node(node, step, parent, index, ()))
            below.append([])
            if parent >= 0:
                below[parent].append(node)
                depth = self._depths[parent] + 1
                self._depths.append(depth)
                self._heads.append(self._heads[parent] if depth > KEPT else node)
            else:
                self._depths.append(0)
                self._heads.append(node)
            children = inner(step)
            waiting.extend((children[at], node, at) for at in range(len(children) - 1, -1, -1))
        for node, children_of in enumerate(below):
            if children_of:
                self.nodes[node].children = tuple(children_of)

    def depth(self, id: int) -> int:
        """0 for the root."""
        return self._depths[id]

    def path(self, id: int) -> str:
        """Where a step stands, such as ``repeat/sequence[2]/run[1]``; the root itself is ``sequence``.

        ``[i]`` counts from 0 and stands only where there is more than one step. Above twelve segments the middle is
        a number: ``…(9988)…``; only such paths may be the same for two steps.
        """
        path = self._paths.get(id)
        if path is None:
            path = self._paths[id] = self._spell(id)
        return path

    def _spell(self, id: int) -> str:
        depth = self._depths[id]
        if depth == 0:
            return self.name(id)
        if depth <= 2 * KEPT:
            return "/".join(self._segments(id, depth))
        head, tail = self._segments(self._heads[id], KEPT), self._segments(id, KEPT)
        return "/".join([*head, f"…({depth - 2 * KEPT})…", *tail])

    def _segments(self, id: int, count: int) -> list[str]:
        segments = []
        for _ in range(count):
            node = self.nodes[id]
            alone = len(self.nodes[node.parent].children) == 1
            segments.append(self.name(id) if alone else f"{self.name(id)}[{node.index}]")
            id = node.parent
        return segments[::-1]

    def name(self, id: int) -> str:
        """The step's name in the DSL: ``wait_until``."""
        step = self.nodes[id].step
        return step.dsl if isinstance(step, Flat) else type(step).__name__
