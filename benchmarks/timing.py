"""Samples, and measuring several ways in one run in random order, so that other load hits all of them alike."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Sample:
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def p99(self) -> float:
        """Nearest rank: with fewer than 100 values the largest."""
        ordered = sorted(self.values)
        return ordered[min(len(ordered) - 1, -(-len(ordered) * 99 // 100) - 1)]

    @property
    def n(self) -> int:
        return len(self.values)


Way = Callable[[], float]
"""Does the thing once and returns the seconds that it took."""


def interleaved(ways: Mapping[str, Way], n: int, order: random.Random, warm_up: int = 2) -> dict[str, Sample]:
    """Each way ``n`` times, after a few that do not count."""
    for way in ways.values():
        for _ in range(warm_up):
            way()
    turns = [name for name in ways for _ in range(n)]
    order.shuffle(turns)
    took: dict[str, list[float]] = {name: [] for name in ways}
    for name in turns:
        took[name].append(ways[name]())
    return {name: Sample(tuple(values)) for name, values in took.items()}
